"""Detection: Ultralytics' own trainer on a copy of a team's YOLO or COCO data set.

ultralytics is AGPL-3.0, and so is what it trains: the card says it.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from train_and_save import datasets
from train_and_save.bring import checkpoint as converter
from train_and_save.datasets import Boxed, Corners, DataError
from train_and_save.train.run import (
    PARTS,
    PATIENCE,
    Parts,
    Trained,
    TrainingRun,
    find_base,
    make_card,
    open_picture,
    read_parts,
    served,
)
from vision.core.schemas import Card
from vision.tasks.detection.spec import DetectOptions

SIDE = 640
FROM_NOISE = "yolo26n.yaml"
AGPL = "AGPL-3.0 (Ultralytics): who serves it over a network must offer the service's source, or buy a licence"
COPIED = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
"""What Ultralytics reads; other pictures become PNG."""


def train(run: TrainingRun) -> Trained:
    """Train a YOLO on a YOLO or COCO data set. Raises DataError."""
    # ultralytics is imported late: it reads its settings from the environment that train.py makes.
    examples, labels = datasets.read_boxes(run.data)
    parts, origin = read_parts(run, examples, lambda _: "")
    data = _write_data(run.folder / "data", parts, labels)
    base, known, name = _base(run)
    weights = run.folder / "yolo" / "weights"
    _fit(run, data, base, weights)
    out = run.folder / "model"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        converter.convert(weights / "best.pt", out)
    except ValueError as error:
        raise DataError(str(error)) from error
    counts = Counter(label for part in parts.values() for example in part for label, _ in example.boxes)
    card = make_card(
        run,
        "detection",
        known,
        name,
        architecture=f"Ultralytics {json.loads((out / 'config.json').read_text())['yaml'].get('yaml_file', 'YOLO')}",
        description=f"Boxes: {', '.join(f'{label} ({counts[label]})' for label in labels)}. Made from {origin}.",
        preprocessing=f"letterbox to {SIDE}, bilinear, grey 114; RGB 0-1",
        labels=len(labels),
        input_size=(SIDE, SIDE),
    ).model_copy(update={"licence": AGPL})

    def measure(card: Card) -> dict[str, float]:
        options = DetectOptions(min_score=0.05, max_detections=100)
        paths = [example.path for example in parts["held_out"]]
        results = served(out, card, run.device, paths, options)
        precision = MeanAveragePrecision()
        precision.update(
            [_boxes([(found.label, found.box, found.score) for found in result.objects], labels) for result in results],
            [_boxes([(*box, 1.0) for box in example.boxes], labels) for example in parts["held_out"]],
        )
        found = precision.compute()
        return {
            "held_out_map_50": max(0.0, float(found["map_50"])),  # -1 where no box is held out
            "held_out_map_50_95": max(0.0, float(found["map"])),
            "held_out_pictures": len(results),
        }

    return Trained(out, card, measure)


def _boxes(found: Sequence[tuple[str, Corners, float]], labels: list[str]) -> dict[str, Tensor]:
    """Boxes as torchmetrics takes them."""
    return {
        "boxes": torch.tensor([box for _, box, _ in found]).reshape(-1, 4),
        "labels": torch.tensor([labels.index(label) for label, _, _ in found], dtype=torch.long),
        "scores": torch.tensor([score for _, _, score in found]),
    }


def _fit(run: TrainingRun, data: Path, base: Path | str, weights: Path) -> None:
    """Train into `weights`/best.pt; goes on where a kill ended it, and is done when it was done."""
    from ultralytics.models import YOLO

    done = run.folder / "trained"
    if done.is_file():
        return
    last = weights / "last.pt"
    resume = last.is_file()
    if resume:
        print(f"goes on from {last}", file=sys.stderr)
    model: Any = YOLO(last if resume else base)
    model.train(
        data=str(data),
        resume=resume,
        epochs=run.epochs,
        patience=max(PATIENCE, run.epochs // 5),
        freeze=len(model.model.yaml["backbone"]) if run.frozen else None,
        seed=run.seed,
        device=run.device,
        workers=0 if run.device == "cpu" else 8,
        imgsz=SIDE,
        project=str(run.folder),
        name="yolo",
        exist_ok=True,
        plots=False,
        amp=False,  # its check downloads a checkpoint
    )
    done.touch()


def _base(run: TrainingRun) -> tuple[Path | str, Card | None, str]:
    """What Ultralytics is to start from: a configuration, or a checkpoint made of a saved YOLO; its card and name."""
    if run.base is None or run.base.endswith(".yaml"):
        return run.base or FROM_NOISE, None, f"{run.base or FROM_NOISE}, from noise"
    folder, known = find_base(run, "detection", Path())
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "yolo":
        raise DataError(f"--base {run.base} is no YOLO; Ultralytics trains only these.")
    from ultralytics.nn.tasks import DetectionModel

    model: Any = DetectionModel(config["yaml"], nc=len(config["labels"]), verbose=False)
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    model.names = dict(enumerate(config["labels"]))
    model.args = {}
    checkpoint = run.folder / "base.pt"
    torch.save({"model": model, "train_args": {}}, checkpoint)
    return checkpoint, known, known.name if known else folder.name


def _write_data(folder: Path, parts: Parts[Boxed], labels: list[str]) -> Path:
    """Write a YOLO data set and return its data.yaml. Pictures are copied: Ultralytics mends damaged ones in place."""
    for part in PARTS:
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for number, example in enumerate(parts[part]):
            suffix = example.path.suffix.lower() if example.path.suffix.lower() in COPIED else ".png"
            picture = folder / "images" / part / f"{number:07}{suffix}"
            if not picture.is_file():
                _copy(example.path, picture)
            lines = [_line(label, box, example.size, labels) for label, box in example.boxes]
            (folder / "labels" / part / f"{number:07}.txt").write_text("".join(lines))
    content: dict[str, Any] = {"path": str(folder), "names": dict(enumerate(labels))}
    content |= {theirs: f"images/{ours}" for theirs, ours in zip(("train", "val", "test"), PARTS, strict=True)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    # where Ultralytics looks for a font before it downloads one
    fonts = folder.parent / "Ultralytics"
    fonts.mkdir(exist_ok=True)
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        shutil.copyfile(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", fonts / name)
    return folder / "data.yaml"


def _copy(source: Path, picture: Path) -> None:
    if picture.suffix == source.suffix.lower():
        shutil.copyfile(source, picture)
    else:
        open_picture(source).save(picture)


def _line(label: str, box: Sequence[float], size: tuple[int, int], labels: list[str]) -> str:
    """A box, xyxy in pixels, as YOLO writes it: class, centre x, centre y, width, height, each 0-1."""
    width, height = size
    x1, y1, x2, y2 = (
        min(max(value / side, 0), 1) for value, side in zip(box, (width, height, width, height), strict=True)
    )
    return f"{labels.index(label)} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"
