"""Any model that transformers' AutoModelForImageClassification loads, as a classifier's Network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from vision.core import engine
from vision.core.engine import Floats
from vision.core.predictor import load_whole
from vision.core.schemas import Pixels


class Logits(nn.Module):
    """A transformers classifier that returns its logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class TransformersNetwork:
    """A Network (classifier.py) around a transformers model, or its graph, and its own processor."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.labels: list[str] = [config.id2label[index] for index in range(len(config.id2label))]
        self.multi_label: bool = config.problem_type == "multi_label_classification" or config.num_labels == 1
        if engine.has_graph(folder, device):
            self.engine = engine.openvino(folder)
        else:
            self.module = Logits(load_whole(AutoModelForImageClassification, folder))
            self.engine = engine.eager(self.module, device)

    def preprocess(self, pictures: Sequence[Pixels]) -> Floats:
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        inputs = self.processor([Image.fromarray(pixels) for pixels in pictures], return_tensors="pt")
        values: Floats = inputs["pixel_values"].numpy()
        return values
