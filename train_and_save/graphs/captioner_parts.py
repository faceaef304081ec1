"""The two networks that a captioner's search calls, cut from a transformers model: one sees, one says the next token.

transformers' own forward keeps its caches in objects that no graph can hold; here they go in and come out as tensors.
A family (Gpt2, Blip) has a model's pieces: `see` makes of pixels (B, 3, H, W) what the decoder looks at (B, P, hidden);
`step` takes a token's hidden state (R, 1, hidden) through a layer, with the layer's keys and values of the tokens said
so far (R, 2, heads, T, width), to which it adds the token's own, and of the picture seen.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Gpt2(nn.Module):
    """A VisionEncoderDecoderModel whose decoder is a GPT-2."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.lm_head = model.encoder, model.decoder.transformer, model.decoder.lm_head
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.layers = self.decoder.h
        self.heads: int = model.decoder.config.n_head
        self.positions: int = model.decoder.config.n_positions
        self.search = model.generation_config
        self.start, self.end = self.search.decoder_start_token_id, self.search.eos_token_id

    def see(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.project(self.encoder(pixel_values=pixel_values).last_hidden_state)
        return hidden

    def look_keys_values(self, layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = layer.crossattention.c_attn(hidden).chunk(2, dim=-1)
        return keys, values

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.decoder.wte(tokens) + self.decoder.wpe(positions)
        return embedded

    def step(self, layer: Any, hidden: Tensor, said: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        query, *own = layer.attn.c_attn(layer.ln_1(hidden)).chunk(3, dim=-1)
        said = _longer(said, *own)
        hidden = hidden + layer.attn.c_proj(_listen(query, said))
        looked = _look(layer.crossattention.q_attn(layer.ln_cross_attn(hidden)), keys, values)
        hidden = hidden + layer.crossattention.c_proj(looked)
        return hidden + layer.mlp(layer.ln_2(hidden)), said

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.decoder.ln_f(hidden))
        return logits


class Blip(nn.Module):
    """A BlipForConditionalGeneration."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.vision_model, model.text_decoder
        config = model.config.text_config
        self.layers = self.decoder.bert.encoder.layer
        self.heads: int = config.num_attention_heads
        self.positions: int = config.max_position_embeddings
        self.search = self.decoder.generation_config
        self.start, self.end = config.bos_token_id, config.sep_token_id

    def see(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(pixel_values=pixel_values)[0]
        return hidden

    def look_keys_values(self, layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        attention = layer.crossattention.self
        return attention.key(hidden), attention.value(hidden)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        embeddings = self.decoder.bert.embeddings
        embedded: Tensor = embeddings.LayerNorm(
            embeddings.word_embeddings(tokens) + embeddings.position_embeddings(positions)
        )
        return embedded

    def step(self, layer: Any, hidden: Tensor, said: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        attention = layer.attention.self
        said = _longer(said, attention.key(hidden), attention.value(hidden))
        hidden = layer.attention.output(_listen(attention.query(hidden), said), hidden)
        looked = _look(layer.crossattention.self.query(hidden), keys, values)
        return layer.feed_forward_chunk(layer.crossattention.output(looked, hidden)), said

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.decoder.cls(hidden)
        return logits


class See(nn.Module):
    """Pixels (B, 3, H, W) -> what the decoder looks at: for each layer keys (B, heads, width, P) and values (B, heads,
    P, width), as its multiplications take them."""

    def __init__(self, family: "Family") -> None:
        super().__init__()
        self.family = family

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        hidden = self.family.see(pixel_values)
        seen: list[Tensor] = []
        for layer in self.family.layers:
            keys, values = (_split(part, self.family.heads) for part in self.family.look_keys_values(layer, hidden))
            seen += [keys.transpose(-1, -2), values]
        return tuple(seen)


class Say(nn.Module):
    """One step of the decoder, for the same number of sentences (R / B) a picture."""

    def __init__(self, family: "Family") -> None:
        super().__init__()
        self.family = family

    def forward(self, tokens: Tensor, parents: Tensor, said: Tensor, *seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next token's log probabilities (R, vocabulary) and `said` with this token.

        tokens: (R,), of each sentence the last; parents: (R,), the row of `said` that each goes on from;
        said: (rows, layers, 2, heads, tokens before, width of a head); seen: as See returns it.
        """
        said = said[parents]
        hidden = self.family.embed(tokens, torch.full_like(tokens, said.shape[4])).unsqueeze(1)
        kept = []
        for index, layer in enumerate(self.family.layers):
            hidden, own = self.family.step(layer, hidden, said[:, index], seen[2 * index], seen[2 * index + 1])
            kept.append(own)
        return self.family.logits(hidden[:, 0]).log_softmax(-1), torch.stack(kept, 1)


Family = Gpt2 | Blip


def family(model: Any) -> Family:
    """Return a model in the pieces of its family. Raises ValueError for one of no family that is known."""
    match model.config.model_type:
        case "blip":
            return Blip(model)
        case "vision-encoder-decoder" if model.decoder.config.model_type == "gpt2":
            return Gpt2(model)
    raise ValueError(f"nobody has said how the decoder of a {type(model).__name__} is built.")


def _split(hidden: Tensor, heads: int) -> Tensor:
    """(B, positions, hidden) -> (B, heads, positions, width)."""
    return hidden.unflatten(-1, (heads, -1)).transpose(1, 2)


def _longer(said: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Said (R, 2, heads, T, width), and a token's keys and values (R, 1, hidden) behind it."""
    return torch.cat([said, torch.stack([_split(part, said.shape[2]) for part in (keys, values)], 1)], 3)


def _listen(query: Tensor, said: Tensor) -> Tensor:
    """Attend to the tokens so far: (R, 1, hidden) -> (R, 1, hidden)."""
    return _attend(query, said[:, 0].transpose(-1, -2), said[:, 1])


def _look(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend to pictures: a picture's sentences look as one sequence, so that its keys and values stand there once."""
    return _attend(query.reshape(keys.shape[0], -1, query.shape[-1]), keys, values).reshape(query.shape)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Query (B, Q, hidden), keys (B, heads, width, P), values (B, heads, P, width) -> (B, Q, hidden)."""
    weights = (_split(query, keys.shape[1]) @ keys / keys.shape[2] ** 0.5).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)
