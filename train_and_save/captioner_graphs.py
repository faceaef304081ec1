"""The two networks that a captioner's search calls, cut from a transformers encoder with a GPT-2 as its decoder.

transformers' own forward keeps its caches in objects that no graph can hold; here they go in and come out as tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn


class See(nn.Module):
    """Pixels (B, 3, H, W) -> what the decoder looks at: (B, layers, 2 for keys and values, heads, positions, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.blocks = model.decoder.transformer.h
        self.heads = model.decoder.config.n_head

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.encoder(pixel_values=pixel_values).last_hidden_state
        pairs = [block.crossattention.c_attn(hidden).chunk(2, dim=-1) for block in self.blocks]
        return torch.stack(
            [torch.stack([_split(keys, self.heads), _split(values, self.heads)], 1) for keys, values in pairs], 1
        )


class Say(nn.Module):
    """One step of the decoder, for the same number of sentences (R / B) a picture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder.transformer
        self.lm_head = model.decoder.lm_head
        self.heads = model.decoder.config.n_head

    def forward(self, tokens: Tensor, parents: Tensor, said: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next token's log probabilities (R, vocabulary) and `said` with this token.

        tokens: (R,), of each sentence the last; parents: (R,), the row of `said` that each goes on from;
        said: (rows, layers, 2, heads, tokens before, width of a head); seen: as See returns it.
        """
        said = said[parents]
        position = torch.full_like(tokens, said.shape[4])
        hidden = (self.decoder.wte(tokens) + self.decoder.wpe(position)).unsqueeze(1)
        kept = []
        for index, block in enumerate(self.decoder.h):
            parts = block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1)
            query, key, value = (_split(part, self.heads) for part in parts)
            keys, values = torch.cat([said[:, index, 0], key], 2), torch.cat([said[:, index, 1], value], 2)
            kept.append(torch.stack([keys, values], 1))
            hidden = hidden + block.attn.c_proj(_attend(query, keys, values))
            # A picture's sentences look at it as one sequence, so that its keys and values stand there once.
            rows = block.crossattention.q_attn(block.ln_cross_attn(hidden)).reshape(seen.shape[0], -1, hidden.shape[-1])
            looked = _attend(_split(rows, self.heads), seen[:, index, 0], seen[:, index, 1])
            hidden = hidden + block.crossattention.c_proj(looked).reshape(hidden.shape)
            hidden = hidden + block.mlp(block.ln_2(hidden))
        logits = self.lm_head(self.decoder.ln_f(hidden[:, 0]))
        return logits.log_softmax(-1), torch.stack(kept, 1)


def _split(hidden: Tensor, heads: int) -> Tensor:
    """(B, positions, hidden) -> (B, heads, positions, width)."""
    return hidden.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Each (B, heads, positions, width) -> (B, positions of the query, hidden)."""
    weights = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)
