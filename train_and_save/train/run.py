"""What the trainings of the three tasks share: splitting, describing, the trainer, answers as the service gives."""

import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bentoml.exceptions import BentoMLException
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from train_and_save import datasets
from train_and_save.answered import answered
from train_and_save.datasets import DataError, Example
from train_and_save.datasets.files import tell_left_out
from vision.bento import store
from vision.core import images
from vision.core.cuda import MADE
from vision.core.device import planned
from vision.core.engine import GRAPH_CONFIG
from vision.core.predictor import load_whole
from vision.core.schemas import Card, Options
from vision.tasks import TASKS

PARTS = ("train", "choose", "held_out")
PATIENCE = 3

Parts = dict[str, list[Example]]
"""Examples by part, one list for each of PARTS."""


@dataclass(frozen=True)
class TrainingRun:
    """What was asked for, and the folder to work in."""

    data: Path
    name: str
    base: str | None
    frozen: bool
    epochs: int
    seed: int
    device: str
    folder: Path


@dataclass(frozen=True)
class Trained:
    """A finished model's folder, its card without figures, and how to get those."""

    folder: Path
    card: Card
    measure: Callable[[Card], dict[str, float]]


def read_parts(
    run: TrainingRun, examples: Sequence[Example], key: Callable[[Example], str]
) -> tuple[Parts[Example], str]:
    """Sort out unreadable pictures and split the others; return the parts and what the card says of them."""
    good, bad = datasets.readable(examples)
    for path, reason in bad:
        print(f"left out {path}: {reason}", file=sys.stderr)
    parts = split(good, key, run.seed)
    for part in ("train", "held_out"):
        if not parts[part]:
            raise DataError(f"{run.data} leaves no pictures for {part}: there are only {len(good)}.")
    if bad:
        print(f"{len(bad)} of {len(examples)} pictures left out", file=sys.stderr)
    counts = f"{len(parts['train'])} learnt, {len(parts['choose'])} chosen with, {len(parts['held_out'])} held out"
    digest = datasets.digest(example.path for example in good)
    before = run.folder / "data.sha256"
    if before.is_file() and before.read_text() != digest:
        raise DataError(f"{run.data} has changed since this training was stopped: delete {run.folder} to start anew.")
    before.write_text(digest)
    dealt = sum(map(len, parts.values()))
    left = f"{len(bad)} left out as unusable" + (f", {len(good) - dealt} as held out, too" if dealt < len(good) else "")
    return parts, f"{dealt} pictures: {counts}; {left}; sha256 of all {digest}"


def split(examples: Sequence[Example], key: Callable[[Example], str], seed: int) -> Parts[Example]:
    """Deal examples to PARTS, 70 / 10 / 20 of each key; where the data has its own train and val, val is held out.

    The same picture, though it may lie there several times, comes into one part. Of what the data's own train and val
    both have, train's is left out.
    """
    has_own = {"train", "held_out"} <= {example.part for example in examples}
    parts: Parts[Example] = {part: [] for part in PARTS}
    if has_own:
        parts["held_out"] = [example for example in examples if example.part == "held_out"]
    held_out = {example.pixels for example in parts["held_out"]}
    groups: dict[str, dict[str, list[Example]]] = {}
    twins = []
    for example in examples:
        if has_own and example.part == "held_out":
            continue
        if example.pixels in held_out:
            twins.append(example.path)
        else:
            groups.setdefault(key(example), {}).setdefault(example.pixels, []).append(example)
    tell_left_out("pictures of train that are held out, too", twins)
    for _, same in sorted(groups.items()):
        clusters = list(same.values())
        random.Random(seed).shuffle(clusters)
        count = sum(map(len, clusters))
        wanted = {"held_out": 0 if has_own else max(1, round(0.2 * count)), "choose": max(1, round(0.1 * count))}
        for cluster in clusters:
            part = next((part for part, left in wanted.items() if left > 0), "train")
            parts[part] += cluster
            wanted[part] = wanted.get(part, 0) - len(cluster)
    return parts


def find_base(run: TrainingRun, task: str, default: Path) -> tuple[Path, Card | None]:
    """The folder to start from, and its card where it has one. Raises DataError."""
    folder = default if run.base is None else Path(run.base)
    if run.base is not None and not folder.is_dir():
        try:
            folder = store.folder(run.base)
        except BentoMLException as error:
            raise DataError(f"--base {run.base} is neither a folder nor a model in the store.") from error
    card = store.read_card(folder) if (folder / store.CARD).is_file() else None
    if card is not None and card.task != task:
        raise DataError(f"--base {run.base} is a model for {card.task}, not for {task}.")
    return folder, card


def load_base(loader: Any, folder: Path) -> Any:
    """Load a transformers model to train. Raises DataError where the folder holds none for the task."""
    try:
        return load_whole(loader, folder)
    except (ValueError, OSError) as error:
        raise DataError(f"{folder} cannot be trained for this task: {str(error).splitlines()[0]}") from error


def make_card(run: TrainingRun, task: str, known: Card | None, base: str, **of_model: Any) -> Card:
    licence = known.licence if known else "not stated by the base"
    how = "frozen backbone" if run.frozen else f"up to {run.epochs} epochs"
    return Card(
        task=task,
        name=run.name,
        source=f"trained here: python -m train_and_save train {task}, from {base} ({how}, seed {run.seed})",
        licence=f"the weights as the team decides; the base: {licence}",
        **of_model,
    )


def copy_settings(base: Path, out: Path) -> None:
    """Copy the processor's and tokenizer's files, so that preprocessing is the base's to the letter."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    own = (store.CARD, GRAPH_CONFIG, MADE)
    for file in base.iterdir():
        if file.suffix in (".json", ".txt", ".model") and file.name not in own and "index" not in file.name:
            shutil.copyfile(file, out / file.name)


def open_picture(path: Path) -> Image.Image:
    return images.decode(path.read_bytes(), datasets.LIMITS)


def served(folder: Path, card: Card, device: str, paths: Sequence[Path], options: Options | None = None) -> list[Any]:
    """What the service would answer for each picture, by default with its default options."""
    task = TASKS[card.task]
    return answered(task.load(folder, card, planned(device, folder, card)), folder, paths, options or task.options())


class FineTuner(Trainer):
    """transformers' Trainer for small data: batches too small for statistics leave BatchNorm's as the base has them."""

    def compute_loss(self, model: Any, *arguments: Any, **named: Any) -> Any:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return super().compute_loss(model, *arguments, **named)


def fine_tune(
    run: TrainingRun, model: Any, parts: dict[str, Dataset[Any]], rate: float, *, collate: Any = None, loss: Any = None
) -> Any:
    """Train with early stopping on the part to choose with; return the best model. Goes on where a kill ended it."""
    checkpoints = run.folder / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=run.epochs,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=run.device != "cpu",
        dataloader_num_workers=0 if run.device == "cpu" else min(8, os.cpu_count() or 1),
        use_cpu=run.device == "cpu",
        seed=run.seed,
        report_to="none",
        log_level="warning",
    )
    trainer = FineTuner(
        model,
        arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["choose"],
        data_collator=collate,
        compute_loss_func=loss,
        callbacks=[EarlyStoppingCallback(PATIENCE)],
    )
    # trainer_state.json is written last: a checkpoint without it was cut short
    whole = [file.parent for file in checkpoints.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)
    if last is not None:
        print(f"goes on from {last}", file=sys.stderr)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return model.eval().to("cpu")
