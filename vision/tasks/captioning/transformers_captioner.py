"""Any model that writes about a picture through transformers' generate() (the starter, ViT-GPT2, BLIP), as a Writer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    VisionEncoderDecoderModel,
)

from vision.core.predictor import load_whole
from vision.core.schemas import Pixels
from vision.tasks.captioning import concepts
from vision.tasks.captioning.spec import CaptionOptions


class TransformersWriter:
    """A Writer (captioner.py) around a transformers model and its own processor, tokenizer and search."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype = torch.float32) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.device, self.dtype = device, dtype
        concepts.register()
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = load_model(folder).to(device, dtype)

    @torch.inference_mode()
    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[str]:
        tokens = self.model.generate(pixel_values=self.preprocess(pictures), **options.model_dump(exclude_none=True))
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def preprocess(self, pictures: Sequence[Pixels]) -> Tensor:
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        inputs = self.processor([Image.fromarray(pixels) for pixels in pictures], return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"].to(self.device, self.dtype)
        return pixel_values


def load_model(folder: Path) -> Any:
    """Load a captioner in float32 onto the CPU."""
    concepts.register()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # The only image-to-text family that transformers' auto class leaves out.
    paired = config.model_type == "vision-encoder-decoder"
    return load_whole(VisionEncoderDecoderModel if paired else AutoModelForImageTextToText, folder)
