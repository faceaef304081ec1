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
from vision.tasks.captioning import grid_encoder
from vision.tasks.captioning.captioner import Sentence
from vision.tasks.captioning.spec import CaptionOptions


class TransformersWriter:
    """A Writer (captioner.py) around a transformers model and its own processor, tokenizer and search."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype = torch.float32) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.device, self.dtype = device, dtype
        grid_encoder.register()
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = load_model(folder).to(device, dtype)
        end = self.model.generation_config.eos_token_id
        # BLIP's end is the token that separates sentences in BERT.
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id, *(end if isinstance(end, list) else [end])}
        self._ends = torch.tensor([token for token in ends if token is not None])

    @torch.inference_mode()
    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[Sentence]:
        pixel_values, wishes = self.preprocess(pictures), options.model_dump(exclude_none=True)
        found = self.model.generate(
            pixel_values=pixel_values, **wishes, return_dict_in_generate=True, output_logits=True
        )
        texts: list[str] = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        scores = self._mean_log_probs(found).clamp(max=0).exp().tolist()
        return [Sentence(text, score) for text, score in zip(texts, scores, strict=True)]

    def _mean_log_probs(self, found: Any) -> Tensor:
        """Of each sentence's tokens, its end included and no prompt: (B,)."""
        steps, rows = len(found.logits), getattr(found, "beam_indices", None)
        if rows is None:  # without beams each row goes on from itself
            rows = torch.arange(len(found.sequences), device=self.device)[:, None].expand(-1, steps)
        said = found.sequences[:, -rows.shape[1] :]
        ends = torch.isin(said, self._ends.to(said.device))
        # Behind a sentence stands -1 as its beam, or padding behind its first end.
        heard = (rows >= 0) & (ends.cumsum(1) - ends.long() == 0)
        log_probs = [
            logits.float().log_softmax(-1)[rows[:, step].clamp(min=0), said[:, step]]
            for step, logits in enumerate(found.logits[: rows.shape[1]])
        ]
        total: Tensor = (torch.stack(log_probs, 1) * heard).nan_to_num(0.0).sum(1)
        return total / heard.sum(1)

    def preprocess(self, pictures: Sequence[Pixels]) -> Tensor:
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        inputs = self.processor([Image.fromarray(pixels) for pixels in pictures], return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"].to(self.device, self.dtype)
        return pixel_values


def load_model(folder: Path) -> Any:
    """Load a captioner in float32 onto the CPU."""
    grid_encoder.register()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # The only image-to-text family that transformers' auto class leaves out.
    paired = config.model_type == "vision-encoder-decoder"
    return load_whole(VisionEncoderDecoderModel if paired else AutoModelForImageTextToText, folder)
