"""The search for one picture's sentence, token by token, as transformers' generate() goes about it.

generate() itself would bring torch and transformers into the process. What it is asked for here: beams, no n-gram
twice, tokens never said, a length penalty, no early stopping; with one beam it is the greedy search.
"""

from dataclasses import dataclass, replace
from math import exp
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vision.core.engine import Floats


@dataclass(frozen=True)
class SearchRules:
    """Of a search, named as in transformers' GenerationConfig."""

    decoder_start_token_id: int
    eos_token_id: int
    max_new_tokens: int
    num_beams: int
    no_repeat_ngram_size: int
    """0 lets everything be said again."""
    suppress_tokens: tuple[int, ...]
    positions: int
    """How many tokens the decoder can count."""
    length_penalty: float = 1.0
    """Sentences are ranked by their log probability over their tokens to this power: less than 1 favours short ones."""

    def asked(self, max_new_tokens: int | None, num_beams: int | None) -> Self:
        """Return these rules with a client's wishes; a sentence longer than the decoder counts ends there."""
        longest = min(max_new_tokens or self.max_new_tokens, self.positions)
        return replace(self, max_new_tokens=longest, num_beams=num_beams or self.num_beams)


class BeamSearch:
    def __init__(self, rules: SearchRules) -> None:
        self.rules = rules
        self.done = False
        self._beams: list[list[int]] = [[rules.decoder_start_token_id]]
        self._scores = np.zeros(1, np.float32)
        self._finished: list[tuple[float, list[int]]] = []

    @property
    def last_tokens(self) -> list[int]:
        """Of each beam, best first: what the decoder is to read next."""
        return [beam[-1] for beam in self._beams]

    def best(self) -> list[int]:
        """Return the tokens of the sentence found, with the start and, where it came to one, the end."""
        return self._finished[0][1]

    def score(self) -> float:
        """Return exp of the mean log probability of that sentence's tokens, its end included: 0-1."""
        rank, sentence = self._finished[0]
        return min(1.0, exp(rank * (len(sentence) - 1) ** (self.rules.length_penalty - 1)))

    def advance(self, log_probs: Floats, tokens: NDArray[np.int64] | None = None) -> NDArray[np.intp]:
        """Take the next token's log probabilities; return which beam each new one goes on from.

        They are of the whole vocabulary, (beams, vocabulary), or of the `tokens`, both (beams, N), without those that
        are never said.
        """
        width, length = self.rules.num_beams, len(self._beams[0])
        for index, (row, beam) in enumerate(zip(log_probs, self._beams, strict=True)):
            if tokens is None:
                row[[*self.rules.suppress_tokens, *self._repeats(beam)]] = -np.inf
            elif repeats := self._repeats(beam):
                row[np.isin(tokens[index], repeats)] = -np.inf
        totals = (log_probs + self._scores[:, None]).ravel()
        # Twice the beams, so that enough go on when the best of them end.
        likely = np.argpartition(-totals, 2 * width)[: 2 * width]
        likely = likely[np.argsort(-totals[likely], kind="stable")]
        parents, said = np.divmod(likely, log_probs.shape[1])
        if tokens is not None:
            said = tokens[parents, said]
        ends = (said == self.rules.eos_token_id) | (length == self.rules.max_new_tokens)
        sentences = [[*self._beams[parent], token] for parent, token in zip(parents, said.tolist(), strict=True)]
        self._finished += [
            (float(totals[likely[rank]]) / length**self.rules.length_penalty, sentences[rank])
            for rank in range(width)
            if ends[rank]
        ]
        self._finished = sorted(self._finished, key=lambda found: -found[0])[:width]
        goes_on = np.flatnonzero(~ends)[:width]
        self._beams = [sentences[rank] for rank in goes_on]
        self._scores = totals[likely[goes_on]]
        self.done = not self._beams or self._is_settled(length)
        return parents[goes_on]

    def _is_settled(self, length: int) -> bool:
        if len(self._finished) < self.rules.num_beams:
            return False
        best = self._scores[0] / length**self.rules.length_penalty
        return self.rules.num_beams == 1 or bool(best <= self._finished[-1][0])

    def _repeats(self, beam: list[int]) -> list[int]:
        """Return tokens that would end an n-gram said before."""
        size = self.rules.no_repeat_ngram_size
        if not size:
            return []
        begun = beam[len(beam) - size + 1 :]
        return [beam[at + size - 1] for at in range(len(beam) - size + 1) if beam[at : at + size - 1] == begun]
