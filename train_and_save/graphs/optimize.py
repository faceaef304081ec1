"""Measures how a model runs best on this machine's GPU, compiles that, and keeps it where the service finds it.

Half precision must answer as float32 does, on photographs: see GATES. The fastest that does is compiled by AOTInductor
into a shared library, which is kept if it is faster still and passes, too. No cache of the compiler's is kept.
"""

import contextlib
import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train_and_save import UserError, datasets
from train_and_save.datasets import Boxed
from train_and_save.datasets.files import pictures_below
from vision.bento import store
from vision.core import cuda, images
from vision.core.cuda import BUCKETS, MADE, Buckets, Made, Plan
from vision.core.device import Device
from vision.core.errors import VisionError
from vision.core.pixels import Shrink
from vision.core.predictor import Predictor
from vision.core.schemas import Card, Item
from vision.tasks import TASKS
from vision.tasks.captioning.captioner import Captioner
from vision.tasks.captioning.cuda_captioner import CudaWriter
from vision.tasks.captioning.spec import Caption
from vision.tasks.classification.spec import Classification
from vision.tasks.detection.spec import Detection, DetectOptions

log = logging.getLogger(__name__)

GATES: dict[str, tuple[str, float]] = {
    "classification": ("first label as in float32", 0.995),
    "captioning": ("caption as in float32", 0.95),
    "detection": ("AP less than in float32, as 1 less the difference", 0.997),
}
"""What is measured of a task, and the least that it must be."""

AP_MIN_SCORE = 0.05
COMPILED_GAIN = 1.03
"""How much faster compiled code must be: it is large, and for this GPU and this torch alone."""

SECONDS = 1.0


def optimize(tag: str, data: Path, device: str, out: Path | None, *, limit: int = 500, compiles: bool = True) -> Made:
    """Measure a model of the store on a GPU and keep what was chosen; data: photographs, in any folders.

    A detector's average precision is told against the boxes of data (COCO or YOLO), or where it has none against the
    boxes that float32 finds. out: where the code goes, `<name>-<version>` in it; beside the model in the store where
    that is None. Raises UserError.
    """
    folder = store.folder(tag)
    card = store.verify(folder)
    task = TASKS[card.task]
    pictures = Sample(card, task.load_shrink(folder), data, limit)

    def load(how: Plan) -> Predictor:
        return task.load(folder, card, Device(device, how))

    exact = Plan(device, torch.float32)
    chosen = Chosen(load(exact), pictures, exact)

    for dtype in (torch.float16, torch.bfloat16):
        for channels_last in (False, True):
            chosen.consider(load, Plan(device, dtype, channels_last))
    with TemporaryDirectory() as place:
        if compiles:
            code = compile_all(chosen.plan, load, Path(place))
            how = Plan(device, chosen.plan.dtype, chosen.plan.channels_last, code)
            if code:
                chosen.consider(load, how, gain=COMPILED_GAIN)
        files = dict(chosen.plan.code)
        made = Made(
            gpu=cuda.gpu_name(device),
            torch=torch.__version__,
            dtype=str(chosen.plan.dtype).removeprefix("torch."),
            channels_last=chosen.plan.channels_last,
            code={part: file.name for part, file in files.items()},
            sha256={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()},
            engines=chosen.paces,
            gate=chosen.gates,
        )
        (Path(place) / MADE).write_text(made.model_dump_json(indent=1))
        keep(tag, card, made, Path(place), out)
    return made


def keep(tag: str, card: Card, made: Made, place: Path, out: Path | None) -> None:
    """Put cuda.json and the code from `place` beside the model, whose card then tells of it, or into a folder."""
    files = [place / name for name in (MADE, *made.code.values())]
    if out is None:
        engines = {**card.engines, **{f"{made.gpu}, {name}": pace for name, pace in made.engines.items()}}
        metrics = {**card.metrics, **{f"{made.gpu}, {name}": value for name, value in made.gate.items()}}
        store.add(tag, files, card.model_copy(update={"engines": engines, "metrics": metrics}))
        return
    there = out / f"{card.name}-{card.version}"
    there.mkdir(parents=True, exist_ok=True)
    for file in files:
        (there / file.name).write_bytes(file.read_bytes())


