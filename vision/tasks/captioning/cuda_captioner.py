"""A captioner on a GPU: two recorded networks (captioner_parts.py) and the search of beam_search.py around them.

What a picture's sentences have said so far lies in a cache of a fixed size, and only the likeliest tokens come back to
the CPU, which searches while nothing larger than them moves.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer

from vision.core import cuda
from vision.core.cuda import BUCKETS, Launcher, Plan, Replay, Run
from vision.core.engine import GRAPH_CONFIG
from vision.core.pixels import Steps
from vision.core.schemas import Pixels
from vision.tasks.captioning.beam_search import BeamSearch, SearchRules
from vision.tasks.captioning.captioner import Sentence
from vision.tasks.captioning.captioner_parts import Family, SayFixed, See, family, rules
from vision.tasks.captioning.spec import CaptionOptions
from vision.tasks.captioning.transformers_captioner import load_model

MOST_BEAMS, MOST_TOKENS = 8, 128
"""That a caller may ask for. Searches that are not the model's own share one size of cache, for so many."""


class CudaWriter:
    """A Writer (captioner.py) for the families of captioner_parts.py."""

    def __init__(self, folder: Path, how: Plan) -> None:
        """Load from a folder in Hugging Face layout, weights as safetensors, with the Steps of its preprocessing.

        Raises ValueError where its preprocessing, its decoder or its search is none that is known.
        """
        self.preprocess = load_steps(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        parts = family(load_model(folder))
        self.rules = rules(parts)
        self._how, self._launcher = how, Launcher(how.device)
        self._modules = modules(parts, self.preprocess, self.rules)
        self._see = cuda.load(self._modules["see"], how, "see")
        self._say = cuda.load(self._modules["say"], how, "say")
        self._layers, self._heads, self._width = len(parts.layers), parts.heads, parts.width
        self._largest = BUCKETS[-1]
        self._searches: dict[tuple[int, int, int], _Search] = {}
        self._seen: dict[int, Replay] = {}

    def write(self, pictures: Sequence[Pixels], options: CaptionOptions) -> list[Sentence]:
        asked = self.rules.asked(options.max_new_tokens, options.num_beams)
        levels = self.preprocess.levels(pictures)
        found: list[BeamSearch] = []
        while len(found) < len(levels):
            some = levels[len(found) : len(found) + self._largest]
            try:
                with self._launcher.noticing(), self._launcher.lock, self._launcher.working():
                    found += self._search(some, asked)
            except torch.OutOfMemoryError:
                self._searches.clear()
                self._seen.clear()
                self._launcher.free()
                if len(some) == 1:
                    raise
                self._largest = cuda.bucket(len(some)) // 2
        texts: list[str] = self.tokenizer.batch_decode([one.best() for one in found], skip_special_tokens=True)
        return [Sentence(text, one.score()) for text, one in zip(texts, found, strict=True)]

    def parts(self, size: int) -> dict[str, tuple[nn.Module, list[Tensor], int]]:
        """Return the networks by name, with inputs of `size` pictures, and how often each is run for a sentence."""
        device, rules = self._launcher.device, self.rules
        pixels = torch.zeros(size, *self.preprocess.size, 3, dtype=torch.uint8, device=device)
        with torch.inference_mode():
            seen = [torch.zeros_like(part) for part in self._see(pixels)]
        said = torch.zeros(size, rules.num_beams, dtype=torch.int64, device=device)
        shape = (size, rules.num_beams, self._layers, 2, self._heads, rules.max_new_tokens, self._width)
        cache = torch.zeros(shape, dtype=self._how.dtype, device=device)
        position = torch.zeros(1, dtype=torch.int64, device=device)
        return {
            "see": (self._modules["see"], [pixels], 1),
            "say": (self._modules["say"], [said, said.clone(), position, cache, *seen], rules.max_new_tokens),
        }

    def _search(self, levels: Pixels, asked: SearchRules) -> list[BeamSearch]:
        """Return the search that found each picture's sentence; levels: (B, H, W, 3)."""
        see, search = self._recorded(cuda.bucket(len(levels)), asked)
        see.inputs[0][: len(levels)].copy_(torch.from_numpy(levels))
        see()
        searches = [BeamSearch(asked) for _ in levels]
        search.run(searches)
        return searches

    def _recorded(self, size: int, asked: SearchRules) -> tuple[Replay, "_Search"]:
        graphs, own = self._how.graphs, (self.rules.num_beams, self.rules.max_new_tokens)
        if size not in self._seen:
            height, width = self.preprocess.size
            pixels = torch.zeros(size, height, width, 3, dtype=torch.uint8, device=self._launcher.device)
            self._seen[size] = Replay(self._see, [pixels], self._launcher.pool, graphs=graphs)
        fits = asked.num_beams <= own[0] and asked.max_new_tokens <= own[1]
        beams, length = own if fits else (MOST_BEAMS, min(MOST_TOKENS, self.rules.positions))
        if (size, beams, length) not in self._searches:
            # Compiled is the model's own search.
            say = self._say if fits else cuda.load(self._modules["say"], Plan(self._how.device, self._how.dtype))
            shape = (size, beams, self._layers, 2, self._heads, length, self._width)
            cache = torch.zeros(shape, dtype=self._how.dtype, device=self._launcher.device)
            self._searches[size, beams, length] = _Search(say, cache, self._seen[size], self._launcher, graphs=graphs)
        return self._seen[size], self._searches[size, beams, length]


class _Search:
    """The recorded step for one number of pictures and of beams."""

    def __init__(self, say: Run, cache: Tensor, see: Replay, launcher: Launcher, *, graphs: bool) -> None:
        pictures, self.beams = cache.shape[:2]
        device = launcher.device
        self._asked = launcher.host((2, pictures, self.beams), torch.int64)
        asked = torch.zeros(2, pictures, self.beams, dtype=torch.int64, device=device)

        def step(asked: Tensor, position: Tensor, *seen: Tensor) -> tuple[Tensor, ...]:
            log_probs, tokens, said = say(asked[0], asked[1], position, cache, *seen)
            cache.copy_(said)
            return log_probs, tokens

        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._step = Replay(step, [asked, self._position, *see.outputs], launcher.pool, graphs=graphs)
        self._launcher = launcher
        self._answers = [launcher.host(output.shape, output.dtype) for output in self._step.outputs]

    def run(self, searches: Sequence[BeamSearch]) -> None:
        """Search until each has its sentence; each has a row of the networks' batch."""
        asked = self._asked.numpy()
        asked[:] = 0
        for row, search in enumerate(searches):
            asked[0, row] = search.last_tokens[0]
        self._position.zero_()
        running = dict(enumerate(searches))
        while running:
            log_probs, tokens = self._say()
            for row, search in list(running.items()):
                beams = len(search.last_tokens)
                kept = search.advance(log_probs[row, :beams], tokens[row, :beams])
                if search.done:
                    del running[row]
                    continue
                asked[0, row, : len(kept)], asked[1, row, : len(kept)] = search.last_tokens, kept

    def _say(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        self._step.inputs[0].copy_(self._asked, non_blocking=True)
        self._step()
        for output, answer in zip(self._step.outputs, self._answers, strict=True):
            answer.copy_(output, non_blocking=True)
        self._position += 1
        done = self._launcher.event()
        if done is not None:
            done.synchronize()
        log_probs, tokens = (answer.numpy() for answer in self._answers)
        return log_probs, tokens


def load_steps(folder: Path) -> Steps:
    if not (folder / GRAPH_CONFIG).is_file():
        raise ValueError("its preprocessing is not known here.")
    return Steps.load(folder)


def modules(parts: Family, steps: Steps, found: SearchRules) -> dict[str, nn.Module]:
    """Return the networks that may be compiled, by the names that a Plan has for them."""
    return {
        "see": cuda.behind(steps, See(parts)).eval(),
        "say": SayFixed(parts, found.suppress_tokens).eval(),
    }
