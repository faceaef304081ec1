"""How well sunglasses are recognised, on photographs that were looked at one by one.

    python -m benchmarks.sunglasses

sunglasses.tsv names photographs of ../shared/photos/captions8k, and whether the main person wears sunglasses (not
goggles, glasses or sunglasses on the head). In a hundred draws, half of them choose a threshold, and the other half
measure it. Exit status 1 where the shipped rule is less precise than 0.8 on all of them.
"""

import asyncio
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from statsmodels.stats.proportion import proportion_confint

from testkit.photographs import SHARED
from vision.bento import store
from vision.core import subject
from vision.core.device import CPU
from vision.core.errors import VisionError
from vision.core.look import Question, ServedModel, in_process, look_through
from vision.insights import rules
from vision.insights.pictures import DETECTION, Picture
from vision.tasks import TASKS
from vision.tasks.classification.spec import ClassifyOptions
from vision.tasks.detection.spec import DetectOptions

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LABELS = Path(__file__).with_suffix(".tsv")
WHOLE, HEAD = "classification", "classification@head"
DRAWS, CHOSEN = 100, 0.85
"""The precision at which a threshold is chosen: some more than is wanted, as it will be less on other photographs."""
PENALTY = 300.0
"""Of the trained head's squared weights."""
SIDES = 1, 80, 120, 10_000
"""Between which heads are counted."""
FLOOR = 1e-6
"""Scores are rounded to it."""


def main() -> None:
    with LABELS.open() as file:
        named = [(line["file"], line["sunglasses"] == "yes") for line in csv.DictReader(file, delimiter="\t")]
    folder = SHARED / "photos" / "captions8k" / "images"
    worn = np.array([yes for _, yes in named])
    shipped = rules.load(rules.SHIPPED).sunglasses
    if shipped is None:
        sys.exit("The shipped rules do not recognise sunglasses.")
    seen, heads = asyncio.run(look_at([folder / name for name, _ in named]))

    print(f"{len(worn)} photographs, {worn.sum()} with sunglasses; 95 % intervals of Wilson")
    scores = {word: np.array([together(one[word], shipped.labels) for one in seen]) for word in seen[0]}
    both = np.maximum(scores[WHOLE], scores[HEAD])
    measured: dict[str, Callable[[Flags], Floats]] = {
        "whole picture": lambda _: scores[WHOLE],
        "head": lambda _: scores[HEAD],
        "the larger of both": lambda _: both,
    }
    logs = {word: as_logs([one[word] for one in seen]) for word in seen[0]}
    measured["trained on the head's scores"] = lambda chosen: cross_fitted(logs[HEAD], worn, chosen)
    for name, score in measured.items():
        print(f"{name:30}", halves(score, worn))
    as_rows = np.where(scores[HEAD] >= shipped.min_score, True, False)
    precision, recall = rates(as_rows, worn)
    found = int((as_rows & worn).sum())
    false = int((as_rows & ~worn).sum())
    print(
        f"shipped, {shipped.min_score:g} and more: precision {precision:.2f} ({interval(found, int(as_rows.sum()))}), "
        f"recall {recall:.2f} ({interval(found, int(worn.sum()))}), false alarms {false} of {(~worn).sum()}"
    )
    for least, most in pairwise(SIDES):
        within = (heads >= least) & (heads < most)
        of, seen_there = int((within & worn).sum()), int((within & worn & as_rows).sum())
        alarms = int((within & ~worn & as_rows).sum())
        print(f"heads of {least} to {most} pixels: {seen_there} of {of} seen, {alarms} false alarms")
    sys.exit(0 if precision >= 0.8 else 1)


async def look_at(photographs: Sequence[Path]) -> tuple[list[dict[str, dict[str, float]]], Floats]:
    """Return the score of each label, of the whole picture and of the main subject's head, if there is one.

    And how many pixels wide and high that head is; 0 where there is none.
    """
    classifier, detector = served("classification"), served("detection")
    everything = ClassifyOptions(top_k=1000)
    questions = {
        DETECTION: Question(detector, DetectOptions(min_score=rules.LEAST_OBJECT)),
        WHOLE: Question(classifier, everything),
        HEAD: Question(classifier, everything, DETECTION),
    }
    found, heads = [], []
    async for seen in look_through((path.read_bytes() for path in photographs), questions):
        if isinstance(seen, VisionError):
            raise seen
        results = {word: one.model_dump() for word, one in seen.results.items() if not isinstance(one, VisionError)}
        picture = Picture.of(seen.size, results, None)
        found.append({word: {one.label: one.score for one in picture.seen.get(word, ())} for word in (WHOLE, HEAD)})
        person = subject.main(picture.seen.get(DETECTION, ()))
        heads.append(rules.head_pixels(person.box, picture.size) if person and person.box else 0)
    return found, np.array(heads, float)