class Sample:
    """Photographs as the model's items, and what is truly on them where that is known."""

    def __init__(self, card: Card, shrink: Shrink, data: Path, limit: int) -> None:
        self.task = card.task
        self.boxes: list[Boxed] = []
        self.labels: list[str] = []
        paths = pictures_below(data)
        if card.task == "detection":
            with contextlib.suppress(datasets.DataError):
                boxes, self.labels = datasets.read_boxes(data)
                self.boxes = boxes[:limit]
                paths = [one.path for one in self.boxes]
        options = DetectOptions(min_score=AP_MIN_SCORE) if card.task == "detection" else TASKS[card.task].options()
        self.items: list[Item[Any]] = []
        self.paths: list[Path] = []
        for path in paths[:limit]:
            try:
                picture, size = images.decode_reduced(path.read_bytes(), datasets.LIMITS)
                self.items.append(Item(shrink(picture), size, options))
                self.paths.append(path)
            except VisionError as error:
                log.warning("%s is left out: %s", path, error)
        if not self.items:
            raise UserError(f"{data} holds no photographs, and without them nothing can be compared.")

    def answers(self, model: Predictor) -> list[Any]:
        answers: list[Any] = []
        for at in range(0, len(self.items), BUCKETS[-1]):
            answers += model.predict(self.items[at : at + BUCKETS[-1]])
        return answers

    def gate(self, answers: Sequence[Any], exact: Sequence[Any]) -> float:
        """Return how much of float32's answers is left, 0-1."""
        if self.task == "detection":
            truth = self.boxes or [boxed(*pair) for pair in zip(self.paths, exact, strict=True)]
            return 1 - max(0.0, average_precision(truth, exact) - average_precision(truth, answers))
        same = [first(one) == first(other) for one, other in zip(answers, exact, strict=True)]
        return sum(same) / len(same)


def first(answer: Classification | Caption) -> str:
    return answer.caption if isinstance(answer, Caption) else answer.labels[0].label


def boxed(path: Path, answer: Detection) -> Boxed:
    """Return what was found as if it were the truth."""
    return Boxed(path, (0, 0), [(found.label, found.box) for found in answer.objects if found.score >= 0.25])


def average_precision(truth: Sequence[Boxed], answers: Sequence[Detection]) -> float:
    from train_and_save.measure.answers import Detected

    labels = sorted({label for one in truth for label, _ in one.boxes})
    if not labels:
        raise UserError("nothing was found in the photographs, so that nothing can be compared.")
    return Detected(truth, answers, labels).metrics(np.arange(len(truth)))["ap"]


class Chosen:
    """The fastest way so far of those that pass; float32, which always does, is the first."""

    def __init__(self, model: Predictor, pictures: Sample, plan: Plan) -> None:
        self.plan, self.paces, self.gates = plan, {plan_name(plan): pace(model, plan)}, dict[str, float]()
        self._pictures, self._exact = pictures, pictures.answers(model)

    def consider(self, load: Callable[[Plan], Predictor], plan: Plan, *, gain: float = 1.0) -> None:
        """Take a way of running if it is `gain` times as fast as the one so far, and its answers pass."""
        name = plan_name(plan)
        try:
            model = load(plan)
            self.paces[name] = pace(model, plan)
            what, least = GATES[self._pictures.task]
            self.gates[f"{what} ({name})"] = passed = self._pictures.gate(self._pictures.answers(model), self._exact)
        except RuntimeError as error:
            log.warning("%s does not run: %s", name, str(error).splitlines()[0])
            return
        verdict = "passes" if passed >= least else f"does not pass, {least:g} is needed"
        log.info("%s: %.0f images/s; %s %.4f, %s", name, self.paces[name], what, passed, verdict)
        if passed >= least and self.paces[name] >= gain * self.paces[plan_name(self.plan)]:
            self.plan = plan


