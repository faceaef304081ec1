"""What goes with an outcome: a linear model for each signal, with interval and p-value; which signals say the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, t
from statsmodels.stats.multitest import multipletests

Floats = NDArray[np.float64]
Numbers = NDArray[np.float32]

DRAWS = 1_000
LEVEL = 0.05
SAME = 0.8
"""Correlation, either way, from which signals are of one cluster."""
MOST_COMPARED = 20_000
"""Groups of which correlations are computed."""
BLOCK = 64
"""Signals in work at once."""


@dataclass(frozen=True)
class Effects:
    """A number for each signal. Effects are in units of the outcome."""

    effect: Floats
    low: Floats
    high: Floats
    p: Floats
    q: Floats
    cluster: NDArray[np.int64]


def compare(signals: Numbers, outcome: Floats, others: Floats, seed: int = 0, draws: int = DRAWS) -> Effects:
    """Compare each signal (groups, signals) with an outcome (groups), given other columns (groups, others).

    effect: the signal's coefficient of least squares with an intercept and the others. low, high: its 95 % interval,
    percentiles of a bootstrap over groups (Efron and Tibshirani, 1993). p: of its t-test in the same model
    on ranks (Conover and Iman, 1981). q: p by Benjamini and Hochberg (1995). cluster: numbers of signals that say the
    same, by average linkage of 1 - |r|.
    """
    beside = np.column_stack([np.ones(len(outcome)), others])
    ranked = np.column_stack([np.ones(len(outcome)), *(rankdata(column) for column in others.T)])
    effect, p, low, high = (np.empty(signals.shape[1]) for _ in range(4))
    for start in range(0, signals.shape[1], BLOCK):
        block = np.s_[start : start + BLOCK]
        some = signals[:, block].astype(np.float64)
        effect[block], _ = least_squares(some, outcome, beside)
        _, p[block] = least_squares(rankdata(some, axis=0), rankdata(outcome), ranked)
        low[block], high[block] = bootstrap(some, outcome, beside, draws, seed)
    q = multipletests(p, LEVEL, "fdr_bh")[1] if len(p) else p
    return Effects(effect, low, high, p, q, clusters(signals))


def least_squares(signals: Floats, outcome: Floats, beside: Floats) -> tuple[Floats, Floats]:
    """Return each signal's coefficient in a model of the outcome with it and `beside`, and its t-test's p-value.

    What `beside` explains is taken out of both sides first (Frisch and Waugh, 1933); a signal that it explains wholly
    has no coefficient: 0, and a p of 1.
    """
    basis, _ = np.linalg.qr(beside)
    signals = signals - basis @ (basis.T @ signals)
    outcome = outcome - basis @ (basis.T @ outcome)
    spread = (signals**2).sum(axis=0)
    told = spread > 1e-9 * len(outcome)
    spread = np.where(told, spread, 1)
    effect = np.where(told, signals.T @ outcome / spread, 0)
    freedom = len(outcome) - np.linalg.matrix_rank(beside) - 1
    left = np.maximum((outcome**2).sum() - effect**2 * spread, 0)
    error = np.sqrt(left / freedom / spread)
    p = np.where(told, 2 * t.sf(np.abs(effect) / np.maximum(error, 1e-300), freedom), 1)
    return effect, p


def bootstrap(signals: Floats, outcome: Floats, beside: Floats, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Return the ends of each coefficient's 95 % interval, over `draws` samples of groups with replacement."""
    groups, random = len(outcome), np.random.default_rng(seed)
    # What `beside` explains is taken out first: no coefficient changes by it, and sums in float32 keep their precision.
    basis, _ = np.linalg.qr(beside)
    signals, outcome = signals - basis @ (basis.T @ signals), outcome - basis @ (basis.T @ outcome)
    beside = basis * np.sqrt(groups)
    columns = np.column_stack(
        [signals**2, signals * outcome[:, None], *(signals * other[:, None] for other in beside.T)]
    ).astype(np.float32)
    rest = np.column_stack([beside, outcome])
    effects = np.empty((draws, signals.shape[1]))
    at_once = max(1, min(draws, 20_000_000 // groups))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = np.stack([np.bincount(random.integers(0, groups, groups), minlength=groups) for _ in range(size)])
        sums = (drawn.astype(np.float32) @ columns).astype(np.float64)
        squares, products, *with_others = np.split(sums, 2 + beside.shape[1], axis=1)
        crossed = np.stack(with_others, axis=1)  # (draws, others, signals)
        moments = np.einsum("dg,gi,gj->dij", drawn, beside, rest, optimize=True)
        solved = np.linalg.solve(
            moments[:, :, :-1] + 1e-9 * np.eye(beside.shape[1]), np.concatenate([crossed, moments[:, :, -1:]], axis=2)
        )
        spread = squares - (crossed * solved[:, :, :-1]).sum(axis=1)
        shared = products - (crossed * solved[:, :, -1:]).sum(axis=1)
        told = spread > 1e-6 * groups
        effects[start : start + size] = np.where(told, shared / np.where(told, spread, 1), 0)
    low, high = np.percentile(effects, [2.5, 97.5], axis=0)
    return low, high


def clusters(signals: Numbers) -> NDArray[np.int64]:
    """Number the clusters of signals that go up and down together, from 1."""
    if signals.shape[1] < 2:
        return np.ones(signals.shape[1], np.int64)
    some = signals
    if len(signals) > MOST_COMPARED:
        some = signals[np.random.default_rng(0).choice(len(signals), MOST_COMPARED, replace=False)]
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = 1 - np.abs(np.nan_to_num(np.corrcoef(some, rowvar=False)))
    np.fill_diagonal(apart, 0)
    joined = linkage(squareform(apart.clip(0), checks=False), "average")
    return np.asarray(fcluster(joined, 1 - SAME, "distance"), np.int64)
