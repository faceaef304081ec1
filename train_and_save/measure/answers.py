"""What a model's answers are worth beside the truth: one class a task, each telling figures for any of the pictures."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)
from torchmetrics.text import BLEUScore

from train_and_save.datasets import Boxed, Captioned, Corners, Labelled
from train_and_save.measure import report
from train_and_save.measure.cider import cider_d
from train_and_save.measure.report import Box, Drawing, Section, Table
from train_and_save.measure.sentences import words
from vision.tasks.captioning.spec import Caption
from vision.tasks.classification.spec import Classification
from vision.tasks.detection.spec import Detection, DetectOptions

Rows = NDArray[np.int64]
Values = NDArray[np.float64]


class Answers(Protocol):
    """A model's answers beside the truth. `rows` are indices of pictures, as many as there are, some more than once."""

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Return the figures of these pictures."""
        ...

    def scored(self) -> tuple[Values, Values]:
        """Return the scores (N,), 0-1, and whether each was right (N,), 0 or 1; sentences have none."""
        ...

    def losses(self) -> Values:
        """Return how wrong the answer to each picture is (P,); zero where nothing is wrong."""
        ...

    def draw(self, row: int) -> Drawing:
        """Draw a picture with its answer and its truth."""
        ...

    def section(self) -> Section:
        """Return what only this task shows."""
        ...


class Classified:
    def __init__(self, truth: Sequence[Labelled], answers: Sequence[Classification]) -> None:
        self.paths, self.answers = [example.path for example in truth], [answer.labels for answer in answers]
        self.labels = sorted({example.label for example in truth})
        self.named = [example.label for example in truth]
        index = {label: i for i, label in enumerate(self.labels)}
        self.known = torch.tensor([index[label] for label in self.named])
        # one class more: every label of the model that the data do not have
        self.best = torch.tensor([index.get(answer[0].label, len(index)) for answer in self.answers])
        self.score = torch.tensor([answer[0].score for answer in self.answers], dtype=torch.float64)
        self.places = [
            next((place for place, guess in enumerate(answer, 1) if guess.label == label), None)
            for answer, label in zip(self.answers, self.named, strict=True)
        ]
        self.in_five = torch.tensor([place is not None and place <= 5 for place in self.places])

    def metrics(self, rows: Rows) -> dict[str, float]:
        known, best, score = self.known[rows], self.best[rows], self.score[rows]
        each: dict[str, Any] = {"num_classes": len(self.labels) + 1, "average": "none", "validate_args": False}
        present = known.unique()
        figures = {
            "accuracy": multiclass_accuracy(best, known, **{**each, "average": "micro"}),
            "top_5_accuracy": self.in_five[rows].double().mean(),
            "balanced_accuracy": multiclass_recall(best, known, **each)[present].mean(),
            "macro_f1": multiclass_f1_score(best, known, **each)[present].mean(),
            "ece": binary_calibration_error(score, (best == known).long(), validate_args=False),
        }
        return {name: float(value) for name, value in figures.items()}

    def scored(self) -> tuple[Values, Values]:
        return self.score.numpy(), (self.best == self.known).double().numpy()

    def losses(self) -> Values:
        return (self.score * (self.best != self.known)).numpy()

    def draw(self, row: int) -> Drawing:
        answer, place = self.answers[row], self.places[row]
        rank = f"{answer[place - 1].score:.2f}, place {place}" if place else f"not among the {len(answer)} best"
        lines = [f"said {answer[0].label} ({answer[0].score:.2f})", f"is {self.named[row]} ({rank})"]
        return report.draw(self.paths[row], lines)

    def section(self) -> Section:
        matrix = multiclass_confusion_matrix(self.best, self.known, len(self.labels) + 1, validate_args=False).numpy()
        mistakes = matrix.sum(axis=1) - matrix.diagonal()
        shown = np.sort(np.argsort(-mistakes[:-1], kind="stable")[:20])
        square = matrix[np.ix_(shown, shown)]
        counts = np.column_stack([square, matrix[shown].sum(axis=1) - square.sum(axis=1)])
        note = "Pictures by the label they have (rows) and the model's best label (columns)."
        if len(shown) < len(self.labels):
            note += f" Shown are the {len(shown)} of {len(self.labels)} labels with the most mistakes."
        return Section("Confusion matrix", note, figure=report.confusion(counts, [self.labels[i] for i in shown]))


class Detected:
    """Average precision is COCO's, by pycocotools: boxes are matched once, and figures told for any of the pictures."""

    def __init__(self, truth: Sequence[Boxed], answers: Sequence[Detection], labels: Sequence[str]) -> None:
        """`labels`: those that data and model both know; boxes with another, true or found, do not count."""
        self.paths, self.labels = [example.path for example in truth], labels
        known = set(labels)
        true = [(i, label, box, 1.0) for i, one in enumerate(truth) for label, box in one.boxes if label in known]
        found = [(i, o.label, o.box, o.score) for i, one in enumerate(answers) for o in one.objects if o.label in known]
        self.boxes_of = Counter(label for _, label, _, _ in true)
        with contextlib.redirect_stdout(io.StringIO()):
            boxes = [_coco(len(truth), labels, part) for part in (true, found)]
            self.evaluation = COCOeval(*boxes, "bbox")
            params = self.evaluation.params
            params.maxDets, params.areaRng, params.areaRngLbl = [100], [[0, 1e10]], ["all"]
            self.evaluation.evaluate()
        # an entry for each label and picture: which found box has which true one at each IoU, 0.50 first
        self.matches = np.array([*self.evaluation.evalImgs, None], dtype=object)[:-1].reshape(len(labels), len(truth))
        pairs = [
            (int(found_id), int(true_id))
            for entry in self.matches.flat
            if entry is not None
            for found_id, true_id in zip(entry["dtIds"], entry["dtMatches"][0], strict=True)
            if true_id
        ]
        right, least = {found_id for found_id, _ in pairs}, DetectOptions().min_score
        hit = {true_id for found_id, true_id in pairs if found[found_id - 1][3] >= least}
        self.drawn: list[list[Box]] = [[] for _ in truth]
        self.scores: list[list[tuple[float, float]]] = [[] for _ in truth]
        for number, (i, label, box, _) in enumerate(true, 1):
            self.drawn[i].append(Box(box, label, true=True, wrong=number not in hit))
        for number, (i, label, box, score) in enumerate(found, 1):
            self.scores[i].append((score, number in right))
            if score >= least:
                self.drawn[i].append(Box(box, f"{label} {score:.2f}", true=False, wrong=number not in right))

    def metrics(self, rows: Rows) -> dict[str, float]:
        precision, recall = self._precision_and_recall(rows)
        parts = {"ap": precision, "ap50": precision[0], "ap75": precision[5], "ar100": recall}
        score, right = torch.tensor([pair for row in rows for pair in self.scores[row]]).view(-1, 2).T.contiguous()
        ece = binary_calibration_error(score, right.long(), validate_args=False) if len(score) else np.nan
        figures = {name: float(part[part > -1].mean()) if (part > -1).any() else np.nan for name, part in parts.items()}
        return {**figures, "ece": float(ece)}

    def _precision_and_recall(self, rows: Rows) -> tuple[Values, Values]:
        """Precision (IoU, recall, labels) and recall (IoU, labels), 0-1; -1 for a label without a true box.

        https://cocodataset.org/#detection-eval
        """
        self.evaluation.evalImgs = self.matches[:, rows].ravel().tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluation.accumulate()
        return self.evaluation.eval["precision"][..., 0, 0], self.evaluation.eval["recall"][..., 0, 0]

    def scored(self) -> tuple[Values, Values]:
        both = np.array([pair for pairs in self.scores for pair in pairs]).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def losses(self) -> Values:
        return np.array([float(sum(box.wrong for box in boxes)) for boxes in self.drawn])

    def draw(self, row: int) -> Drawing:
        boxes = self.drawn[row]
        missed, false = (sum(box.wrong for box in boxes if box.true == true) for true in (True, False))
        line = f"{missed} missed of {sum(box.true for box in boxes)}, {false} false"
        return report.draw(self.paths[row], [line], boxes)

    def section(self) -> Section:
        precision, recall = self._precision_and_recall(np.arange(len(self.paths)))
        parts, numbers = (precision, precision[0], recall), {label: i for i, label in enumerate(self.labels)}
        rows = [
            [(text, "") for text in (label, str(count), *(f"{part[..., numbers[label]].mean():.3f}" for part in parts))]
            for label, count in self.boxes_of.most_common()
        ]
        return Section("Each label", "The most frequent first.", Table(["label", "boxes", "AP", "AP50", "AR100"], rows))


