"""Ultralytics' YOLO networks as a torch module, rebuilt from a configuration and safetensors; no pickle is read here.

ultralytics is AGPL-3.0: it is imported only where a YOLO is saved or trained, or served without a graph.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel


class Yolo(nn.Module):
    """Pictures (B, H, W, 3), RGB of 0-255, sides multiples of 32 -> class scores and boxes of every anchor point."""

    def __init__(self, folder: Path) -> None:
        """Load from a folder with config.json (`yaml`, `labels`) and model.safetensors."""
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        self.model = DetectionModel(config["yaml"], nc=len(config["labels"]), verbose=False)
        self.model.load_state_dict({name: w.float() for name, w in load_file(folder / "model.safetensors").items()})
        self.model.eval().fuse(verbose=False)
        layers: Any = self.model.model
        head = layers[-1]
        self.end2end: bool = head.end2end
        """Whether each object has one anchor point, so that no overlaps need to be removed."""
        head.export = True  # predictions alone, without what training needs of them
        head.dynamic = True  # anchor points are made for each shape, so that a graph holds none
        head.xyxy = True
        decode = head.decode_bboxes
        # Pixels of a box need more digits than half precision has.
        head.decode_bboxes = lambda boxes, anchors, *angle: decode(boxes.float(), anchors.float(), *angle)
        head.postprocess = lambda predictions: predictions.permute(0, 2, 1)  # the best are found in yolo.py

    def _apply(self, *given: Any, **more: Any) -> "Yolo":
        head: Any = self.model.model[-1]  # type: ignore[index]
        strides = head.stride
        super()._apply(*given, **more)
        # Plain numbers are made of the strides for each batch; on a GPU that waits, and no CUDA graph records it.
        head.stride = strides
        return self

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, N, labels), 0-1, and boxes xyxy (B, N, 4) in pixels of the pictures given."""
        levels = pictures.permute(0, 3, 1, 2).to(next(self.parameters()).dtype)
        predictions = self.model(levels / 255).permute(0, 2, 1)
        return predictions[..., 4:], predictions[..., :4]


def load(folder: Path) -> Yolo:
    return Yolo(folder).eval()
