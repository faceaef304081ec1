"""The two networks that a captioner's search calls, cut from a transformers model: one sees, one says the next token.

transformers' own forward keeps its caches in objects that no graph can hold; here they go in and come out as tensors.
A family (Gpt2, Blip) has a model's pieces: `see` makes of pixels (B, 3, H, W) what the decoder looks at (B, P, hidden);
`step` takes a token's hidden state (R, 1, hidden) through a layer, with the layer's keys and values of the tokens said
so far, to which it adds the token's own, and of the picture seen.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vision.tasks.captioning.beam_search import SearchRules

PLAIN_SEARCH = {
    "do_sample": False,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "num_return_sequences": 1,
}
"""What beam_search.py leaves out of transformers' GenerationConfig."""


class Said(Protocol):
    """A layer's keys and values of the tokens so far, of R sentences."""

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Take a token's, each (R, 1, hidden)."""
        ...

    def listen(self, query: Tensor) -> Tensor:
        """Attend to them: (R, 1, hidden) -> (R, 1, hidden)."""
        ...


class Growing:
    """They lie in one tensor (R, 2, heads, T, width), which gets longer with each token."""

    def __init__(self, cache: Tensor) -> None:
        self.cache = cache

    def add(self, keys: Tensor, values: Tensor) -> None:
        new = torch.stack([_split(part, self.cache.shape[2]) for part in (keys, values)], 1)
        self.cache = torch.cat([self.cache, new], 3)

    def listen(self, query: Tensor) -> Tensor:
        return _attend(query, self.cache[:, 0].transpose(-1, -2), self.cache[:, 1])


class Fixed:
    """They lie in one tensor that is as long as a sentence may be; `position` (1,) says where the next token goes."""

    def __init__(self, cache: Tensor, position: Tensor) -> None:
        self.cache, self.position = cache, position

    def add(self, keys: Tensor, values: Tensor) -> None:
        new = torch.stack([_split(part, self.cache.shape[2]) for part in (keys, values)], 1)
        self.cache = self.cache.index_copy(3, self.position, new)

    def listen(self, query: Tensor) -> Tensor:
        later = torch.arange(self.cache.shape[3], device=query.device) > self.position
        return _attend(query, self.cache[:, 0].transpose(-1, -2), self.cache[:, 1], later)


