"""Other people's models from a folder: checked, converted, tried, and saved into the model store."""

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto import modeling_auto

from train_and_save import Origin, UserError
from train_and_save.bring import checkpoint as yolo
from train_and_save.graphs import export
from vision.bento import store
from vision.core.device import CPU
from vision.core.schemas import Card, Item
from vision.tasks import TASKS

AGPL = "AGPL-3.0: who serves a YOLO to others over a network must offer them the service's source, or buy a licence"
PERMISSIVE = "PekingU/rtdetr_v2_r18vd (Apache-2.0)"


def save(path: Path, task: str | None, origin: Origin) -> str:
    """Save a model from a folder in Hugging Face layout, or an Ultralytics .pt (or a folder with one); return its tag.

    It is loaded and looks at a grey picture before it is saved; the store stays as it was when that fails.
    Raises UserError: unknown layout, an architecture not for the task, pickled code, damaged files, a full disk.
    """
    try:
        with TemporaryDirectory() as folder:
            card = _prepare(path, Path(folder), origin)
            if task is not None and card.task != task:
                raise UserError(f"{origin.name} is a model for {card.task}, not for {task}.")
            version = store.version(Path(folder))
            if store.is_saved(card, version):
                return f"{card.name}:{version}"
            _try(Path(folder), card)
            return store.save(Path(folder), export.add_graph(Path(folder), card), version)
    except OSError as error:
        raise UserError(f"{origin.name} was not saved: {error.strerror or error}.") from error


def _prepare(path: Path, out: Path, origin: Origin) -> Card:
    """Write what is served into `out`: safetensors and the files beside them; return its card."""
    checkpoints = [path] if path.suffix == ".pt" else sorted(path.glob("*.pt"))
    if (path / "config.json").is_file():
        return _prepare_transformers(path, out, origin)
    if len(checkpoints) == 1 and checkpoints[0].is_file():
        return _prepare_yolo(checkpoints[0], out, origin)
    raise UserError(f"{path} holds neither a config.json nor one .pt: it is no model in a layout that is known.")


def _prepare_yolo(pt: Path, out: Path, origin: Origin) -> Card:
    try:
        yolo.convert(pt, out)
    except ValueError as error:
        raise UserError(str(error)) from error
    config = json.loads((out / "config.json").read_text())
    return Card(
        task="detection",
        name=_tag_name(origin.name),
        architecture=f"Ultralytics {config['yaml'].get('yaml_file', 'YOLO')}",
        source=origin.source,
        licence=AGPL,
        description=f"An Ultralytics detector. A permissive alternative: {PERMISSIVE}.",
        preprocessing=f"letterbox to {config['side']}, bilinear, grey 114; RGB 0-1",
        labels=len(config["labels"]),
        input_size=(config["side"], config["side"]),
    )


def _prepare_transformers(path: Path, out: Path, origin: Origin) -> Card:
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{origin.name} cannot be read: {str(error).splitlines()[0]}") from error
    architecture = (config.architectures or [_usual_class(config.model_type, origin)])[0]
    task = _task(config.model_type, architecture)
    if task is None:
        raise UserError(
            f"{origin.name} is a {architecture}, which is no image classifier, captioner or object detector."
        )
    for file in path.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".safetensors") and file.name != store.CARD:
            shutil.copyfile(file, out / file.name)
    if not config.architectures:
        _complete(out / "config.json", config, architecture)
    if not list(path.glob("*.safetensors")):
        _convert_bin(path, out, config, architecture, origin)
    settings = processor.to_dict()
    shown = ("size", "crop_size", "crop_pct", "resample", "image_mean", "image_std", "do_center_crop", "data_config")
    return Card(
        task=task,
        name=_tag_name(origin.name),
        architecture=architecture,
        source=origin.source,
        licence=origin.licence,
        description=f"A {config.model_type} model others trained; `python -m train_and_save evaluate` measures it.",
        preprocessing=f"{type(processor).__name__}: " + json.dumps({k: settings[k] for k in shown if k in settings}),
        labels=None if task == "captioning" else len(config.id2label),
        input_size=_input_size(settings),
    )


def _complete(file: Path, config: Any, architecture: str) -> None:
    """Write into a config.json, and into `config`, what transformers wants of one that names no architecture."""
    content = json.loads(file.read_text()) | {"model_type": config.model_type, "architectures": [architecture]}
    config.architectures = [architecture]
    # timm tells its own arguments; transformers gives num_classes besides, and Python takes it once only
    for arguments in (content.get("model_args"), getattr(config, "model_args", None)):
        if arguments:
            arguments.pop("num_classes", None)
    file.write_text(json.dumps(content, indent=2))


def _task(model_type: str, architecture: str) -> str | None:
    """Return the task of a transformers class, by the library's own tables."""
    return next((task for task in TASKS if architecture in _classes(task, model_type)), None)


def _usual_class(model_type: str, origin: Origin) -> str:
    """The class of a configuration that names none, as timm's and older ones: what transformers loads for its type."""
    usual = [classes[0] for task in TASKS if (classes := _classes(task, model_type))]
    if len(usual) == 1:
        return usual[0]
    found = f"may be a {' or a '.join(usual)}" if usual else f"is of type {model_type}, for none of {', '.join(TASKS)}"
    raise UserError(
        f"{origin.name} {found}: its config.json lacks architectures; add the class that it was saved from."
    )


def _classes(task: str, model_type: str) -> tuple[str, ...]:
    """The transformers classes that do a task for a type of model."""
    tables: dict[str, Any] = {
        "classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "detection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        "captioning": {**modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **PAIRED},
    }
    classes = tables[task].get(model_type, ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


PAIRED = {"vision-encoder-decoder": "VisionEncoderDecoderModel"}


def _convert_bin(path: Path, out: Path, config: Any, architecture: str, origin: Origin) -> None:
    """Read pytorch_model.bin once, by torch's restricted unpickler, and write it as safetensors."""
    import transformers

    try:
        model = getattr(transformers, architecture).from_pretrained(
            path, config=config, local_files_only=True, use_safetensors=False, weights_only=True, dtype=torch.float32
        )
    except Exception as error:
        raise UserError(
            f"{origin.name} has no weights that can be read without running code: {str(error).splitlines()[0]}"
        ) from error
    model.save_pretrained(out)


def _input_size(settings: dict[str, Any]) -> tuple[int, int]:
    size = settings.get("crop_size") or settings.get("size") or settings.get("data_config", {}).get("input_size") or {}
    if isinstance(size, list | tuple):  # timm's: channels, height, width
        return int(size[2]), int(size[1])
    side = size.get("shortest_edge") or size.get("longest_edge") or 224
    return int(size.get("width") or side), int(size.get("height") or side)


def _try(folder: Path, card: Card) -> None:
    """Load what would be served and let it look at a grey picture."""
    try:
        model = TASKS[card.task].load(folder, card, CPU)
        grey = Item(np.full((48, 64, 3), 127, np.uint8), (64, 48), TASKS[card.task].options())
        model.predict([grey])
    except Exception as error:
        raise UserError(f"{card.name} does not run as a {card.architecture}: {str(error).splitlines()[0]}") from error


def _tag_name(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
