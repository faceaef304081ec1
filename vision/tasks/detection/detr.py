"""Detectors that transformers' AutoModelForObjectDetection loads: RT-DETR, D-FINE, DETR and kin; they need no NMS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from vision.core import cuda, engine
from vision.core.cuda import Plan
from vision.core.engine import GRAPH_CONFIG
from vision.core.pixels import Steps
from vision.core.predictor import load_whole
from vision.core.schemas import Pixels
from vision.tasks.detection.boxes import Found, by_shape


class Queries(NamedTuple):
    """What a network says of pictures: logits (B, N, labels) and boxes (B, N, 4), centre and size as 0-1."""

    logits: Tensor
    pred_boxes: Tensor


class QueriesAlone(nn.Module):
    """A transformers detector that returns nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(pixel_values=pixel_values)
        return outputs.logits, outputs.pred_boxes


class _HalfPrecision:
    """A network whose inputs are of many shapes, on a GPU: eager, and half as precise where torch deems that safe."""

    def __init__(self, model: Any, how: Plan) -> None:
        self._model, self._how = model, how

    def __call__(self, **inputs: Tensor) -> Queries:
        half = self._how.dtype is not torch.float32
        with torch.autocast(torch.device(self._how.device).type, self._how.dtype, enabled=half):
            outputs = self._model(**inputs)
        return Queries(outputs.logits.float(), outputs.pred_boxes.float())


class DetrNetwork:
    """A DetectorNetwork (detector.py) around a transformers model, or its graph, and its own processor."""

    def __init__(self, folder: Path, device: str, how: Plan | None = None) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.device = device
        self.model: Callable[..., Any]
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        names: dict[int, str] = AutoConfig.from_pretrained(folder, local_files_only=True).id2label
        self.labels = [names[index] for index in range(len(names))]
        self.engine: engine.Engine
        self.steps: Steps | None = None
        if how is None and engine.has_graph(folder, device):
            self.engine = engine.openvino(folder)
            self.model = lambda pixel_values: Queries(*map(torch.from_numpy, self.engine(pixel_values.numpy())))
            return
        model = load_whole(AutoModelForObjectDetection, folder)
        if how is None:
            self.model = model.to(device)
        elif (folder / GRAPH_CONFIG).is_file():
            self.steps = Steps.load(folder)
            self.module = cuda.Outputs(cuda.behind(self.steps, QueriesAlone(model))).eval()
            self.engine = cuda.engine(self.module, how)
            self.model = lambda pixel_values: Queries(*map(torch.from_numpy, self.engine(pixel_values.numpy())))
            self.device = "cpu"  # where its answers are
        else:
            self.model = _HalfPrecision(model.to(device), how)

    @torch.inference_mode()
    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        inputs = [self.preprocess(pixels) for pixels in pictures]
        found: dict[int, Found] = {}
        # Pictures of one shape only: padding would let batch-mates change each other's boxes.
        for indices in by_shape([one["pixel_values"] for one in inputs]):
            batch = {name: torch.cat([inputs[i][name] for i in indices]).to(self.device) for name in inputs[indices[0]]}
            results = self.processor.post_process_object_detection(self.model(**batch), threshold=min_score)
            for index, result in zip(indices, results, strict=True):
                found[index] = self._postprocess(result)
        return [found[index] for index in range(len(pictures))]

    def preprocess(self, pixels: Pixels) -> dict[str, Tensor]:
        """Return what the network takes of a picture: pixel_values (1, 3, H, W), and for some a mask.

        For a GPU (1, H, W, 3) as bytes, where that is known how to.
        """
        if self.steps is not None:
            return {"pixel_values": torch.from_numpy(self.steps.levels([pixels]))}
        return dict(self.processor(Image.fromarray(pixels), return_tensors="pt"))

    def _postprocess(self, result: dict[str, Tensor]) -> Found:
        order = result["scores"].argsort(descending=True, stable=True)
        scores, classes, boxes = (result[name][order].cpu().numpy() for name in ("scores", "labels", "boxes"))
        return Found(scores, classes, boxes.clip(0, 1))
