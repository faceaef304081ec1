"""python -m benchmarks.bare: the limit, our best engine without HTTP, and what the machine can multiply.

Commands come on stdin, a JSON object a line (`do`, and its arguments); so do answers on stdout. The model stays loaded
between commands, so that they can alternate with loads on servers.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import documented
from benchmarks.case import Case
from benchmarks.tuned import BATCH, Engine

MATRIX, MATMUL_SECONDS = 2048, 0.5


def loop(engine: Engine, picture: str, seconds: float) -> dict[str, float]:
    """Pictures a second and CPU seconds a picture: threads decode beside inference, which takes them in batches."""
    data = Path(picture).read_bytes()
    with ThreadPoolExecutor(os.cpu_count()) as decoders:
        waiting = deque(decoders.submit(engine.decode, data) for _ in range(2 * BATCH))

        def step() -> None:
            items = [waiting.popleft().result() for _ in range(BATCH)]
            waiting.extend(decoders.submit(engine.decode, data) for _ in range(BATCH))
            engine.predict(items)

        step()  # from here on as many wait decoded at the end as at the start
        start, cpu, images = perf_counter(), process_time(), 0
        while perf_counter() < start + seconds:
            step()
            images += BATCH
        wall, spent = perf_counter() - start, process_time() - cpu
        for one in waiting:
            one.cancel()
    return {"rate": images / wall, "cpu_ms": spent / images * 1000}


def alone(engine: Engine, picture: str, seconds: float) -> dict[str, float]:
    """Median milliseconds of one picture's decoding and of its forward, one after the other."""
    data = Path(picture).read_bytes()
    decode: list[float] = []
    forward: list[float] = []
    end = perf_counter() + seconds
    while not forward or perf_counter() < end:
        start = perf_counter()
        item = engine.decode(data)
        decoded = perf_counter()
        engine.predict([item])
        decode.append(decoded - start)
        forward.append(perf_counter() - decoded)
    return {"decode_ms": float(np.median(decode)) * 1000, "forward_ms": float(np.median(forward)) * 1000}


def matmul(engine: Engine) -> dict[str, float]:
    """GFLOP/s of square matrix multiplications, as torch does them with its own number of threads."""
    # Emulated bfloat16 takes seconds a product and says nothing.
    bfloat16 = _gflops(torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.0
    return {"float32": _gflops(torch.float32), "bfloat16": bfloat16}


def _gflops(dtype: torch.dtype) -> float:
    a, b = torch.rand(MATRIX, MATRIX).to(dtype), torch.rand(MATRIX, MATRIX).to(dtype)
    times: list[float] = []
    torch.mm(a, b)
    end = perf_counter() + MATMUL_SECONDS
    while not times or perf_counter() < end:
        start = perf_counter()
        torch.mm(a, b)
        times.append(perf_counter() - start)
    return 2 * MATRIX**3 / float(np.median(times)) / 1e9


def flops(engine: Engine, picture: str) -> dict[str, float]:
    """Floating-point operations of a picture (a multiplication and an addition are two), counted in the eager model."""
    look = documented.load(Case.from_environment())
    image = Image.open(picture)
    look(image)
    with FlopCounterMode(display=False) as counter:
        look(image)
    return {"gflop": counter.get_total_flops() / 1e9}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"loop": loop, "alone": alone, "matmul": matmul, "flops": flops}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    engine = Engine(Case.from_environment())
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(COMMANDS[asked.pop("do")](engine, **asked)), file=answers, flush=True)


if __name__ == "__main__":
    main()
