"""How good is a model of the store: measured on labelled pictures, told in one HTML page.

Answers are computed as the service computes them: the same decoding, the same pixels, the same defaults. One
exception: for average precision a detector is asked for everything that scores 0.05 or more.
"""

import itertools
import math
import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bentoml.exceptions import BentoMLException
from safetensors import safe_open
from tqdm import tqdm

from train_and_save import datasets
from train_and_save.answered import answered
from train_and_save.datasets import DataError
from train_and_save.measure import report
from train_and_save.measure.answers import Answers, Classified, Detected, Told, Values
from train_and_save.measure.report import Section
from vision.bento import store
from vision.core.device import planned
from vision.core.images import decode_reduced
from vision.core.look import show
from vision.core.predictor import Predictor, pick_device
from vision.core.schemas import Item, Options
from vision.tasks import TASKS
from vision.tasks.classification.classifier import Classifier
from vision.tasks.detection.detector import Detector
from vision.tasks.detection.spec import DetectOptions

AP_MIN_SCORE = 0.05
RESAMPLES: dict[str, int] = {"classification": 1000, "captioning": 1000, "detection": 200}
# resamples leave out rare labels, which lifts COCO's means over labels, and thin out the bins of calibration
BIASED = {"ap", "ap50", "ap75", "ar100", "ece"}
SHOWN, SPEED_SECONDS = 12, 3
FLAGS = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimd asimddp sve i8mm bf16".split()


@dataclass(frozen=True)
class Measured:
    """A model's answers to the pictures, its metrics on all of them and on each resample (R,), and its pace."""

    model: Predictor
    answers: Answers
    metrics: dict[str, float]
    samples: dict[str, Values]
    pace: dict[str, float]

    @property
    def tag(self) -> str:
        return f"{self.model.card.name}:{self.model.card.version}"

    def about(self) -> str:
        card = self.model.card
        return f"{card.task.capitalize()}, {card.architecture}. From {card.source}. Licence: {card.licence}."


def evaluate(tag: str, data: Path, out: Path, *, device: str, limit: int | None = None) -> dict[str, float]:
    """Measure a model of the store on a labelled folder, and write the page `out`.

    data: a class a folder, COCO or YOLO boxes, or images with a table of captions, as the model's task needs.
    device: "auto", "cpu" or "cuda". limit: at most so many pictures, chosen with a fixed seed.
    Returns the metrics (0-1; BLEU 0-100; CIDEr-D 0-10) and `pictures`, `parameters`, `megabytes`, `latency_p50_ms`,
    `latency_p95_ms`, `images_per_second`. Raises DataError.
    """
    device = pick_device(device)
    [run], notes = _runs([tag], data, out, device, limit)
    task, losses = run.model.card.task, run.answers.losses()
    worst = [run.answers.draw(row) for row in _highest(losses)]
    columns = 2 if task == "detection" else 3
    sections = [
        report.metrics({"value": _with_intervals(run.metrics, run.samples)}, RESAMPLES[task]),
        report.pace({"value": run.pace}, _machine(device)),
        *report.calibration(task, {"": run.answers.scored()}),
        Section("Worst mistakes", f"{report.WORST[task]} {report.LEGEND[task]}", pictures=worst, columns=columns),
        run.answers.section(),
    ]
    report.write(out, run.tag, [run.about(), *notes], sections)
    return {**run.metrics, "pictures": len(losses), **run.pace}