def plan_name(plan: Plan) -> str:
    return f"{plan}{', channels last' if plan.channels_last else ''}"


def pace(model: Predictor, how: Plan, size: int = BUCKETS[-1], seconds: float = SECONDS) -> float:
    """Images a second of a model's networks in batches of `size` that lie on the card already."""
    total = 0.0
    for name, (module, inputs, repeats) in parts(model, size).items():
        run = cuda.load(module, how, name)
        total += repeats * seconds_of(cuda.Replay(run, inputs, None, graphs=how.graphs), how.device, seconds)
    return round(size / total, 1)


def seconds_of(run: Callable[[], Any], device: str, seconds: float) -> float:
    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    run()
    wait()
    some = 1 if device == "cpu" else 5  # launched before the first is waited for, as a busy service does
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not count:
        for _ in range(some):
            run()
        wait()
        count += some
    return (time.perf_counter() - start) / count


def parts(model: Any, size: int) -> dict[str, tuple[nn.Module, list[Tensor], int]]:
    """Return a model's networks by name, with inputs of a batch, and how often each is run for an answer."""
    if isinstance(model, Captioner):
        if not isinstance(model.writer, CudaWriter):
            raise UserError(f"{model.card.name} is written by transformers' generate(), which runs as it is.")
        return model.writer.parts(size)
    network: Any = model.network
    if not isinstance(getattr(network, "engine", None), Buckets):
        raise UserError(f"{model.card.name} takes inputs of many shapes, and runs as it is.")
    model.predict([grey(model.card)])  # then the shape of its inputs is known
    return {"network": (network.module, network.engine.example(size), 1)}


def grey(card: Card) -> Item[Any]:
    return Item(np.full((480, 640, 3), 127, np.uint8), (640, 480), TASKS[card.task].options())


def compile_all(how: Plan, load: Callable[[Plan], Predictor], out: Path) -> dict[str, Path]:
    """Compile a model's networks into shared libraries in `out`; what cannot be compiled is left out."""
    code = {}
    for name, (module, inputs, _) in parts(load(how), 4).items():
        try:
            code[name] = compile_one(cuda.placed(module, how), inputs, out / f"cuda_{name}.so")
        except Exception as error:
            # Dynamo, Inductor and the compilers below them raise nearly every type.
            log.warning("%s is not compiled, and runs eager: %s", name, str(error).splitlines()[0])
    return code


def compile_one(module: nn.Module, inputs: Sequence[Tensor], out: Path) -> Path:
    """Compile for any batch up to the largest; inputs: of a batch of 4, all but those of one element."""
    batch = torch.export.Dim("batch", min=1, max=BUCKETS[-1])
    shapes = tuple({0: batch} if one.dim() and len(one) == len(inputs[0]) else None for one in inputs)
    config = {"aot_inductor.embed_kernel_binary": inputs[0].is_cuda, "force_disable_caches": True}
    with no_cache(), torch.no_grad(), TemporaryDirectory() as place:
        program = torch.export.export(Flat(module), tuple(inputs), dynamic_shapes=(shapes,))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(place) / "model.pt2"), inductor_configs=config
        )
        with zipfile.ZipFile(package) as archive:
            [library] = [name for name in archive.namelist() if name.endswith(".so")]
            out.write_bytes(archive.read(library))
    return out


class Flat(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
    """Let the compilers write into a folder that goes: their caches hold pickles."""
    before = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    with TemporaryDirectory() as place:
        os.environ.update(dict.fromkeys(before, place))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def describe(made: Made) -> str:
    """Return what was measured and chosen, for whoever ran the command."""
    lines = [f"{name:<50}{pace:>12.1f} images/s" for name, pace in made.engines.items()]
    lines += [f"{name:<90}{value:>8.4f}" for name, value in made.gate.items()]
    how = "compiled" if made.code else "eager"
    return "\n".join([*lines, f"chosen for {made.gpu}: {how} {made.dtype}" + ", channels last" * made.channels_last])
