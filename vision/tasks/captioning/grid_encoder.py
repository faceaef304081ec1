"""The starter captioner's encoder: an ImageNet network's last feature map, read by one transformer block."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class GridEncoderConfig(PreTrainedConfig):
    """What the encoder is made of: one of timm's networks, and the block behind it."""

    model_type = "grid_encoder"

    def __init__(
        self,
        architecture: str = "tf_efficientnet_lite2",
        num_features: int = 1280,
        grid_size: int = 49,
        hidden_size: int = 256,
        num_heads: int = 4,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.architecture = architecture
        self.num_features = num_features
        self.grid_size = grid_size
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.dropout = dropout


class GridEncoder(PreTrainedModel):
    """Pictures to a sequence of vectors, one for each cell of the grid, row by row."""

    config_class = GridEncoderConfig
    main_input_name = "pixel_values"
    network: Any  # timm's network: forward_features is in no type

    def __init__(self, config: GridEncoderConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.network = timm.create_model(config.architecture, num_classes=0)
        self.project = nn.Linear(config.num_features, hidden)
        self.position = nn.Embedding(config.grid_size, hidden)
        self.block = Block(hidden, config.num_heads, qkv_bias=True, proj_drop=config.dropout)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The network and the block start as timm makes them, until weights are loaded.
        if module in (self.project, self.position):
            nn.init.normal_(module.weight, std=0.02)

    def see(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, 224, 224) -> the network's last feature map (B, 1280, 7, 7)."""
        grid: torch.Tensor = self.network.forward_features(pixel_values)
        return grid

    def read(self, grid: torch.Tensor) -> torch.Tensor:
        """Feature map (B, 1280, 7, 7) -> what the decoder looks at, (B, 49, hidden)."""
        placed = self.project(grid.flatten(2).transpose(1, 2)) + self.position.weight
        read: torch.Tensor = self.norm(self.block(self.dropout(placed)))
        return read

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Normalised pixels (B, 3, 224, 224) -> `last_hidden_state` (B, 49, hidden)."""
        return BaseModelOutput(last_hidden_state=self.read(self.see(pixel_values)))


def register() -> None:
    """Let transformers' auto classes, and so VisionEncoderDecoderModel.from_pretrained, know the encoder."""
    AutoConfig.register(GridEncoderConfig.model_type, GridEncoderConfig, exist_ok=True)
    AutoModel.register(GridEncoderConfig, GridEncoder, exist_ok=True)