class Gpt2(nn.Module):
    """A VisionEncoderDecoderModel whose decoder is a GPT-2."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.lm_head = model.encoder, model.decoder.transformer, model.decoder.lm_head
        self.project = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.layers = self.decoder.h
        self.heads: int = model.decoder.config.n_head
        self.width: int = model.decoder.config.n_embd // self.heads
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

    def step(self, layer: Any, hidden: Tensor, said: Said, keys: Tensor, values: Tensor) -> Tensor:
        query, *own = layer.attn.c_attn(layer.ln_1(hidden)).chunk(3, dim=-1)
        said.add(*own)
        hidden = hidden + layer.attn.c_proj(said.listen(query))
        looked = _look(layer.crossattention.q_attn(layer.ln_cross_attn(hidden)), keys, values)
        hidden = hidden + layer.crossattention.c_proj(looked)
        after: Tensor = hidden + layer.mlp(layer.ln_2(hidden))
        return after

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
        self.width: int = config.hidden_size // self.heads
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

    def step(self, layer: Any, hidden: Tensor, said: Said, keys: Tensor, values: Tensor) -> Tensor:
        attention = layer.attention.self
        said.add(attention.key(hidden), attention.value(hidden))
        hidden = layer.attention.output(said.listen(attention.query(hidden)), hidden)
        looked = _look(layer.crossattention.self.query(hidden), keys, values)
        after: Tensor = layer.feed_forward_chunk(layer.crossattention.output(looked, hidden))
        return after

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
            own = Growing(said[:, index])
            hidden = self.family.step(layer, hidden, own, seen[2 * index], seen[2 * index + 1])
            kept.append(own.cache)
        return self.family.logits(hidden[:, 0]).log_softmax(-1), torch.stack(kept, 1)


class SayFixed(nn.Module):
    """The same step in tensors of fixed sizes, as a CUDA graph takes them; only the likeliest tokens are returned."""

    LIKELIEST = 64
    """Enough for twice the most beams that may be asked for, and those tokens that would end an n-gram said before."""

    def __init__(self, family: "Family", never: Sequence[int]) -> None:
        """Take the tokens that are never said."""
        super().__init__()
        self.family = family
        self.never: Tensor
        self.register_buffer("never", torch.tensor(list(never), dtype=torch.int64))

    def forward(
        self, tokens: Tensor, parents: Tensor, position: Tensor, cache: Tensor, *seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log probabilities (B, W, LIKELIEST) of the likeliest next tokens, those tokens, and the next cache.

        tokens: (B, W), of each of a picture's W sentences the last; parents: (B, W), which of the picture's sentences
        each goes on from; position: (1,), tokens before; cache: (B, W, layers, 2, heads, T, width).
        """
        pictures, beams = tokens.shape
        said = cache[torch.arange(pictures, device=tokens.device)[:, None], parents].flatten(0, 1)
        hidden = self.family.embed(tokens.flatten(), position.expand(pictures * beams)).unsqueeze(1)
        kept = []
        for index, layer in enumerate(self.family.layers):
            own = Fixed(said[:, index], position)
            hidden = self.family.step(layer, hidden, own, seen[2 * index], seen[2 * index + 1])
            kept.append(own.cache)
        log_probs = self.family.logits(hidden[:, 0]).float().log_softmax(-1)
        log_probs = log_probs.index_fill(1, self.never, float("-inf"))
        best = log_probs.unflatten(0, (pictures, beams)).topk(min(self.LIKELIEST, log_probs.shape[1]))
        return best.values, best.indices, torch.stack(kept, 1).unflatten(0, (pictures, beams))


Family = Gpt2 | Blip


def family(model: Any) -> Family:
    """Return a model in the pieces of its family. Raises ValueError for one of no family that is known."""
    match model.config.model_type:
        case "blip":
            return Blip(model)
        case "vision-encoder-decoder" if model.decoder.config.model_type == "gpt2":
            return Gpt2(model)
    raise ValueError(f"nobody has said how the decoder of a {type(model).__name__} is built.")


def rules(parts: Family) -> SearchRules:
    """Return the rules of a model's search. Raises ValueError where it has one that beam_search.py does not know."""
    search = parts.search
    for name, plain in PLAIN_SEARCH.items():
        if getattr(search, name, None) not in (None, plain):
            raise ValueError(f"its search has {name}, which is not known here.")
    return SearchRules(
        decoder_start_token_id=parts.start,
        eos_token_id=parts.end,
        max_new_tokens=search.max_new_tokens or (search.max_length or 21) - 1,  # that length counts the start
        num_beams=search.num_beams or 1,
        no_repeat_ngram_size=search.no_repeat_ngram_size or 0,
        suppress_tokens=tuple(search.suppress_tokens or []),
        positions=parts.positions,
        length_penalty=1.0 if search.length_penalty is None else search.length_penalty,
    )


def _split(hidden: Tensor, heads: int) -> Tensor:
    """(B, positions, hidden) -> (B, heads, positions, width)."""
    return hidden.unflatten(-1, (heads, -1)).transpose(1, 2)


def _look(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend to pictures: a picture's sentences look as one sequence, so that its keys and values stand there once."""
    return _attend(query.reshape(keys.shape[0], -1, query.shape[-1]), keys, values).reshape(query.shape)


def _attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Query (B, Q, hidden), keys (B, heads, width, P), values (B, heads, P, width) -> (B, Q, hidden).

    hidden (P,) says what is not to be attended to.
    """
    weights = _split(query, keys.shape[1]) @ keys / keys.shape[2] ** 0.5
    if hidden is not None:
        weights = weights.masked_fill(hidden, float("-inf"))
    return (weights.softmax(-1) @ values).transpose(1, 2).flatten(2)
