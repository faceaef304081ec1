"""Ray Serve, on a cluster of this machine alone that ends with the process."""

import asyncio
import io
import os
import signal
from typing import Any

import ray
from PIL import Image
from ray import serve
from starlette.requests import Request

from benchmarks import documented
from benchmarks.case import Answer, Case, is_tuned
from benchmarks.tuned import BATCH, Engine


async def uploaded(request: Request) -> bytes:
    file: Any = (await request.form())["images"]
    return bytes(await file.read())


@serve.deployment
class Documented:
    def __init__(self) -> None:
        self.look = documented.load(Case.from_environment())

    async def __call__(self, request: Request) -> Answer:
        return self.look(Image.open(io.BytesIO(await uploaded(request))))


@serve.deployment(max_ongoing_requests=4 * BATCH)  # with its default, 5, no batch fills
class Tuned:
    def __init__(self) -> None:
        self.engine = Engine(Case.from_environment())

    async def __call__(self, request: Request) -> Answer:
        item = await asyncio.to_thread(self.engine.decode, await uploaded(request))
        return await self.predict(item)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0)
    async def predict(self, items: list[Any]) -> list[Answer]:
        return await asyncio.to_thread(self.engine.predict, items)


if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    deployment: Any = Tuned if is_tuned() else Documented
    serve.run(deployment.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
