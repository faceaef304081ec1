"""Captioning: the steps that every captioner shares; behind them are two saved graphs, or a transformers model."""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from vision.core import engine
from vision.core.device import Device
from vision.core.engine import GRAPH, GRAPH_CONFIG, STREAMS, Floats, Graph, Hint, Running
from vision.core.pixels import Steps
from vision.core.schemas import Card, Item, Model, Pixels
from vision.tasks.captioning.beam_search import BeamSearch, SearchRules
from vision.tasks.captioning.spec import Caption, CaptionOptions

log = logging.getLogger(__name__)

SEEN = 4
"""Pictures that a graph sees at once; a CPU is no faster with more."""

CALM_SECONDS = 0.25
"""Who comes so soon after callers met each other will hardly be alone, and is given one core."""

DECODER_GRAPH = "openvino_step.xml"


class Sentence(NamedTuple):
    text: str
    score: float
    """exp of the mean log probability of its tokens, 0-1."""


class Writer(Protocol):
    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[Sentence]:
        """Return a sentence a picture; options that are None are the model's own."""
        ...


def load_writer(folder: Path, device: Device) -> Writer:
    how = device.how
    if how is None and engine.has_graph(folder, device.name) and (folder / DECODER_GRAPH).is_file():
        has_streams = engine.read(folder / GRAPH).has_rt_info(STREAMS)
        return StreamsWriter(folder) if has_streams else GraphWriter(folder)
    from vision.tasks.captioning.transformers_captioner import TransformersWriter

    if how is None:
        return TransformersWriter(folder, device.name)
    from vision.tasks.captioning.cuda_captioner import CudaWriter

    try:
        return CudaWriter(folder, how)
    except ValueError as error:
        log.warning("written by transformers' generate(), step by step: %s", error)
        return TransformersWriter(folder, how.device, how.dtype)


class Captioner:
    def __init__(self, folder: Path, card: Card, device: Device) -> None:
        """Load from a folder in Hugging Face layout, weights as safetensors, with or without graphs."""
        self.card = card
        self.writer = load_writer(folder, device)

    def predict(self, items: Sequence[Item[CaptionOptions]]) -> list[Caption]:
        """Return one result an item, in order; items with the same options are written together."""
        groups: dict[tuple[int | None, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[item.options.max_new_tokens, item.options.num_beams].append(index)
        captions: dict[int, Caption] = {}
        for indices in groups.values():
            said = self.writer.write([items[index].pixels for index in indices], items[indices[0]].options)
            for index, (text, score) in zip(indices, said, strict=True):
                captions[index] = Caption(caption=text.strip(), score=round(score, 6), model=Model.of(self.card))
        return [captions[index] for index in range(len(items))]


class GraphWriter:
    """A Writer as train_and_save/graphs/export.py saves it: a graph that sees and one that says the next token.

    Between them goes what transformers calls the cross-attention's keys and values, once a picture; the second graph
    keeps its own of the tokens so far. A picture whose sentence is found leaves the batch.
    """

    def __init__(self, folder: Path, hint: Hint = "LATENCY") -> None:
        config = json.loads((folder / GRAPH_CONFIG).read_text())
        self.preprocess = Steps.load(folder)
        self.rules = SearchRules(**config["rules"])
        self.cache: list[int] = config["cache"]  # layers, 2 for keys and values, heads, width of a head
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.see, self.say = (Graph(engine.read(folder / name), hint) for name in (GRAPH, DECODER_GRAPH))

    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[Sentence]:
        # Some at a time, so that who writes beside this call has a turn.
        parts = [self.see(self.preprocess(pictures[at : at + SEEN])) for at in range(0, len(pictures), SEEN)]
        seen = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        searches = [BeamSearch(self.rules.asked(options.max_new_tokens, options.num_beams)) for _ in pictures]
        self._search(seen, searches)
        texts = self.tokenizer.decode_batch([search.best() for search in searches])
        return [Sentence(text, search.score()) for text, search in zip(texts, searches, strict=True)]

    def nothing_said(self, sentences: int) -> Floats:
        """Return the cache of sentences without a token yet."""
        return np.zeros((sentences, *self.cache[:3], 0, self.cache[3]), np.float32)

    def _search(self, seen: Sequence[Floats], searches: Sequence[BeamSearch]) -> None:
        """Search until all are done; seen: arrays (B, ...), as captioner_parts.py has them."""
        running = list(searches)
        said, parents = self.nothing_said(len(running)), np.arange(len(running))
        while running:
            tokens = np.array([token for search in running for token in search.last_tokens])
            log_probs, said = self.say(tokens, parents, said, *seen)
            rows = np.split(np.arange(len(tokens)), len(running))
            kept = [own[search.advance(log_probs[own])] for own, search in zip(rows, running, strict=True)]
            going = [index for index, search in enumerate(running) if not search.done]
            if len(going) < len(running):
                running, seen = [running[index] for index in going], [part[going] for part in seen]
            parents = np.concatenate([kept[index] for index in going]) if going else parents


class StreamsWriter:
    """A Writer that gives each core some of many pictures; cores that share a search wait for each other.

    A few pictures that come alone have all cores, which makes their sentence a fifth faster for 1.7 times the CPU.
    """

    def __init__(self, folder: Path) -> None:
        self._alone, self._beside = GraphWriter(folder), GraphWriter(folder, "THROUGHPUT")
        self._streams = self._beside.say.streams
        self._workers = ThreadPoolExecutor(self._streams)
        self._running = Running()
        self._calm_from = 0.0

    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[Sentence]:
        with self._running.with_these(len(pictures)) as running:
            now = monotonic()
            if running > len(pictures) or running >= 2 * SEEN:
                self._calm_from = now + CALM_SECONDS
            if now >= self._calm_from:
                return self._alone.write(pictures, options)
            some = max(SEEN, ceil(len(pictures) / self._streams))
            first, *parts = (pictures[at : at + some] for at in range(0, len(pictures), some))
            others = self._workers.map(lambda part: self._beside.write(part, options), parts)
            # Here and not in a worker, which may have much to do for another thread.
            sentences = self._beside.write(first, options)
            return sentences + [sentence for part in others for sentence in part]
