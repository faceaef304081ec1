"""The page that a measurement leaves: one HTML file with its plots and pictures inside, and nothing to fetch."""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from train_and_save.datasets import LIMITS, Corners
from vision.core import images

ACCENT, OTHER, GREY = "#1f5fa8", "#e07b00", "#888888"
SIDE = 560
METRICS = {
    "accuracy": ("Accuracy", "share of pictures whose best label is theirs"),
    "top_5_accuracy": ("Top-5 accuracy", "share of pictures whose label is among the five best"),
    "balanced_accuracy": ("Balanced accuracy", "mean over the data's labels of the share found of each"),
    "macro_f1": ("Macro F1", "mean over the data's labels of each one's F1"),
    "ece": ("Calibration error", "expected gap of score and share right, 15 bins; lower is better"),
    "ap": ("AP", "COCO's average precision, mean over IoU 0.50 to 0.95"),
    "ap50": ("AP50", "average precision at IoU 0.50"),
    "ap75": ("AP75", "average precision at IoU 0.75"),
    "ar100": ("AR100", "share of boxes found with 100 objects a picture, mean over IoU 0.50 to 0.95"),
    "bleu_1": ("BLEU-1", "0-100, words that agree with a reference"),
    "bleu_4": ("BLEU-4", "0-100, up to four words in a row that agree"),
    "cider_d": ("CIDEr-D", "0-10, agreement weighted by how telling words are; idf from these references"),
}
PACE = {
    "parameters": ("Parameters", "in millions, as the weights' files hold them"),
    "megabytes": ("Size", "MB of files"),
    "latency_p50_ms": ("Latency, median", "ms for one picture alone"),
    "latency_p95_ms": ("Latency, 95th percentile", "ms for one picture alone"),
    "images_per_second": ("Images a second", "in batches of 8"),
}
WORST: dict[str, str] = {
    "classification": "The wrong answers with the highest scores.",
    "detection": "The pictures with the most missed and false boxes.",
    "captioning": "The sentences with the lowest CIDEr-D.",
}
LEGEND: dict[str, str] = {
    "classification": "",
    "detection": "True boxes are blue, found ones (score 0.25 or more) orange. Mistakes at IoU 0.5 are drawn thick and "
    "named; what agrees is thin.",
    "captioning": "Under each sentence stand the picture's references.",
}

Figures = dict[str, tuple[float, float, float]]
"""A metric's value and the ends of its 95 % interval."""
Cell = tuple[str, str]
"""What a cell says, and what stands small beside it."""


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Drawing:
    """A JPEG as a data URI, and the lines under it; the first is the answer."""

    uri: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    title: str
    note: str = ""
    table: Table | None = None
    figure: str = ""
    pictures: Sequence[Drawing] = field(default_factory=list)
    columns: int = 3


@dataclass(frozen=True)
class Box:
    """A true or a found box in pixels of its picture; wrong where its counterpart is missing."""

    corners: Corners
    text: str
    true: bool
    wrong: bool


def write(out: Path, title: str, about: Sequence[str], sections: Sequence[Section]) -> None:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template("report.html.j2")
    out.write_text(page.render(title=title, about=about, sections=sections, when=when, accent=ACCENT), "utf-8")


def metrics(columns: dict[str, Figures], resamples: int) -> Section:
    """A row for each metric; a column for each model, and one for a difference."""
    rows = [
        [METRICS[name], *(_with_interval(name, figures[name], "less" in head) for head, figures in columns.items())]
        for name in next(iter(columns.values()))
    ]
    note = f"Beside each value its 95 % interval, from {resamples:,} bootstrap resamples of the pictures."
    return Section("Metrics", note, Table(["", *columns], rows))


def pace(columns: dict[str, dict[str, float]], machine: str) -> Section:
    scale = {"parameters": 1e-6}
    rows = [
        [PACE[name], *((f"{figures[name] * scale.get(name, 1):,.1f}", "") for figures in columns.values())]
        for name in PACE
    ]
    return Section("Size and speed", f"From pixels to results, decoding apart. {machine}", Table(["", *columns], rows))


def calibration(task: str, scored: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list[Section]:
    """A reliability curve for each model: scores (N,) against whether they were right (N,); none for sentences."""
    if task == "captioning":
        return []
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    curve, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    curve.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    edges = np.linspace(0, 1, 11)
    for (name, (scores, right)), color in zip(scored.items(), (ACCENT, OTHER), strict=False):
        place = np.clip(np.digitize(scores, edges) - 1, 0, 9)
        number = np.bincount(place, minlength=10)
        full = number > 0
        mean, share = (np.bincount(place, part, minlength=10)[full] / number[full] for part in (scores, right))
        curve.plot(mean, share, color=color, marker="o", label=name or "model", clip_on=False)
        counts.stairs(number, edges, color=color, fill=len(scored) == 1, linewidth=1.5)
    curve.set(ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    curve.legend(frameon=False, loc="upper left")
    counts.set(xlabel="score", ylabel="answers")
    for axes in (curve, counts):
        axes.spines[["top", "right"]].set_visible(False)
    right_is = {
        "classification": "A picture's best label is right where it is the picture's.",
        "detection": "A found box (score 0.05 or more) is right where it matches a true one of its label at IoU 0.5.",
    }[task]
    note = f"{right_is} On the dashed line, scores say how often they are right. Below, how many answers have a score."
    return [Section("Calibration", note, figure=_png(figure))]


def confusion(counts: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Draw counts (labels, labels + 1): true labels in rows, answers in columns, the last of them any other."""
    size = len(labels)
    side = 2.4 + 0.42 * size
    figure = Figure(figsize=(side + 0.4, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.3)
    names = [textwrap.shorten(label, 24, placeholder="…") for label in labels]
    axes.set_xticks(range(size + 1), [*names, "(other)"], rotation=90)
    axes.set_yticks(range(size), names)
    axes.set(xlabel="best label", ylabel="label")
    for row, column in np.argwhere(counts > 0):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), color=color, ha="center", va="center")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _png(figure)


def draw(path: Path, lines: Sequence[str], boxes: Sequence[Box] = ()) -> Drawing:
    """A picture, its long side SIDE pixels, with its boxes."""
    image = images.decode(path.read_bytes(), LIMITS)
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for box in sorted(boxes, key=lambda box: (box.wrong, not box.true)):
        color = ACCENT if box.true else OTHER
        x1, y1, x2, y2 = (value * scale for value in box.corners)
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=3 if box.wrong else 1)
        if box.wrong:
            left, top, right, bottom = pen.textbbox((x1 + 3, max(0, y1)), box.text, font=font)
            pen.rectangle((left - 3, top - 1, right + 3, bottom + 1), fill=color)
            pen.text((x1 + 3, max(0, y1)), box.text, fill="white", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Drawing(_uri("image/jpeg", buffer), lines)


def _with_interval(name: str, figure: tuple[float, float, float], signed: bool) -> Cell:
    form = f"{'+' if signed else ''}z.{1 if name.startswith('bleu') else 3}f"
    value, low, high = (format(number, form) for number in figure)
    return value, f"{low} to {high}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _uri("image/png", buffer)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
