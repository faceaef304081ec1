"""What a model is to all others: loaded once, `predict(items)` -> a result or an error per item."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from vision.core.device import choose, has_torch
from vision.core.engine import DeviceLostError
from vision.core.errors import Code, VisionError
from vision.core.schemas import Card, Item

log = logging.getLogger(__name__)


class Predictor(Protocol):
    card: Card

    def predict(self, items: Sequence[Item[Any]]) -> Sequence[BaseModel | VisionError]: ...


def load_whole(loader: Any, folder: Path) -> Any:
    """Load a transformers model in float32 from safetensors, refusing one whose weights do not fit.

    transformers only warns of missing weights, and then answers from noise.
    """
    import torch

    model, report = loader.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    problems = {kind: sorted(report[kind]) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if problems:
        raise ValueError(f"The weights in {folder} do not fit {type(model).__name__}: {problems}")
    return model.eval()


def pick_device(wanted: str) -> str:
    """Settle "auto", "cpu", "cuda" or "cuda:1" on "cpu" or one GPU; "auto" on the first that torch can use.

    Raises ValueError where the GPU that is wanted is not there.
    """
    device, gpu = choose(wanted)
    if gpu is not None and wanted == "auto":
        if not has_torch():
            return "cpu"
        import torch  # a build without CUDA sees no GPU

        device = device if torch.cuda.is_available() else "cpu"
    return device


def predict_each(model: Predictor, items: Sequence[Item[Any]]) -> list[BaseModel | VisionError]:
    """Predict a batch so that a failure stays with the item that caused it.

    A batch that raises, out of memory for example, is halved and tried again; an item that raises alone has
    INFERENCE_FAILED in its place. Raises DeviceLostError: then nothing more can be predicted in this process.
    """
    try:
        return list(model.predict(items))
    except DeviceLostError:
        raise
    except Exception:
        log.exception("%s failed on a batch of %d", model.card.name, len(items))
    if len(items) == 1:
        return [VisionError(Code.INFERENCE_FAILED, f"{model.card.name} failed on this picture.")]
    middle = len(items) // 2
    return predict_each(model, items[:middle]) + predict_each(model, items[middle:])
