"""The starter captioner's encoder: a frozen ImageNet classifier whose findings a small GPT-2 reads.

A decoder trained on a thousand photographs cannot learn to see. So it is handed words: the concepts that a
linear layer names from the classifier's features (after the attributes of Wu et al. 2016,
https://arxiv.org/abs/1506.01144), and after them the grid of features, for what words leave out.
"""

from typing import Any

import timm
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class ConceptEncoderConfig(PreTrainedConfig):
    """What the encoder is made of. `concepts` are the words that the naming layer knows, in its order."""

    model_type = "concept_encoder"

    def __init__(
        self,
        architecture: str = "tf_efficientnet_lite0",
        num_classes: int = 1000,
        num_features: int = 1280,
        grid_size: int = 49,
        concepts: list[str] | None = None,
        concepts_shown: int = 16,
        hidden_size: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.architecture = architecture
        self.num_classes = num_classes
        self.num_features = num_features
        self.grid_size = grid_size
        self.concepts = concepts or []
        self.concepts_shown = concepts_shown
        self.hidden_size = hidden_size


class ConceptEncoder(PreTrainedModel):
    """Pictures to one sequence of vectors: the strongest concepts, strongest first, then the feature grid."""

    config_class = ConceptEncoderConfig
    main_input_name = "pixel_values"
    network: Any  # timm's network: its two halves, forward_features and forward_head, are in no type

    def __init__(self, config: ConceptEncoderConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.network = timm.create_model(config.architecture, num_classes=config.num_classes)
        self.name_concepts = nn.Linear(config.num_features + config.num_classes, len(config.concepts))
        self.concept = nn.Embedding(len(config.concepts), hidden)
        self.score = nn.Linear(1, hidden)
        self.project = nn.Linear(config.num_features, hidden)
        self.position = nn.Embedding(config.grid_size, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # the network comes whole from the classifier's file; only what was added here starts from noise
        if module in (self.name_concepts, self.concept, self.score, self.project, self.position):
            nn.init.normal_(module.weight, std=0.02)
        if module in (self.name_concepts, self.score, self.project):
            nn.init.zeros_(module.bias)

    def look(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pixels (B, 3, 224, 224) -> grid (B, 49, 1280) and class probabilities (B, 1000)."""
        features = self.network.forward_features(pixel_values)
        return features.flatten(2).transpose(1, 2), self.network.forward_head(features).softmax(dim=-1)

    def name(self, grid: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Grid (B, 49, 1280) and class probabilities (B, 1000) -> a logit for every concept (B, concepts)."""
        logits: torch.Tensor = self.name_concepts(torch.cat([grid.mean(dim=1), classes], dim=-1))
        return logits

    def show(self, logits: torch.Tensor) -> torch.Tensor:
        """Concept logits (B, concepts) -> the strongest as vectors (B, concepts_shown, hidden)."""
        strongest, concepts = logits.sigmoid().topk(self.config.concepts_shown, dim=-1)
        shown: torch.Tensor = self.norm(self.concept(concepts) + self.score(strongest.unsqueeze(-1)))
        return shown

    def place(self, grid: torch.Tensor) -> torch.Tensor:
        """Grid (B, 49, 1280) -> vectors that know their place (B, 49, hidden)."""
        placed: torch.Tensor = self.norm(self.project(grid) + self.position.weight)
        return placed

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Normalised pixels (B, 3, 224, 224) -> `last_hidden_state` (B, concepts_shown + 49, hidden)."""
        grid, classes = self.look(pixel_values)
        shown = torch.cat([self.show(self.name(grid, classes)), self.place(grid)], dim=1)
        return BaseModelOutput(last_hidden_state=shown)


def register() -> None:
    """Let transformers' auto classes, and so VisionEncoderDecoderModel.from_pretrained, know the encoder."""
    AutoConfig.register(ConceptEncoderConfig.model_type, ConceptEncoderConfig, exist_ok=True)
    AutoModel.register(ConceptEncoderConfig, ConceptEncoder, exist_ok=True)