class Told:
    def __init__(self, truth: Sequence[Captioned], answers: Sequence[Caption]) -> None:
        self.paths, self.references = [one.path for one in truth], [one.captions for one in truth]
        self.said = [answer.caption for answer in answers]
        self.cider = cider_d(self.said, self.references)
        self.counts = np.array([_bleu_counts(*pair) for pair in zip(self.said, self.references, strict=True)])

    def metrics(self, rows: Rows) -> dict[str, float]:
        counts = self.counts[rows].sum(axis=0)
        return {"bleu_1": _bleu(counts, 1), "bleu_4": _bleu(counts, 4), "cider_d": float(self.cider[rows].mean())}

    def scored(self) -> tuple[Values, Values]:
        return np.empty(0), np.empty(0)

    def losses(self) -> Values:
        return 10 - self.cider

    def draw(self, row: int) -> Drawing:
        said = f"said “{self.said[row]}” (CIDEr-D {self.cider[row]:.2f})"
        return report.draw(self.paths[row], [said, *self.references[row]])

    def section(self) -> Section:
        often = [[(sentence, ""), (str(count), "")] for sentence, count in Counter(self.said).most_common(5)]
        note = f"{len(set(self.said))} distinct sentences for {len(self.said)} pictures; the most frequent:"
        return Section("Variety", note, Table(["sentence", "pictures"], often))