def compare(a: str, b: str, data: Path, out: Path, *, device: str, limit: int | None = None) -> dict[str, float]:
    """Measure two models of one task on the same pictures, and write the page `out`; arguments as of `evaluate`.

    Returns b's metric less a's for each metric. Raises DataError.
    """
    device = pick_device(device)
    (first, second), notes = _runs([a, b], data, out, device, limit)
    task, named = first.model.card.task, {"A": first, "B": second}
    difference = {name: second.metrics[name] - first.metrics[name] for name in first.metrics}
    # both were measured on the same resamples, which makes the difference's interval a paired one
    paired = {name: second.samples[name] - first.samples[name] for name in first.metrics}
    figures = {name: _with_intervals(run.metrics, run.samples) for name, run in named.items()}
    rows = _highest(np.abs(first.answers.losses() - second.answers.losses()))
    drawn = [run.answers.draw(row) for row in rows for run in (first, second)]
    sections = [
        report.metrics({**figures, "B less A": _with_intervals(difference, paired)}, RESAMPLES[task]),
        report.pace({name: run.pace for name, run in named.items()}, _machine(device)),
        *report.calibration(task, {name: run.answers.scored() for name, run in named.items()}),
        Section(
            "Where they differ most",
            f"A on the left, B on the right. {report.LEGEND[task]}" if drawn else "Nowhere.",
            pictures=drawn,
            columns=2,
        ),
    ]
    about = [f"{name}: {run.tag}. {run.about()}" for name, run in named.items()]
    report.write(out, f"{first.tag} and {second.tag}", [*about, *notes], sections)
    return difference


def _runs(
    tags: Sequence[str], folder: Path, out: Path, device: str, limit: int | None
) -> tuple[list[Measured], list[str]]:
    """Run models on the same pictures; return what was measured, and what there is to say of the pictures."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise DataError(f"{out} cannot be written: name a file in a folder that is there.")
    if limit is not None and limit < 1:
        raise DataError(f"The limit is {limit}; it must be 1 or more.")
    opened = [_open(tag, device) for tag in tags]
    task = opened[0][0].card.task
    if any(model.card.task != task for model, _ in opened):
        raise DataError(" and ".join(f"{model.card.name} is for {model.card.task}" for model, _ in opened) + ".")
    examples, labels, notes = _read(task, folder, [model for model, _ in opened])
    total = len(examples)
    if limit is not None and limit < total:
        # drawn at random, since pictures lie in the order of their classes
        examples = [examples[i] for i in sorted(random.Random(0).sample(range(total), limit))]
    examples, bad = datasets.readable(examples)
    if task == "detection" and not any(label in labels for example in examples for label, _ in example.boxes):
        raise DataError(f"The {len(examples)} pictures of {folder} have no box with a label that the model knows.")
    count = f"{len(examples):,} of the {total:,} pictures in {folder}."
    notes = [count, *notes, *(f"Left out {path.relative_to(folder)}: {reason}" for path, reason in bad)]
    return [_run(model, stored, examples, labels) for model, stored in opened], notes


def _open(tag: str, device: str) -> tuple[Predictor, Path]:
    try:
        folder = store.folder(tag)
        card = store.verify(folder)
        return TASKS[card.task].load(folder, card, planned(device, folder, card)), folder
    except BentoMLException as error:
        raise DataError(
            f"The model store has no {tag!r}: `python -m train_and_save list` tells what it has."
        ) from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _read(task: str, folder: Path, opened: Sequence[Predictor]) -> tuple[Sequence[Any], list[str], list[str]]:
    """Return a folder's labelled pictures, the labels that count, and what there is to say of the others."""
    pictures: Sequence[Any]
    match task:
        case "classification":
            pictures = datasets.read_image_folder(folder)
            labels = sorted({picture.label for picture in pictures})
        case "detection":
            pictures, names = datasets.read_boxes(folder)
            labels = list(dict.fromkeys(names))
        case "captioning":
            return datasets.read_captions_table(folder), [], []
    known = [_labels(model) for model in opened]
    unknown = [label for label in labels if not all(label in each for each in known)]
    # boxes of a label can be left out, a picture's only label cannot
    if unknown == labels or (unknown and task == "classification"):
        whose = " or ".join(dict.fromkeys(model.card.name for model in opened))
        raise DataError(f"{folder} has labels unknown to {whose}: {_few(unknown)}. Known are {_few(known[0])}.")
    notes = [f"Not measured, since unknown to the model: {', '.join(unknown)}."] if unknown else []
    return pictures, [label for label in labels if label not in unknown], notes


