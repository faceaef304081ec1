"""FastAPI under uvicorn."""

from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks import documented
from benchmarks.case import Answer, Case, is_tuned

app = FastAPI()
case = Case.from_environment()

if is_tuned():
    from benchmarks.tuned import Engine, answer
    from vision.core.errors import VisionError
    from vision.core.look import look as look_tuned

    question = Engine(case).question

    @app.post("/predict")
    async def predict_tuned(images: UploadFile) -> Answer:
        seen = await look_tuned(await images.read(), {"": question})
        return answer(seen if isinstance(seen, VisionError) else seen.results[""])

else:
    look = documented.load(case)

    @app.post("/predict")
    def predict(images: UploadFile) -> Answer:
        return look(Image.open(images.file))
