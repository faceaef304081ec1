"""Ultralytics' YOLO detectors, rebuilt from a configuration and safetensors; no pickle is read here.

Preprocessing and thresholds are those of Ultralytics' own predict, so that both give the same boxes.
ultralytics is AGPL-3.0: it is imported only where a YOLO is served.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from vision.models.detector import Found, by_shape
from vision.schemas import Pixels

NMS_IOU = 0.7
MAX_DETECTIONS = 300


class YoloNetwork:
    """A Network (detector.py): letterbox to the smallest rectangle, forward, NMS where the model needs it."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load from a folder with config.json (`yaml`, `labels`, `side`) and model.safetensors."""
        config = json.loads((folder / "config.json").read_text())
        self.labels: list[str] = config["labels"]
        self.device = device
        self.model = DetectionModel(config["yaml"], nc=len(self.labels), verbose=False)
        self.model.load_state_dict({name: w.float() for name, w in load_file(folder / "model.safetensors").items()})
        self.model.eval().fuse(verbose=False).to(device)
        self.letterbox = LetterBox(config["side"], auto=True, stride=int(self.model.stride.max()))

    @torch.inference_mode()
    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        inputs = [torch.from_numpy(self._preprocess(pixels)) for pixels in pictures]
        found: dict[int, Found] = {}
        for indices in by_shape(inputs):
            batch = torch.stack([inputs[index] for index in indices]).to(self.device).float() / 255
            predictions = non_max_suppression(
                self.model(batch),
                min_score,
                NMS_IOU,
                max_det=MAX_DETECTIONS,
                nc=len(self.labels),
                end2end=getattr(self.model, "end2end", False),
                max_time_img=60,  # a slow machine must not give fewer objects
            )
            for index, rows in zip(indices, predictions, strict=True):
                found[index] = self._postprocess(rows.cpu(), batch, pictures[index])
        return [found[index] for index in range(len(pictures))]

    def _preprocess(self, pixels: Pixels) -> Pixels:
        """(H, W, 3) -> the same letterboxed, (3, h, w), uint8."""
        return np.ascontiguousarray(np.asarray(self.letterbox(image=pixels)).transpose(2, 0, 1))

    def _postprocess(self, rows: Tensor, batch: Tensor, pixels: Pixels) -> Found:
        """Rows (N, 6) of xyxy, score and class in a letterboxed picture of `batch` -> what is found in the picture."""
        rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
        height, width = pixels.shape[:2]
        boxes = torch.as_tensor(scale_boxes((batch.shape[2], batch.shape[3]), rows[:, :4].clone(), (height, width)))
        normalized = boxes / torch.tensor([width, height, width, height])
        return Found(rows[:, 4].numpy(), rows[:, 5].long().numpy(), normalized.numpy())