def served(task: str) -> ServedModel:
    folder = store.folder(TASKS[task].starter)
    return in_process(TASKS[task], TASKS[task].load(folder, store.read_card(folder), CPU), folder)


def together(scores: Mapping[str, float], labels: Sequence[str]) -> float:
    """Return the sum of some labels' scores; what scores too little is in no row."""
    return sum(scores[label] for label in labels if scores.get(label, 0) >= rules.LEAST_LABEL)


def as_logs(scores: Sequence[Mapping[str, float]]) -> Floats:
    """Return log scores (pictures, labels); a picture without any has the others' mean."""
    labels = sorted({label for one in scores for label in one})
    logs = np.array([[np.log(max(one[label], FLOOR)) if one else np.nan for label in labels] for one in scores])
    return np.where(np.isnan(logs), np.nanmean(logs, axis=0), logs)


def rates(said: Flags, worn: Flags) -> tuple[float, float]:
    """Return precision and recall."""
    right = int((said & worn).sum())
    return right / max(1, int(said.sum())), right / int(worn.sum())


def interval(right: int, of: int) -> str:
    """Return Wilson's 95 % interval of a share (1927)."""
    low, high = proportion_confint(right, max(of, 1), method="wilson")
    return f"{low:.2f} to {high:.2f}"


def threshold(scores: Floats, worn: Flags) -> float | None:
    """Return the threshold with the largest recall among those whose precision is CHOSEN or more."""
    good = [at for at in np.unique(scores[worn]) if rates(scores >= at, worn)[0] >= CHOSEN]
    return min(good, default=None)


def halves(score: Callable[[Flags], Floats], worn: Flags) -> str:
    """Choose on one half and measure on the other, in DRAWS draws."""
    random, found, areas = np.random.default_rng(28), [], []
    for _ in range(DRAWS):
        chosen = np.zeros(len(worn), bool)
        for kind in (True, False):
            of_kind = random.permutation(np.flatnonzero(worn == kind))
            chosen[of_kind[: len(of_kind) // 2]] = True
        scores = score(chosen)
        areas.append(area(scores[~chosen], worn[~chosen]))
        at = threshold(scores[chosen], worn[chosen])
        if at is not None:
            found.append(rates(scores[~chosen] >= at, worn[~chosen]))
    precision, recall = np.mean(found, axis=0)
    return (
        f"AUC {np.mean(areas):.3f}, precision {precision:.2f}, recall {recall:.2f} (a threshold in {len(found)} draws)"
    )


def area(scores: Floats, worn: Flags) -> float:
    """Return the area under the ROC curve."""
    with_, without = scores[worn][:, None], scores[~worn][None]
    return float(((with_ > without) + 0.5 * (with_ == without)).mean())


def cross_fitted(logs: Floats, worn: Flags, chosen: Flags) -> Floats:
    """Train a linear head on the chosen half; score that half by heads that did not see the picture."""
    scores = fit(logs[chosen], worn[chosen])(logs)
    fold = np.flatnonzero(chosen)[:, None] % 5
    for part in range(5):
        inside = np.zeros(len(worn), bool)
        inside[np.flatnonzero(chosen)[fold[:, 0] == part]] = True
        scores[inside] = fit(logs[chosen & ~inside], worn[chosen & ~inside])(logs[inside])
    return scores


def fit(logs: Floats, worn: Flags) -> Callable[[Floats], Floats]:
    """Return a logistic regression on standardised log scores, both classes weighing the same."""
    mean, spread = logs.mean(axis=0), logs.std(axis=0) + 0.5
    inputs, sign = (logs - mean) / spread, np.where(worn, 1.0, -1.0)
    weight = np.where(worn, 0.5 / worn.sum(), 0.5 / (~worn).sum()) * len(worn)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        margins = sign * (inputs @ parameters[:-1] + parameters[-1])
        slope = -weight * sign / (1 + np.exp(margins))
        penalty = PENALTY * parameters[:-1]
        value = (weight * np.logaddexp(0, -margins)).sum() + penalty @ parameters[:-1] / 2
        return value, np.append(inputs.T @ slope + penalty, slope.sum())

    found = minimize(loss, np.zeros(logs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return lambda others: (others - mean) / spread @ found[:-1] + found[-1]


if __name__ == "__main__":
    main()
