"""Trains a team's own model from labelled pictures, on a CPU or a GPU, and saves it into the model store.

All that a training writes lies in `<work>/<name>` until it succeeded; the same command goes on from the last checkpoint
there. Pictures come in three parts: to learn from, to choose with (early stopping), and held out for the figures on the
card, which are measured with the very files that are saved, through the class that serves them.
"""

import json
import os
import shutil
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException
from transformers import set_seed

from train_and_save.datasets import DataError
from train_and_save.graphs import export
from train_and_save.train.run import Trained, TrainingRun
from vision.bento import store
from vision.core.predictor import pick_device


def train(
    task: str,
    data: Path,
    *,
    name: str,
    base: str | None,
    frozen: bool,
    epochs: int,
    seed: int,
    device: str,
    work: Path,
) -> str:
    """Train a model, print its held-out figures, save it as `name:version` and return that tag.

    data: an image folder, a YOLO or COCO data set, or a table of captions (train_and_save/datasets.py).
    base: a store tag or a folder in Hugging Face layout, by default the starter; for detection also an Ultralytics
    .yaml to start from noise, by default yolo26n.yaml. frozen: train only what stands on the backbone.
    Raises DataError with one line; the store is as it was unless all succeeded.
    """
    try:
        name = bentoml.Tag.from_str(f"{name}:1").name  # which is lower-case
    except (BentoMLException, ValueError) as error:
        raise DataError(f"--name {name}: {error}") from error
    try:
        run = TrainingRun(data.resolve(), name, base, frozen, epochs, seed, pick_device(device), work.resolve() / name)
        _claim(run, task)
        set_seed(seed)
        trained = _train(task, run)
        version = store.version(trained.folder)
        card = export.add_graph(trained.folder, trained.card)
        metrics = trained.measure(card)
        for figure, value in metrics.items():
            print(f"{figure}: {value:.4f}")
        tag = store.save(trained.folder, card.model_copy(update={"metrics": metrics}), version)
    except OSError as error:
        raise DataError(f"{error.strerror or str(error).splitlines()[0]} ({error.filename or name})") from error
    shutil.rmtree(run.folder)
    return tag


def _train(task: str, run: TrainingRun) -> Trained:
    # Imported late: Ultralytics, which some bring along, reads these when it is imported.
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(run.folder)}
    match task:
        case "classification":
            from train_and_save.train import classifier as train_classifier

            return train_classifier.train(run)
        case "captioning":
            from train_and_save.train import captioner as train_captioner

            return train_captioner.train(run)
        case _:
            from train_and_save.train import detector as train_detector

            return train_detector.train(run)


def _claim(run: TrainingRun, task: str) -> None:
    """Make the run's folder, or go on in one in which the same command has learnt something already."""
    plan = {**vars(run), "task": task, "data": str(run.data), "folder": None}
    file = run.folder / "plan.json"
    if run.folder.exists() and any(run.folder.iterdir()) and not file.is_file():
        raise DataError(f"{run.folder} is not empty: give another --work or --name.")
    if any((run.folder / learnt).exists() for learnt in ("checkpoints", "yolo")):
        if json.loads(file.read_text()) != plan:
            raise DataError(f"{run.folder} holds another training, stopped midway: delete it or give another --work.")
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    file.write_text(json.dumps(plan))
