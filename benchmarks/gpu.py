"""python -m benchmarks.gpu: what this machine's GPU makes of the models, bare and over HTTP. `make gpu` calls it.

Nothing is downloaded: weights are seeded, but for the starters'. Figures are written as they come, to OUT/gpu.json;
what does not fit into --seconds is left out, and said to be. A table and one line a target end it. With --tiny it runs
on a CPU with small models, so that tests can run it; its figures then mean nothing.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
STARTERS = ("efficientnet-lite0", "flickr8k-captioner", "nanodet-g")
FAMILIES = ("vit-base", *STARTERS, "yolo26n", "rt-detr-r18", "blip-base")
SEEDED = "seeded weights: the best answers lie close together, so that rounding alone changes some"
GFLOP = {"vit-base": 35.1}
"""Of a picture of 224 x 224; a multiplication and an addition are two."""

PHOTOGRAPHS = 256
CLIENTS, MANY = (1, 8, 64, 256), 16
LOAD_SECONDS = 2.5
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "BENTOML_DO_NOT_TRACK": "True",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONFAULTHANDLER": "1",  # a crash of compiled code says where
}
MEASURED = re.compile(r" *\d+\.\d s  ")
"""How a line begins that tells a figure."""

START = time.monotonic()


class Figures:
    """What was measured, by name; on the disk after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def note(self, name: str, value: Any) -> None:
        self.rows[name] = value
        self.file.write_text(json.dumps(self.rows, indent=1))
        print(f"{time.monotonic() - START:6.1f} s  {name:<58} {value}", flush=True)

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """Note what is measured, or why it could not be: what comes after is measured all the same."""
        try:
            value = measure()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            self.note(name, f"failed: {type(error).__name__}: {lines[0][:200]}")
            return None
        if value is not None:
            self.note(name, value)
        return value


