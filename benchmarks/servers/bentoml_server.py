"""A stock BentoML Service with adaptive batching."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bentoml
from PIL import Image

from benchmarks import documented
from benchmarks.case import Answer, Case, is_tuned
from benchmarks.tuned import BATCH, Engine


@bentoml.service
class Documented:
    def __init__(self) -> None:
        self.look = documented.load(Case.from_environment())

    @bentoml.api(batchable=True)
    def predict(self, images: list[Image.Image]) -> list[Answer]:
        return [self.look(image) for image in images]


@bentoml.service
class Tuned:
    def __init__(self) -> None:
        self.engine = Engine(Case.from_environment())
        self.decoders = ThreadPoolExecutor(os.cpu_count())

    @bentoml.api(batchable=True, max_batch_size=BATCH)
    def predict(self, images: list[Path]) -> list[Answer]:
        return self.engine.predict(list(self.decoders.map(lambda path: self.engine.decode(path.read_bytes()), images)))


Stock = Tuned if is_tuned() else Documented
