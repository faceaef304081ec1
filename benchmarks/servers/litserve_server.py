"""LitServe."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve
from PIL import Image
from starlette.requests import Request

from benchmarks import documented
from benchmarks.case import Answer, Case, is_tuned
from benchmarks.tuned import BATCH, Engine


class Documented(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.look = documented.load(Case.from_environment())

    def decode_request(self, request: Request) -> Image.Image:
        return Image.open(request["images"].file)  # LitServe has read the form

    def predict(self, picture: Image.Image) -> Answer:
        return self.look(picture)

    def encode_response(self, answer: Answer) -> Answer:
        return answer


class Tuned(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.engine = Engine(Case.from_environment())
        self.decoders = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: Request) -> bytes:
        return bytes(request["images"].file.read())

    def batch(self, pictures: list[bytes]) -> list[Any]:
        return list(self.decoders.map(self.engine.decode, pictures))

    def predict(self, items: list[Any]) -> list[Answer]:
        return self.engine.predict(items)

    def unbatch(self, answers: list[Answer]) -> list[Answer]:
        return answers

    def encode_response(self, answer: Answer) -> Answer:
        return answer


if __name__ == "__main__":
    # batch_timeout=0, its default: a batch is what waits; no request waits for a batch to fill.
    api = Tuned(max_batch_size=BATCH) if is_tuned() else Documented()
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