def _coco(pictures: int, labels: Sequence[str], boxes: Sequence[tuple[int, str, Corners, float]]) -> COCO:
    """Boxes (picture, label, corners, score) as pycocotools takes them; ids count from 1, as 0 is its "no match"."""
    numbers = {label: i for i, label in enumerate(labels)}
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(pictures)],
        "categories": [{"id": i, "name": label} for label, i in numbers.items()],
        "annotations": [
            {
                "id": number,
                "image_id": picture,
                "category_id": numbers[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": score,
            }
            for number, (picture, label, (x1, y1, x2, y2), score) in enumerate(boxes, 1)
        ],
    }
    coco.createIndex()
    return coco


def _bleu_counts(sentence: str, references: Sequence[str]) -> Values:
    """What corpus BLEU adds up over pictures (10,): n-grams that agree and that were said, 1 to 4; two lengths."""
    bleu = BLEUScore(n_gram=4)
    bleu.update([" ".join(words(sentence))], [[" ".join(words(line)) for line in references]])
    return (
        torch.cat([bleu.numerator, bleu.denominator, bleu.preds_len.view(1), bleu.target_len.view(1)]).double().numpy()
    )


def _bleu(counts: Values, longest: int) -> float:
    """Corpus BLEU (0-100; Papineni et al. 2002, https://aclanthology.org/P02-1040) from summed counts."""
    agreed, said = counts[:longest], counts[4 : 4 + longest]
    if agreed.min() == 0:
        return 0.0
    brevity = min(1.0, math.exp(1 - counts[9] / counts[8]))
    return 100 * brevity * math.exp(np.log(agreed / said).mean())
