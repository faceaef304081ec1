"""Classification: a new head on a frozen network, and from there the whole network.

The head is a logistic regression on what the frozen network sees, so it is found in minutes on a laptop. What it was
fitted on is what is served: pictures go through the processor of the very folder that is saved.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from train_and_save import datasets, starter
from train_and_save.datasets import DataError, Labelled
from train_and_save.train.run import (
    Parts,
    Trained,
    TrainingRun,
    copy_settings,
    find_base,
    fine_tune,
    load_base,
    make_card,
    open_picture,
    read_parts,
    served,
)
from vision.core.schemas import Card

FOLDS = 5
PENALTIES = tuple(10**power for power in (-4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5))
VIEWS = 2
"""A picture and its mirror."""


def train(run: TrainingRun) -> Trained:
    """Train a classifier on an image folder. Raises DataError."""
    base, known = find_base(run, "classification", starter.CLASSIFICATION)
    examples = datasets.read_image_folder(run.data)
    parts, origin = read_parts(run, examples, lambda example: example.label)
    counts = Counter(example.label for part in parts.values() for example in part)
    labels = sorted(counts)
    for label in labels:
        if label not in {example.label for example in parts["train"]}:
            raise DataError(f"{run.data} has too few pictures of {label!r} to learn from: each class needs three.")
    learnt = parts["train"] + parts["choose"] if run.frozen else parts["train"]
    targets = torch.tensor([labels.index(example.label) for example in learnt])
    paths = [example.path for example in learnt]
    seen = [look(folder, paths, run.device) for folder in inputs(base, run.folder / "larger")]
    chosen, weight, bias = best_head(seen, targets, run.seed)
    model = with_head(chosen.folder, labels, weight, bias)
    processor = AutoImageProcessor.from_pretrained(chosen.folder, local_files_only=True)
    if not run.frozen:
        model = fine_tune_all(run, model, labels, processor, parts)
    out = run.folder / "model"
    copy_settings(chosen.folder, out)
    model.save_pretrained(out)
    height, width = processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape[-2:]
    card = make_card(
        run,
        "classification",
        known,
        known.name if known else base.name,
        architecture=known.architecture if known else type(model).__name__,
        description=f"Labels: {', '.join(f'{label} ({counts[label]})' for label in labels)}. Made from {origin}.",
        preprocessing=_preprocessing(processor),
        labels=len(labels),
        input_size=(width, height),
    )

    def measure(card: Card) -> dict[str, float]:
        results = served(out, card, run.device, [example.path for example in parts["held_out"]])
        told = [result.labels[0].label for result in results]
        true = [example.label for example in parts["held_out"]]
        return {
            "held_out_balanced_accuracy": balanced_accuracy(told, true),
            "held_out_accuracy": sum(a == b for a, b in zip(told, true, strict=True)) / len(true),
            "held_out_pictures": len(true),
        }

    return Trained(out, card, measure)


@dataclass(frozen=True)
class Features:
    """What the head of the classifier in `folder` reads of pictures: features (VIEWS, N, F), float32; and the head."""

    folder: Path
    features: Tensor
    head: nn.Linear


def inputs(base: Path, larger: Path) -> Iterator[Path]:
    """The base's folder; for a timm network of any input size one more, in `larger`, that differs in preprocessing.

    It shows the network the whole picture, nearly half as large again: a base is made for one thing in the middle,
    while a team's label may lie anywhere in a picture, and small (after Touvron et al. 2019, arXiv:1906.06423).
    """
    yield base
    config = json.loads((base / "config.json").read_text())
    seen = config.get("pretrained_cfg", {})
    # timm itself writes no model_type
    if (
        config.get("model_type", "timm_wrapper") != "timm_wrapper"
        or seen.get("fixed_input_size")
        or "input_size" not in seen
    ):
        return
    channels, height, width = seen["input_size"]
    size = [channels, round(height * 1.5 / 32) * 32, round(width * 1.5 / 32) * 32]
    config["pretrained_cfg"] |= {"input_size": size, "crop_pct": 1.0, "crop_mode": "squash"}
    copy_settings(base, larger)
    (larger / "config.json").write_text(json.dumps(config))
    for weights in base.glob("*.safetensors*"):
        (larger / weights.name).symlink_to(weights.resolve())
    yield larger


def head_of(model: nn.Module, labels: int) -> nn.Linear:
    """A classifier's last linear layer. Raises DataError where there is none."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    if not linear:
        raise DataError(f"{type(model).__name__} does not end in a linear layer; a head for it cannot be trained.")
    return linear[-1]


@torch.inference_mode()
def look(folder: Path, paths: Sequence[Path], device: str) -> Features:
    """Run the classifier in a folder on pictures and on their mirrors, up to its head."""
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model = load_base(AutoModelForImageClassification, folder).to(device)
    head = head_of(model, model.config.num_labels)
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(1).cpu()))
    for start in tqdm(range(0, len(paths), 16), desc="looking at pictures", unit="batch"):
        pictures = [open_picture(path) for path in paths[start : start + 16]]
        for view in (pictures, [ImageOps.mirror(picture) for picture in pictures]):
            model(processor(view, return_tensors="pt")["pixel_values"].to(device))
    hook.remove()
    return Features(folder, torch.stack([torch.cat(read[view::VIEWS]) for view in range(VIEWS)]), head.cpu())


