"""How well a frozen-backbone classifier tells dog / no dog and person / no person, five-fold cross-validated.

python -m benchmarks.train_figures PHOTOS [--full]

PHOTOS holds captions/ (a table of captions) and coco/ (YOLO boxes). A photograph has a dog where three or more of its
five sentences say dog or dogs, and none where none does; others are left out. It has a person where a box says so.
Everything that `train --frozen` chooses is chosen here within the four folds that are learnt from. --full fine-tunes
the whole network on one fold, beside the frozen backbone's figure on that fold.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoImageProcessor, set_seed

from train_and_save import starter
from train_and_save.datasets import Labelled, read_boxes, read_captions_table
from train_and_save.train.classifier import (
    FOLDS,
    Features,
    balanced_accuracy,
    best_head,
    fine_tune_all,
    folds,
    inputs,
    look,
    with_head,
)
from train_and_save.train.run import TrainingRun, open_picture


def dogs(photos: Path) -> list[Labelled]:
    examples = []
    for photo in read_captions_table(photos / "captions"):
        said = sum(bool(re.search(r"\bdogs?\b", sentence.lower())) for sentence in photo.captions)
        if said == 0 or said >= 3:
            examples.append(Labelled(photo.path, "dog" if said else "no dog"))
    return examples


def people(photos: Path) -> list[Labelled]:
    examples, _ = read_boxes(photos / "coco")
    return [
        Labelled(photo.path, "person" if any(label == "person" for label, _ in photo.boxes) else "no person")
        for photo in examples
    ]


def frozen(
    seen: list[Features], targets: torch.Tensor, fold: torch.Tensor, seed: int
) -> tuple[torch.Tensor, list[float]]:
    """Predict each fold from the others; return the labels (N,) and each fold's balanced accuracy."""
    predicted = torch.empty_like(targets)
    each = []
    for left in (fold == number for number in range(FOLDS)):
        learnt = [Features(one.folder, one.features[:, ~left], one.head) for one in seen]
        chosen, weight, bias = best_head(learnt, targets[~left], seed)
        whole = next(one for one in seen if one.folder == chosen.folder)
        predicted[left] = (whole.features[0, left] @ weight.T + bias).argmax(dim=1)
        each.append(balanced_accuracy(predicted[left].tolist(), targets[left].tolist()))
    return predicted, each


def full(
    examples: list[Labelled], seen: list[Features], targets: torch.Tensor, left: torch.Tensor, run: TrainingRun
) -> float:
    """Fine-tune on what is not left out, an eighth of it to stop early with; balanced accuracy on what is."""
    set_seed(run.seed)
    labels = sorted({example.label for example in examples})
    learnt = (~left).nonzero().flatten()
    choose = learnt[torch.arange(len(learnt)) % 8 == 0]
    train = learnt[torch.arange(len(learnt)) % 8 != 0]
    chosen, weight, bias = best_head(
        [Features(one.folder, one.features[:, train], one.head) for one in seen], targets[train], run.seed
    )
    processor = AutoImageProcessor.from_pretrained(chosen.folder, local_files_only=True)
    parts = {name: [examples[int(i)] for i in rows] for name, rows in (("train", train), ("choose", choose))}
    model = fine_tune_all(run, with_head(chosen.folder, labels, weight, bias), labels, processor, parts)
    told = []
    with torch.inference_mode():
        for i in left.nonzero().flatten().tolist():
            told.append(int(model(**processor(open_picture(examples[i].path), return_tensors="pt")).logits.argmax()))
    return balanced_accuracy(told, targets[left].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_figures", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--full", action="store_true", help="fine-tune the whole network on one fold as well")
    parser.add_argument("--epochs", type=int, default=8, help="of full fine-tuning, at most")
    parser.add_argument("--seeds", type=int, default=5, help="how many ways to deal the folds")
    parser.add_argument("--only", choices=["dog", "person"])
    arguments = parser.parse_args()
    for name, read in (("dog", dogs), ("person", people)):
        if arguments.only in (None, name):
            report(name, read(arguments.photos), arguments)


def report(name: str, examples: list[Labelled], arguments: argparse.Namespace) -> None:
    labels = sorted({example.label for example in examples})
    targets = torch.tensor([labels.index(example.label) for example in examples])
    print(f"{name}: {sum(example.label == name for example in examples)} of {len(targets)} photographs", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        paths = [example.path for example in examples]
        seen = [look(one, paths, "cpu") for one in inputs(starter.CLASSIFICATION, Path(folder) / "larger")]
        print(f"  features: {time.perf_counter() - start:.0f} s", flush=True)
        means = []
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            predicted, each = frozen(seen, targets, folds(targets, seed), seed)
            means.append(balanced_accuracy(predicted.tolist(), targets.tolist()))
            print(
                f"  frozen, folds dealt with seed {seed}: balanced accuracy {means[-1]:.3f}"
                f" (folds {', '.join(f'{value:.3f}' for value in each)}); {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        print(f"  frozen: mean {sum(means) / len(means):.3f}, least {min(means):.3f}", flush=True)
        if arguments.full:
            start = time.perf_counter()
            run = TrainingRun(Path(), name, None, False, arguments.epochs, seed, "cpu", Path(folder))
            value = full(examples, seen, targets, folds(targets, seed) == 0, run)
            print(f"  full, fold 0 of the last: {value:.3f}, frozen {each[0]:.3f}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
