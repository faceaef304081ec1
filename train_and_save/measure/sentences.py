"""Captions: reading a table of them, and measuring how well a captioner's sentences agree with people's."""

import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from torchmetrics.text import BLEUScore


def words(sentence: str) -> list[str]:
    """The lower-case words of a sentence, punctuation dropped: what BLEU is counted on."""
    return re.findall(r"[a-z0-9']+", sentence.lower())


def read_captions(photos: Path) -> dict[str, list[str]]:
    """File name -> its sentences as photos/captions.tsv has them, in the order of the file."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in (photos / "captions.tsv").read_text().splitlines():
        name, sentence = line.split("\t")
        captions[name].append(sentence)
    return dict(captions)


def quality(sentences: list[str], references: list[list[str]]) -> dict[str, float]:
    """Return how good sentences are against each picture's references.

    Corpus BLEU-1 and BLEU-4 (0-100; Papineni et al. 2002), and as shares (0-1) the most frequent sentence's and that
    of sentences in which a pair of words stands twice.
    """
    spoken = [" ".join(words(sentence)) for sentence in sentences]
    known = [[" ".join(words(sentence)) for sentence in picture] for picture in references]
    pairs = [Counter(pairwise(line.split())) for line in spoken]
    return {
        "bleu_1": 100 * float(BLEUScore(n_gram=1)(spoken, known)),
        "bleu_4": 100 * float(BLEUScore(n_gram=4)(spoken, known)),
        "most_frequent": Counter(spoken).most_common(1)[0][1] / len(spoken),
        "repeats": sum(max(pair.values(), default=0) > 1 for pair in pairs) / len(pairs),
    }
