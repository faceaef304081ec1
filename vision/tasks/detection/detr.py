"""Detectors that transformers' AutoModelForObjectDetection loads: RT-DETR, D-FINE, DETR and kin; they need no NMS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from vision.core import engine
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


class DetrNetwork:
    """A Network (detector.py) around a transformers model, or its graph, and its own processor."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.device = device
        self.model: Callable[..., Any]
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        names: dict[int, str] = AutoConfig.from_pretrained(folder, local_files_only=True).id2label
        self.labels = [names[index] for index in range(len(names))]
        if engine.has_graph(folder, device):
            graph = engine.openvino(folder)
            self.model = lambda pixel_values: Queries(*map(torch.from_numpy, graph(pixel_values.numpy())))
        else:
            self.model = load_whole(AutoModelForObjectDetection, folder).to(device)

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
        """Return what the network takes of a picture: pixel_values (1, 3, H, W), and for some a mask."""
        return dict(self.processor(Image.fromarray(pixels), return_tensors="pt"))

    def _postprocess(self, result: dict[str, Tensor]) -> Found:
        order = result["scores"].argsort(descending=True, stable=True)
        scores, classes, boxes = (result[name][order].cpu().numpy() for name in ("scores", "labels", "boxes"))
        return Found(scores, classes, boxes.clip(0, 1))
