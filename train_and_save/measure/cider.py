"""CIDEr-D, how well sentences agree with people's, for many sentences at once.

Vedantam et al. 2015, https://arxiv.org/abs/1411.5726. A sentence is a row of token ids; PAD stands behind it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_and_save.measure.sentences import words

PAD = 0
LONGEST_GRAM = 4
BITS = 16
"""Of a token's id; four of them are one number."""


class CiderD:
    """CIDEr-D (0-10) against the references of photographs, int64 (P, R, T); a row of PAD is no reference."""

    def __init__(self, references: Tensor) -> None:
        self.grams = _grams(references)
        self.lengths = (references != PAD).sum(-1)
        ordered = self.grams.flatten(1).sort(dim=1).values
        first = ordered != ordered.roll(1, dims=1)
        first[:, 0] = True
        self.known, photographs = ordered[first].unique(return_counts=True)
        self.idf = np.log(len(references)) - photographs.double().log()
        self.rarest = float(np.log(len(references)))
        self.norms = self._norms(self.grams)

    def __call__(self, sentences: Tensor, photographs: Tensor) -> Tensor:
        """Sentences (S, T), each of the photograph in a row (S,) of the references -> scores, float64 (S,)."""
        grams, others = _grams(sentences), self.grams[photographs]
        idf, count = self._idf(grams), _count(grams, grams)
        norms = self._norms(grams)[:, None] * self.norms[photographs]
        there = _count(grams[:, None], others)
        # An n-gram that a sentence says twice stands at two places, so each place counts half.
        agreed = (torch.minimum(count[:, None], there) * there * (idf**2 / count.clamp(min=1))[:, None]).sum(-1)
        cosines = (agreed / norms.clamp(min=1e-12)).mean(-1)
        lengths = self.lengths[photographs]
        likeness = cosines * torch.exp(-(((sentences != PAD).sum(-1, keepdim=True) - lengths) ** 2) / 72.0)
        likeness = likeness.masked_fill(lengths == 0, 0.0)
        return 10 * likeness.sum(-1) / (lengths > 0).sum(-1)

    def _idf(self, grams: Tensor) -> Tensor:
        at = torch.searchsorted(self.known, grams).clamp(max=len(self.known) - 1)
        idf = torch.where(self.known[at] == grams, self.idf[at], self.rarest)
        return idf.masked_fill(grams == 0, 0.0)

    def _norms(self, grams: Tensor) -> Tensor:
        """N-grams (..., 4, T) -> the length of the vector of each n, (..., 4)."""
        return torch.cat([(_count(part, part) * self._idf(part) ** 2).sum(-1).sqrt() for part in grams.split(1024)])


def cider_d(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """CIDEr-D (0-10) of each picture's sentence, (P,), against its references; both in words, without an end."""
    numbers: dict[str, int] = {}
    rows = [
        [[numbers.setdefault(word, len(numbers) + 1) for word in words(line)] for line in (said, *known)]
        for said, known in zip(sentences, references, strict=True)
    ]
    most, longest = max(map(len, rows)), max(len(ids) for row in rows for ids in row)
    table = torch.zeros(len(rows), most, longest, dtype=torch.int64)
    for picture, row in enumerate(rows):
        for place, ids in enumerate(row):
            table[picture, place, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    score = CiderD(table[:, 1:])
    return torch.cat([score(table[part, 0], part) for part in torch.arange(len(rows)).split(64)]).numpy()


def _grams(sentences: Tensor) -> Tensor:
    """Sentences (..., T) -> the n-gram that begins at each place as one number, (..., 4, T); 0 where none does."""
    grams, gram = [], torch.zeros_like(sentences)
    for n in range(LONGEST_GRAM):
        token = torch.nn.functional.pad(sentences[..., n:], (0, min(n, sentences.shape[-1])), value=PAD)
        gram = (gram << BITS | token).masked_fill(token == PAD, 0)
        grams.append(gram)
    return torch.stack(grams, dim=-2)


def _count(grams: Tensor, others: Tensor) -> Tensor:
    """How often each n-gram of (..., T) stands among others (..., T)."""
    return (grams[..., :, None] == others[..., None, :]).sum(-1)