def best_head(seen: Sequence[Features], targets: Tensor, seed: int) -> tuple[Features, Tensor, Tensor]:
    """Choose an input and fit a linear head on it, weight (labels, F) and bias (labels,); targets (N,) are indices.

    The head is a logistic regression on standardised features and, beside them, on the base's own logits: these are
    linear in the features, so all folds into one layer, and directions that tell the base's classes apart are
    penalised less. Labels weigh alike however many pictures they have. Input and penalty are those of the least loss
    in a five-fold cross-validation over the pictures.
    """
    classes = int(targets.max()) + 1
    fold = folds(targets, seed)
    losses = {(index, penalty): 0.0 for index in range(len(seen)) for penalty in PENALTIES}
    for index, left in ((index, fold == number) for index in range(len(seen)) for number in range(FOLDS)):
        features, head = seen[index].features, seen[index].head
        for penalty, (weight, bias) in _heads(features[:, ~left], targets[~left], head, classes, PENALTIES).items():
            logits = features[0, left] @ weight.T + bias
            losses[index, penalty] += float(_losses(logits, targets[left], targets, classes).sum())
    index, penalty = min(losses, key=lambda choice: losses[choice])
    weight, bias = _heads(seen[index].features, targets, seen[index].head, classes, (penalty,))[penalty]
    return seen[index], weight, bias


def folds(targets: Tensor, seed: int) -> Tensor:
    """Deal pictures to FOLDS folds, each label evenly: (N,) indices of labels -> (N,) numbers of folds."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty_like(targets)
    for label in targets.unique():
        rows = (targets == label).nonzero().flatten()
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return fold


def _losses(logits: Tensor, targets: Tensor, of: Tensor, classes: int) -> Tensor:
    """Cross-entropies (N,) in which labels weigh alike, given how often each stands in `of`."""
    balance = len(of) / (classes * torch.bincount(of, minlength=classes).clamp(min=1)).to(logits.dtype)
    return functional.cross_entropy(logits, targets, reduction="none") * balance[targets]


def _heads(
    seen: Tensor, targets: Tensor, base: nn.Linear, classes: int, penalties: Sequence[float]
) -> dict[float, tuple[Tensor, Tensor]]:
    """The head, weight and bias, that minimises the loss with each penalty."""
    views, target = seen.flatten(0, 1).double(), targets.repeat(len(seen))
    widen = torch.cat([torch.eye(views.shape[1], dtype=torch.float64), base.weight.detach().double()])
    wide = views @ widen.T
    mean, scale = wide.mean(dim=0), (wide.std(dim=0) + 1e-6) * wide.shape[1] ** 0.5
    wide = (wide - mean) / scale
    span = torch.eye(wide.shape[1], dtype=torch.float64)
    if len(wide) < wide.shape[1]:  # the solution lies in the span of the rows, where there are fewer unknowns
        squares, axes = torch.linalg.eigh(wide @ wide.T)
        real = squares > 1e-10 * squares.max()
        span = (axes[:, real] / squares[real].sqrt()).T @ wide
    inputs = wide @ span.T
    weight = torch.zeros(classes, len(span), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    found = {}
    for penalty in sorted(penalties, reverse=True):  # each starts from the one before
        solver = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

        def objective(solver: torch.optim.LBFGS = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            loss = _losses(inputs @ weight.T + bias, target, target, classes).mean()
            loss = loss + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        solver.step(objective)
        straight = weight.detach() @ span / scale
        found[penalty] = (straight @ widen).float(), (bias.detach() - straight @ mean).float()
    return found


def with_head(base: Path, labels: list[str], weight: Tensor, bias: Tensor) -> Any:
    """The base classifier with another head, weight (labels, F) and bias (labels,), and its labels in the config."""
    names = dict(enumerate(labels))
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    config.id2label, config.label2id = names, {label: index for index, label in names.items()}
    config.problem_type = "single_label_classification"
    if hasattr(config, "label_names"):  # timm's own place for them
        config.label_names = labels
    model = AutoModelForImageClassification.from_pretrained(
        base, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    head_of(model, len(labels)).load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def balanced_accuracy(predicted: Sequence[Any], true: Sequence[Any]) -> float:
    """The mean over the labels that occur of the share of their pictures that were told."""
    right: dict[Any, list[bool]] = {}
    for guess, label in zip(predicted, true, strict=True):
        right.setdefault(label, []).append(guess == label)
    return sum(sum(each) / len(each) for each in right.values()) / len(right)


def fine_tune_all(run: TrainingRun, model: Any, labels: list[str], processor: Any, parts: Parts[Labelled]) -> Any:
    """Train the whole network from where its head fits already (Kumar et al. 2022, arXiv:2202.10054)."""
    counts = Counter(example.label for example in parts["train"])
    balance = torch.tensor([len(parts["train"]) / (len(labels) * counts[label]) for label in labels])

    def loss(outputs: Any, targets: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return functional.cross_entropy(outputs["logits"], targets, weight=balance.to(targets.device))

    pictures: dict[str, Dataset[Any]] = {
        part: Pictures(parts[part], labels, processor, augment=part == "train") for part in ("train", "choose")
    }
    return fine_tune(run, model, pictures, 1e-4, loss=loss)


def _preprocessing(processor: Any) -> str:
    settings = processor.to_dict()
    shown = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "data_config")
    return f"{type(processor).__name__}: " + json.dumps({key: settings[key] for key in shown if key in settings})


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures as a processor sees them, with the index of their label; a random part and its mirror to learn from."""

    def __init__(self, examples: Sequence[Labelled], labels: list[str], processor: Any, augment: bool) -> None:
        self.examples, self.processor, self.augment = examples, processor, augment
        self.index = {label: index for index, label in enumerate(labels)}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = open_picture(self.examples[index].path)
        if self.augment:
            top, left, height, width = RandomResizedCrop.get_params(image, scale=[0.5, 1.0], ratio=[3 / 4, 4 / 3])
            image = image.crop((left, top, left + width, top + height))
            if torch.rand(()) < 0.5:
                image = ImageOps.mirror(image)
        pixel_values = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": torch.tensor(self.index[self.examples[index].label])}
