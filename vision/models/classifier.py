"""Classification: any model that transformers' AutoModelForImageClassification loads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vision.models import load_whole
from vision.schemas import Card, Classification, ClassifyOptions, Item, Label, Model


class Classifier:
    def __init__(self, folder: Path, card: Card, device: str) -> None:
        """Load from a folder in Hugging Face layout; weights are safetensors."""
        self.card = card
        self.device = device
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.model = load_whole(AutoModelForImageClassification, folder).to(device)
        self.labels: dict[int, str] = self.model.config.id2label

    @torch.inference_mode()
    def predict(self, items: Sequence[Item[ClassifyOptions]]) -> list[Classification]:
        """Return one result an item, in order."""
        scores = self._scores(self.model(self._preprocess(items)).logits).cpu()
        return [self._postprocess(row, item.options) for row, item in zip(scores, items, strict=True)]

    def _preprocess(self, items: Sequence[Item[ClassifyOptions]]) -> Tensor:
        # PIL pictures, since processors guess the layout of arrays and guess wrong at a height of 3.
        pictures = [Image.fromarray(item.pixels) for item in items]
        pixel_values: Tensor = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return pixel_values.to(self.device)

    def _scores(self, logits: Tensor) -> Tensor:
        """(B, labels) logits -> scores: each label for itself where the model says so, else a distribution."""
        if self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            return logits.sigmoid()
        return logits.softmax(dim=1)

    def _postprocess(self, scores: Tensor, options: ClassifyOptions) -> Classification:
        best = scores.topk(min(options.top_k, len(scores)))
        labels = [
            Label(label=self.labels[index], score=round(score, 6))
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if score >= options.min_score
        ]
        return Classification(labels=labels, model=Model.of(self.card))
