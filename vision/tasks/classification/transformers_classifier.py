"""Any model that transformers' AutoModelForImageClassification loads, as a ClassifierNetwork."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from vision.core import engine
from vision.core.engine import GRAPH_CONFIG, Floats
from vision.core.pixels import Steps
from vision.core.predictor import load_whole
from vision.core.schemas import Pixels

if TYPE_CHECKING:
    from vision.core.cuda import Plan


class Logits(nn.Module):
    """A transformers classifier that returns its logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class TransformersNetwork:
    """A ClassifierNetwork (classifier.py) around a transformers model, or its graph, and its own processor."""

    def __init__(self, folder: Path, device: str, how: "Plan | None" = None) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.labels: list[str] = [config.id2label[index] for index in range(len(config.id2label))]
        self.multi_label: bool = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.steps: Steps | None = None
        self.module: nn.Module
        self.engine: engine.Engine
        if how is None and engine.has_graph(folder, device):
            self.engine = engine.openvino(folder)
            return
        self.module = Logits(load_whole(AutoModelForImageClassification, folder))
        if how is None:
            self.engine = engine.eager(self.module, device)
            return
        from vision.core import cuda

        cuda.unmasked(self.module.model)
        self.steps = Steps.load(folder) if (folder / GRAPH_CONFIG).is_file() else None
        self.module = cuda.Outputs(cuda.behind(self.steps, self.module)).eval()
        self.engine = cuda.engine(self.module, how)

    def preprocess(self, pictures: Sequence[Pixels]) -> NDArray[Any]:
        if self.steps is not None:
            return self.steps.levels(pictures)
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        inputs = self.processor([Image.fromarray(pixels) for pixels in pictures], return_tensors="pt")
        values: Floats = inputs["pixel_values"].numpy()
        return values