def _labels(model: Predictor) -> list[str]:
    return model.network.labels if isinstance(model, Classifier | Detector) else []


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _run(model: Predictor, folder: Path, examples: Sequence[Any], labels: Sequence[str]) -> Measured:
    task = model.card.task
    options = DetectOptions(min_score=AP_MIN_SCORE) if task == "detection" else TASKS[task].options()
    given = answered(model, folder, [example.path for example in examples], options)
    match task:
        case "classification":
            answers: Answers = Classified(examples, given)
        case "detection":
            answers = Detected(examples, given, labels)
        case "captioning":
            answers = Told(examples, given)
    every, generator = np.arange(len(examples)), np.random.default_rng(0)
    told = [
        answers.metrics(generator.choice(every, len(every))) for _ in tqdm(range(RESAMPLES[task]), desc="bootstrap")
    ]
    metrics = answers.metrics(every)
    samples = {name: np.array([each[name] for each in told]) for name in metrics}
    pictures = [_item(example.path, folder, TASKS[task].options(), task) for example in examples[:8]]
    return Measured(model, answers, metrics, samples, {**_size(folder), **_speed(model, pictures)})


def _item(path: Path, folder: Path, options: Options, task: str) -> Item[Any]:
    picture, size = decode_reduced(path.read_bytes(), datasets.LIMITS)
    shown, _ = show({task: TASKS[task].load_shrink(folder)}, picture, size)
    return Item(shown[task], size, options)


def _with_intervals(values: dict[str, float], samples: dict[str, Values]) -> report.Figures:
    """Each value with the 2.5th and 97.5th percentile of its resamples, less their bias where they have one."""
    figures = {}
    for name, value in values.items():
        bias = np.nanmean(samples[name]) - value if name in BIASED else 0.0
        low, high = np.nanpercentile(samples[name], [2.5, 97.5]) - bias
        figures[name] = value, float(low), float(high)
    return figures


def _highest(losses: Values) -> list[int]:
    return [int(row) for row in np.argsort(-losses, kind="stable")[:SHOWN] if losses[row] > 0]


def _size(folder: Path) -> dict[str, float]:
    """Count what the safetensors hold, which is buffers too, and the bytes of all files, in MB of 10^6."""
    parameters = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            parameters += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"parameters": parameters, "megabytes": sum(file.stat().st_size for file in files) / 1e6}


def _speed(model: Predictor, items: Sequence[Item[Any]]) -> dict[str, float]:
    """Latency of one picture, and pictures a second by eights; from pixels to results, decoding apart."""
    alone = _timings(model, [[item] for item in items])
    eight = _timings(model, [list(itertools.islice(itertools.cycle(items), 8))])
    p50, p95 = np.percentile(alone, [50, 95])
    return {
        "latency_p50_ms": 1000 * float(p50),
        "latency_p95_ms": 1000 * float(p95),
        "images_per_second": 8 / float(np.mean(eight)),
    }


def _timings(model: Predictor, batches: Sequence[Sequence[Item[Any]]]) -> list[float]:
    """Seconds of up to 40 calls after a first one, as many as fit into SPEED_SECONDS but never under 5."""
    model.predict(batches[0])
    timings: list[float] = []
    for batch in itertools.islice(itertools.cycle(batches), 40):
        start = time.perf_counter()
        model.predict(batch)
        timings.append(time.perf_counter() - start)
        if len(timings) >= 5 and sum(timings) > SPEED_SECONDS:
            break
    return timings


def _machine(device: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    isa = " ".join([platform.machine(), *(flag for flag in FLAGS if flag in flags)])
    processor = (
        torch.cuda.get_device_name(device) if device != "cpu" else f"CPU, torch threads: {torch.get_num_threads()}"
    )
    names = ("openvino", "torch", "torchvision", "transformers", "timm", "torchmetrics", "pycocotools", "pillow")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    cores = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    return f"{processor}; {isa}; {cores}; Python {platform.python_version()}, {libraries}."