@contextlib.contextmanager
def turn(work: Path) -> Iterator[None]:
    """One process at a time measures on the card; the others load and compile meanwhile."""
    with (work / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The machine


def machine(results: Figures, device: str) -> None:
    import torch

    decoder = "nvJPEG" if device.startswith("cuda") else "torchvision on the CPU, no CUDA here"
    if device == "cpu":
        results.note("machine", f"CPU, {os.cpu_count()} cores, torch {torch.__version__}")
        results.attempt(f"JPEG decoding, {decoder}", partial(jpeg_decoding, device, 4))
        return
    name = torch.cuda.get_device_name(device)
    results.note("machine", f"{name}, {os.cpu_count()} cores, torch {torch.__version__}")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        results.attempt(f"matrix multiply, TFLOP/s, {dtype}", partial(matmul, device, dtype))
    results.attempt(f"JPEG decoding, {decoder}", partial(jpeg_decoding, device, 64))


def jpeg_decoding(device: str, count: int) -> dict[str, float]:
    """Decode JPEGs of 0.1 MB by torchvision, on a card by nvJPEG, and in one thread by our decoder.

    Says how many each makes a second, and how far apart their levels (0-255) lie.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    from testkit.photographs import encoded
    from train_and_save.graphs.optimize import seconds_of
    from vision.core import images

    jpegs = [encoded(photo.resize((500, 375)), "JPEG", quality=92) for photo in photographs(count)]
    given = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]
    decode = partial(decode_jpeg, given, ImageReadMode.RGB, device)
    theirs = [picture.permute(1, 2, 0).cpu().numpy() for picture in decode()]
    ours = [np.asarray(images.decode(data)) for data in jpegs]
    apart = np.abs(np.stack(ours).astype(np.int16) - np.stack(theirs))
    return {
        "images/s": round(count / seconds_of(decode, device, 0.5), 1),
        "ours, one thread, images/s": round(
            count / seconds_of(lambda: [images.decode(data) for data in jpegs], "cpu", 0.5), 1
        ),
        "levels apart, mean": round(float(apart.mean()), 3),
        "levels apart, most": int(apart.max()),
        "share of levels more than 2 apart": round(float((apart > 2).mean()), 4),
    }


def matmul(device: str, dtype: Any, side: int = 8192) -> float:
    import torch

    from train_and_save.graphs.optimize import seconds_of

    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return round(2 * side**3 / seconds_of(partial(torch.mm, a, b), device, 0.5) / 1e12, 1)


# The models


def save(family: str, work: Path, *, tiny: bool) -> None:
    """Make a model with seeded weights and put it into the store."""
    from train_and_save import Origin, starter
    from train_and_save.bring import folder

    if family == "starters":
        starter.save()
        return
    from testkit import hub

    makers: dict[str, Callable[[Path], None]] = {
        "vit-base": partial(hub.vit, full=not tiny),
        "blip-base": partial(hub.blip, full=not tiny),
        "rt-detr-r18": partial(hub.rt_detr, full=not tiny),
        "yolo26n": partial(hub.yolo, architecture="yolo26n"),
    }
    made = work / family
    makers[family](made)
    print(folder.save(next(made.glob("*.pt"), made), None, Origin(family, "seeded weights", "none")))


def photographs(count: int = PHOTOGRAPHS) -> list[Image.Image]:
    """Return parts of the photographs that packages ship, the same in each run."""
    from testkit.photographs import PHOTOS

    whole = [Image.open(path).convert("RGB") for path in PHOTOS.values() if path.is_file()]
    random = np.random.default_rng(0)
    parts = []
    for index in range(count):
        photo = whole[index % len(whole)]
        width, height = (int(side * random.uniform(0.4, 1)) for side in photo.size)
        left = int(random.integers(photo.width - width + 1))
        top = int(random.integers(photo.height - height + 1))
        parts.append(photo.crop((left, top, left + width, top + height)))
    return parts


# Bare


def bare(family: str, work: Path, results: Figures, device: str, buckets: Sequence[int], *, tiny: bool) -> None:
    """Measure a model without HTTP: its answers beside float32's, and images/s by how it runs and batch size."""
    import torch

    from train_and_save.graphs import optimize
    from vision.bento import store
    from vision.core.cuda import Plan
    from vision.core.device import Device
    from vision.tasks import TASKS

    torch.set_num_threads(1 if tiny else 4)  # others measure beside this one
    store_folder = store.folder(family)
    card = store.verify(store_folder)
    (work / "photographs").mkdir(exist_ok=True)
    data = work / "photographs" / family
    data.mkdir()
    for index, photo in enumerate(photographs(4 if tiny else PHOTOGRAPHS)):
        photo.save(data / f"{index:03}.png", compress_level=0)
    pictures = optimize.Sample(card, TASKS[card.task].load_shrink(store_folder), data, PHOTOGRAPHS)
    exact: list[Any] = []
    seconds = 0.1 if tiny else 0.3
    plans = [Plan(device, torch.float32, graphs=False), Plan(device, torch.bfloat16, graphs=False)]
    plans += [
        Plan(device, torch.float16),
        Plan(device, torch.bfloat16),
        Plan(device, torch.float16, channels_last=True),
    ]
    for plan in [plans[0], plans[3]] if tiny else plans:
        name = f"{family}, {optimize.plan_name(plan)}{', graphs' if plan.graphs else ''}"
        model = results_or_none(results, name, partial(TASKS[card.task].load, store_folder, card, Device(device, plan)))
        if model is None:
            continue
        with turn(work):
            for size in buckets if plan.graphs else buckets[-1:]:
                measure = partial(optimize.pace, model, plan, size, seconds)
                results.attempt(f"{name}, images/s, batch {size}", measure)
        if plan is plans[0]:
            exact = pictures.answers(model)
        elif plan.graphs:
            what = optimize.GATES[card.task][0]
            results.attempt(f"{name}: {what}", partial(left, pictures, model, exact))


def left(pictures: Any, model: Any, exact: Sequence[Any]) -> float:
    return round(pictures.gate(pictures.answers(model), exact), 4)


def results_or_none(results: Figures, name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        results.note(name, f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return None


def compiled(family: str, work: Path, results: Figures, device: str, buckets: Sequence[int], dtype: str) -> None:
    """Compile a model once for any batch, keep it where the service finds it, and measure it."""
    import torch

    from train_and_save.graphs import optimize
    from vision.bento import store
    from vision.core import cuda
    from vision.core.cuda import DTYPES, MADE, Made, Plan
    from vision.core.device import Device
    from vision.tasks import TASKS

    folder = store.folder(family)
    card = store.verify(folder)
    plan = Plan(device, DTYPES[dtype])
    start = time.monotonic()
    place = work / "compiled" / f"{card.name}-{card.version}"
    place.mkdir(parents=True)
    code = optimize.compile_all(plan, lambda how: TASKS[card.task].load(folder, card, Device(device, how)), place)
    results.note(f"{family}, compiled, seconds to compile", round(time.monotonic() - start, 1))
    plan = Plan(device, DTYPES[dtype], code=code)
    made = Made(
        gpu=cuda.gpu_name(device),
        torch=torch.__version__,
        dtype=dtype,
        channels_last=False,
        code={part: file.name for part, file in code.items()},
        sha256={},
        engines={},
        gate={},
    )
    with turn(work):
        model = TASKS[card.task].load(folder, card, Device(device, plan))
        for size in buckets:
            results.attempt(
                f"{family}, {plan}, graphs, images/s, batch {size}", partial(optimize.pace, model, plan, size, 0.4)
            )
    if code:
        (place / MADE).write_text(made.model_dump_json())


# Over HTTP


class Utilisation(Thread):
    """The card's mean utilisation while it is asked, and its memory in use at the end, by NVML."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.shares: list[float] = []
        self.gigabytes = 0.0
        self._done = Event()

    def run(self) -> None:
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._done.wait(0.2):
                self.shares.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
                self.gigabytes = pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9

    def stop(self) -> dict[str, float]:
        self._done.set()
        self.join()
        return {"utilisation": round(float(np.mean(self.shares or [0])), 2), "GB": round(self.gigabytes, 1)}


def bodies(work: Path) -> dict[str, Path]:
    """Write requests: a JPEG of 0.1 MB, and raw pixels (BMP) of the network's size, one and sixteen a request."""
    from benchmarks.client import multipart
    from testkit.photographs import encoded

    [photo] = photographs(1)
    jpeg = encoded(photo.resize((500, 375)), "JPEG", quality=92)
    raw = encoded(photo.resize((224, 224)), "BMP")
    made = {}
    for name, one in (("JPEG", jpeg), ("raw", raw)):
        for count in (1, MANY):
            made[f"{name} x {count}"] = work / f"{name}-{count}.body"
            made[f"{name} x {count}"].write_bytes(multipart([one] * count, {}))
    return made


def load_on(url: str, body: Path, *, clients: int | None = None, rate: float | None = None, seconds: float) -> Any:
    from benchmarks.client import Load

    how = ["--clients", str(clients)] if clients else ["--rate", str(rate)]
    command = [sys.executable, "-m", "benchmarks.client", url, str(body), *how, "--seconds", str(seconds)]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return Load.model_validate_json(run.stdout)


def over_http(work: Path, results: Figures, device: str, end: float, *, tiny: bool) -> None:
    """Serve ViT beside the starters, and ask for classes alone, in many ways and at half of the best pace."""
    import httpx
    import psutil

    from testkit.servers import free_port

    port, log = free_port(), work / "serve.log"
    environment = {
        **os.environ,
        **OFFLINE,
        "VISION_DEVICE": device,
        "VISION_CLASSIFICATION_MODEL": "vit-base",
        "VISION_ENGINE_DIR": str(work / "compiled"),
        "VISION_MAX_IN_FLIGHT": "1024",
    }
    start = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = psutil.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service is not ready: {log.read_text()[-1500:]}")
            time.sleep(0.2)
        results.note("HTTP, seconds to ready", round(time.monotonic() - start, 1))
        told = [json.loads(line).get("message", "") for line in log.read_text().splitlines() if line.startswith("{")]
        lines = [line for line in told if "classification:" in line or "vit-base" in line]
        public = [child for child in server.children() if child.name() == "vision"]
        results.note("HTTP, how it runs", [f"{len(public)} public processes", *lines[:3]])
        ask_all(f"{url}/classify", server, work, results, end, tiny=tiny)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.terminate()
        try:
            server.wait(15)
        except psutil.TimeoutExpired:
            for process in [*server.children(recursive=True), server]:
                process.kill()


def ask_all(url: str, server: Any, work: Path, results: Figures, end: float, *, tiny: bool) -> None:
    made = bodies(work)
    seconds = 0.5 if tiny else LOAD_SECONDS
    asked = [("JPEG x 1", 64), ("raw x 16", 64), ("raw x 1", 64), ("JPEG x 1", 256), ("raw x 16", 8), ("JPEG x 16", 64)]
    asked += [("JPEG x 1", 1), ("JPEG x 1", 8), ("raw x 1", 256), ("raw x 1", 8), ("raw x 16", 1), ("JPEG x 16", 8)]
    load_on(url, made["raw x 1"], clients=8, seconds=seconds)  # BentoML's batching learns from its first calls
    best = 0.0
    for name, clients in [("JPEG x 1", 4), ("raw x 16", 1)] if tiny else asked:
        if time.monotonic() + seconds + 8 > end:
            results.note(f"HTTP, {name}, {clients} clients", "left out: no time")
            continue
        found = results.attempt(
            f"HTTP, {name}, {clients} clients", partial(ask, url, made[name], clients, seconds, server)
        )
        if found and name.endswith("x 1"):
            best = max(best, found["images/s"])
        if (name, clients) == ("JPEG x 1", 256):
            half_load(url, made["JPEG x 1"], best / 2, seconds, results)
    if tiny and best:
        half_load(url, made["JPEG x 1"], best / 2, seconds, results)


def half_load(url: str, body: Path, rate: float, seconds: float, results: Figures) -> None:
    def measure() -> dict[str, float]:
        load = load_on(url, body, rate=rate, seconds=2 * seconds)
        p50, p99 = np.percentile(load.ms, [50, 99])
        failed = sum(load.failures.values())
        return {
            "rate": round(rate, 1),
            "p50 ms": round(float(p50), 1),
            "p99 ms": round(float(p99), 1),
            "failed": failed,
        }

    results.attempt("HTTP, half load, JPEG x 1", measure)


def ask(url: str, body: Path, clients: int, seconds: float, server: Any) -> dict[str, Any]:
    """Return images/s, milliseconds to the answer, and what the card and each process had to do."""
    before, utilisation = cpu_seconds(server), Utilisation()
    utilisation.start()
    load = load_on(url, body, clients=clients, seconds=seconds)
    spent = {name: seconds - before.get(name, 0) for name, seconds in cpu_seconds(server).items()}
    images = len(load.ms) * (MANY if f"-{MANY}." in body.name else 1)
    if not images:
        raise RuntimeError(f"nothing was answered: {load.failures}")
    p50, p99 = np.percentile(load.ms, [50, 99])
    return {
        "images/s": round(images / load.seconds, 1),
        "p50 ms": round(float(p50), 1),
        "p99 ms": round(float(p99), 1),
        "failed": sum(load.failures.values()),
        "CPU ms an image": {name: round(one / images * 1000, 3) for name, one in spent.items()},
        "cores busy": {name: round(one / load.seconds, 2) for name, one in spent.items()},
        "client's core": round(load.client_cpu, 2),
        **utilisation.stop(),
    }


def cpu_seconds(server: Any) -> dict[str, float]:
    """Return CPU seconds so far, by Service."""
    found: dict[str, float] = {}
    for process in server.children(recursive=True):
        found[process.name()] = found.get(process.name(), 0) + sum(process.cpu_times()[:2])
    return {name: found[name] for name in ("vision", "classification") if name in found}


# The whole


def targets(rows: dict[str, Any]) -> list[str]:
    """Return a line for each target of issue 29: met, missed, or not measured."""
    rates = [value for name, value in rows.items() if name.startswith("matrix multiply") and "float32" not in name]
    half = [v for n, v in rows.items() if n.startswith("vit-base, ") and "images/s" in n and "float32" not in n]
    bare = max((value for value in half if isinstance(value, float)), default=0.0)
    rate = max((value for value in rates if isinstance(value, float)), default=0.0)
    http = {name: value for name, value in rows.items() if name.startswith("HTTP, ") and isinstance(value, dict)}

    def best(kind: str) -> dict[str, Any]:
        return max(
            (v for n, v in http.items() if kind in n and "images/s" in v), key=lambda v: v["images/s"], default={}
        )

    def line(what: str, value: float | None, least: float, more: str = "") -> str:
        verdict = "not measured" if value is None else "met" if value >= least else "MISSED"
        shown = "" if value is None else f" {value:.3f}"
        return f"{verdict:<13} {what}:{shown} (at least {least:g}) {more}"

    share = bare * GFLOP["vit-base"] / 1000 / rate if rate and bare else None
    lines = [line("bare half-precision ViT-base of the card's matrix-multiply rate", share, 0.35, f"{bare:g} images/s")]
    for kind, least in (("x 1,", 0.5), ("raw x 16,", 0.85)):
        found = best(kind)
        limit = f"{found.get('images/s', 0):g} images/s; cores busy {found.get('cores busy')}" if found else ""
        lines.append(line(f"HTTP, {kind} of bare", found["images/s"] / bare if found and bare else None, least, limit))
    p99 = http.get("HTTP, half load, JPEG x 1", {}).get("p99 ms")
    verdict = "not measured" if p99 is None else "met" if p99 <= 30 else "MISSED"
    lines.append(f"{verdict:<13} HTTP, p99 at half load: {p99} ms (at most 30)")
    for name, value in rows.items():
        if " as in float32" in name or "AP less" in name:
            least = 0.95 if "caption" in name else 0.997 if "AP" in name else 0.995
            seeded = "" if name.startswith(STARTERS) else SEEDED
            lines.append(line(name, value if isinstance(value, float) else None, least, seeded))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")))
    parser.add_argument("--seconds", type=float, default=460, help="when to end")
    parser.add_argument("--full", action="store_true", help="all buckets")
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--compile", nargs="*", default=["vit-base"], help="what is compiled, if there is time")
    parser.add_argument(
        "--home", type=Path, help="a BENTOML_HOME that has the starters; by default they are saved anew"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = "cpu" if asked.tiny else "cuda:0"
    buckets = (1, 2) if asked.tiny else (1, 2, 4, 8, 16, 32) if asked.full else (1, 8, 32)
    if asked.part:
        part(asked, device, buckets)
    else:
        whole(asked, device)


def part(asked: argparse.Namespace, device: str, buckets: Sequence[int]) -> None:
    """Do one part, in a process of its own."""
    what, _, family = asked.part.partition(":")
    results = Figures(asked.work / f"{what}-{family}.json")
    match what:
        case "save":
            save(family, asked.work, tiny=asked.tiny)
        case "bare":
            bare(family, asked.work, results, device, buckets, tiny=asked.tiny)
        case "compile":
            compiled(family, asked.work, results, device, buckets, "float32" if asked.tiny else "bfloat16")
        case "machine":
            machine(results, device)


def failure(status: int, log: str) -> str:
    """Say why a process ended: its signal, and what it said last but for what it measured."""
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    said = [line for line in log.splitlines() if line.strip() and not MEASURED.match(line)]
    fatal = [at for at, line in enumerate(said) if line.startswith("Fatal Python error")]  # faulthandler's
    crash = [line for line in said[fatal[0] :] if line.startswith(("Fatal", "  File "))][:6] if fatal else []
    return f"failed: ended {how}: {' | '.join(line.strip() for line in crash or said[-3:])[:600]}"


class Parts:
    """Processes that each do a part, and what they have found so far."""

    def __init__(self, asked: argparse.Namespace, work: Path, results: Figures, end: float) -> None:
        self._asked, self._work, self._results, self._end = asked, work, results, end
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: set[tuple[str, str]] = set()

    def start(self, name: str) -> None:
        options = [flag for flag, on in (("--tiny", self._asked.tiny), ("--full", self._asked.full)) if on]
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--work", str(self._work), *options]
        with (self._work / f"{name.replace(':', '-')}.log").open("w") as log:
            self._running[name] = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **OFFLINE}
            )

    def wait(self, *names: str, until: float | None = None) -> bool:
        """Wait for parts to end, at most `until`; return whether they all did, and well."""
        end = min(until or self._end, self._end)
        while any(self._running[name].poll() is None for name in names) and time.monotonic() < end:
            self._gather()
            time.sleep(0.2)
        self._gather()
        for name in names:
            if self._running[name].poll() not in (0, None):
                log = (self._work / f"{name.replace(':', '-')}.log").read_text()
                self._results.note(name, failure(self._running[name].returncode, log))
        return all(self._running[name].poll() == 0 for name in names)

    def named(self, beginning: str) -> list[str]:
        return [name for name in self._running if name.startswith(beginning)]

    def stop(self) -> None:
        for name, process in self._running.items():
            if process.poll() is None:
                self._results.note(name, "cut: no time")
                process.kill()
                process.wait()

    def logs(self) -> str:
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in sorted(self._work.glob("*.log")))

    def _gather(self) -> None:
        for file in sorted(self._work.glob("*-*.json")):
            with contextlib.suppress(ValueError):  # half written
                for name, value in json.loads(file.read_text()).items():
                    if (file.name, name) not in self._seen:
                        self._seen.add((file.name, name))
                        self._results.note(name, value)


def whole(asked: argparse.Namespace, device: str) -> None:
    from tempfile import TemporaryDirectory

    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "gpu.json").unlink(missing_ok=True)
    results = Figures(asked.out / "gpu.json")
    end = START + asked.seconds
    with TemporaryDirectory() as place:
        work = Path(place)
        os.environ["BENTOML_HOME"] = str(asked.home or work / "home")
        parts = Parts(asked, work, results, end)
        try:
            measure(asked, device, parts, work, results, end)
        except Exception as error:
            results.note("stopped", f"{type(error).__name__}: {error}")
        finally:
            parts.stop()
            (asked.out / "gpu.log").write_text(parts.logs())
    print()
    for name, value in results.rows.items():
        print(f"{name:<75} {value}")
    print()
    lines = targets(results.rows)
    results.note("targets", lines)
    print("\n".join(lines))


def measure(asked: argparse.Namespace, device: str, parts: Parts, work: Path, results: Figures, end: float) -> None:
    """Do it in the order of what matters: ViT bare and over HTTP, then every family, then what takes long."""
    seeded = [family for family in asked.families if family not in STARTERS]
    parts.start("machine:")
    for family in seeded:
        parts.start(f"save:{family}")
    if not asked.home:
        parts.start("save:starters")
    parts.wait("save:vit-base", "machine:")
    parts.start("bare:vit-base")
    for family in asked.compile:
        if family in seeded and parts.wait(f"save:{family}"):
            parts.start(f"compile:{family}")
    parts.wait(*parts.named("save:"))
    for family in asked.families[1:]:
        parts.start(f"bare:{family}")
    # Code that is ready by then is served; half of the time is for HTTP, and what is left for all others.
    parts.wait(*parts.named("bare:"), *parts.named("compile:"), until=START + asked.seconds * 0.55)
    with turn(work):
        results.attempt("HTTP", partial(over_http, work, results, device, end - 15, tiny=asked.tiny))
    parts.wait(*parts.named("bare:"), *parts.named("compile:"))


if __name__ == "__main__":
    main()
