"""FastAPI under uvicorn."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks import documented
from benchmarks.case import Answer, Case, is_tuned

app = FastAPI()
case = Case.from_environment()

if is_tuned():
    from benchmarks.tuned import BATCH, Engine
    from vision.core.queues import Queue

    engine = Engine(case)
    decoders, inference = ThreadPoolExecutor(os.cpu_count()), ThreadPoolExecutor(1)

    async def infer(items: Sequence[Any]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(inference, engine.predict, items)

    queue = Queue(infer, BATCH)

    @app.post("/predict")
    async def predict_tuned(images: UploadFile) -> Answer:
        data = await images.read()
        return await queue.predict(await asyncio.get_running_loop().run_in_executor(decoders, engine.decode, data))

else:
    look = documented.load(case)

    @app.post("/predict")
    def predict(images: UploadFile) -> Answer:
        return look(Image.open(images.file))
