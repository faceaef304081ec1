"""Captioning: any image-to-text model that transformers' generate() drives (the starter, ViT-GPT2, BLIP)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

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

from vision.models import concepts, load_whole
from vision.schemas import Caption, CaptionOptions, Card, Item, Model


class Captioner:
    def __init__(self, folder: Path, card: Card, device: str) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        concepts.register()
        self.card = card
        self.device = device
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # The only image-to-text family that transformers' auto class leaves out.
        paired = config.model_type == "vision-encoder-decoder"
        loader = VisionEncoderDecoderModel if paired else AutoModelForImageTextToText
        self.model = load_whole(loader, folder).to(device)

    @torch.inference_mode()
    def predict(self, items: Sequence[Item[CaptionOptions]]) -> list[Caption]:
        """Return one result an item, in order; items with the same options are generated together."""
        pixel_values = self._preprocess(items)
        groups: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[tuple(item.options.model_dump(exclude_none=True).items())].append(index)
        captions = [""] * len(items)
        for options, indices in groups.items():
            tokens = self.model.generate(pixel_values=pixel_values[indices], **dict(options))
            for index, text in zip(indices, self._postprocess(tokens), strict=True):
                captions[index] = text
        return [Caption(caption=caption, model=Model.of(self.card)) for caption in captions]

    def _preprocess(self, items: Sequence[Item[CaptionOptions]]) -> Tensor:
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        pictures = [Image.fromarray(item.pixels) for item in items]
        pixel_values: Tensor = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return pixel_values.to(self.device)

    def _postprocess(self, tokens: Tensor) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
