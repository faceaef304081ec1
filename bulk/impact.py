"""What goes with an outcome: signals of groups' pictures beside a number that each group has."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bulk import UserError
from bulk.groups import Results
from bulk.signals import Example, Floats, Signal, Signals, SignalTable, table
from bulk.statistics import DRAWS, LEVEL, Effects, compare
from vision.insights.profile import insights
from vision.insights.rules import Rules

SUPPORT = 20
"""Groups that must have a signal, and have it not, at least."""


@dataclass(frozen=True)
class Outcomes:
    """A number for each group, and further columns; `name` as the CSV calls it."""

    name: str
    covariates: Sequence[str]
    numbers: Mapping[str, tuple[float, ...]]
    """By group: the outcome, then the covariates."""
    left_out: int
    """Rows without one of these numbers."""


@dataclass(frozen=True)
class Finding:
    """A signal, and what was found of it; a row of the table. Effects are in units of the outcome."""

    signal: Signal
    groups: int
    """That have it; of a mean, all."""
    effect: float
    low: float
    high: float
    p: float
    q: float
    cluster: int
    leads: bool
    """Whether it has the least p of its cluster."""
    reach: int
    """Groups that a tip would reach: that do not show what goes with more, or show what goes with less."""
    sentence: str
    examples: Sequence[Example]

    @property
    def survives(self) -> bool:
        return self.q < LEVEL


@dataclass(frozen=True)
class Impact:
    """What was compared, and what was found, the least p first."""

    outcome: str
    covariates: Sequence[str]
    groups: int
    """With pictures and an outcome: those that were compared."""
    pictures: int
    without_outcome: int
    without_pictures: int
    left_out: int
    findings: list[Finding]


def read_outcomes(path: Path, by: str, outcome: str, covariates: Sequence[str]) -> Outcomes:
    """Read a CSV with a row a group. Raises UserError, with the column and what is wrong with it."""
    try:
        read = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types={by: pa.string()}))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    columns = [outcome, *covariates]
    if lacking := [name for name in (by, *columns) if name not in read.column_names]:
        raise UserError(f"{path} has no column {lacking[0]!r}; it has {', '.join(read.column_names)}.")
    if words := [name for name in columns if not _is_number(read[name].type)]:
        raise UserError(f"{path}: {words[0]} is not numeric; it holds {read[words[0]].type}.")
    groups = read[by].to_pylist()
    if len(set(groups)) < len(groups):
        [(twice, _)] = Counter(groups).most_common(1)
        raise UserError(f"{path}: {by} {twice!r} stands there twice; each group has one row.")
    values = np.column_stack([pc.cast(read[name], pa.float64()).to_numpy() for name in columns])
    whole = np.isfinite(values).all(axis=1)
    for name, column in zip(columns, values[whole].T, strict=True):
        if len(column) and column.min() == column.max():
            raise UserError(f"{path}: {name} is constant ({column[0]:g}): nothing can go with it.")
    numbers = {group: tuple(row) for group, row, ok in zip(groups, values.tolist(), whole, strict=True) if ok}
    return Outcomes(outcome, covariates, numbers, int((~whole).sum()))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def impact(results: Results, rules: Rules, outcomes: Outcomes, support: int = SUPPORT, draws: int = DRAWS) -> Impact:
    """Compare what groups show with their outcome. Raises UserError where too few groups have one."""
    collected, rows, numbers, without_outcome = collect(results, rules, outcomes)
    if len(numbers) < 2 * support:
        raise UserError(
            f"{len(numbers)} groups have pictures and {outcomes.name}; at least {2 * support} are needed "
            f"({without_outcome} groups of pictures have none)."
        )
    compared = table(collected, rows, support)
    pictures = np.frombuffer(collected.pictures)[rows >= 0]
    found = compare(compared.numbers, numbers[:, 0], np.column_stack([pictures, numbers[:, 1:]]), draws=draws)
    return Impact(
        outcomes.name,
        outcomes.covariates,
        len(numbers),
        int(pictures.sum()),
        without_outcome,
        len(outcomes.numbers) - len(numbers),
        outcomes.left_out,
        findings(compared, found, outcomes),
    )


def collect(results: Results, rules: Rules, outcomes: Outcomes) -> tuple[Signals, NDArray[np.int64], Floats, int]:
    """Return the groups' signals, each group's row among those with an outcome (-1: none), and these' numbers.

    The last is how many groups have no outcome.
    """
    rules = results.rules(rules)
    collected, rows, numbers = Signals(), array("l"), array("d")
    count = 0
    for name, shown in results.groups():
        theirs = outcomes.numbers.get(name)
        if theirs is None or all(one.picture.error for one in shown):
            rows.append(-1)
            collected.pictures.append(0)
            continue
        collected.add(name, shown, insights([one.picture for one in shown], rules))
        rows.append(count)
        numbers.extend(theirs)
        count += 1
    width = 1 + len(outcomes.covariates)
    at = np.array(rows, np.int64)
    return collected, at, np.array(numbers).reshape(count, width), int((at < 0).sum())


def findings(compared: SignalTable, found: Effects, outcomes: Outcomes) -> list[Finding]:
    """Return a finding for each signal, the least p first."""
    order = np.argsort(found.p, kind="stable")
    leading = set[int]()
    made = []
    for index in order.tolist():
        signal, numbers = compared.signals[index], compared.numbers[:, index]
        effect, low, high, q = (float(one[index]) for one in (found.effect, found.low, found.high, found.q))
        cluster = int(found.cluster[index])
        reach = _reach(signal, numbers, effect)
        has = len(numbers) if signal.kind == "mean" else int((numbers > 0).sum())
        made.append(
            Finding(
                signal,
                has,
                effect,
                low,
                high,
                float(found.p[index]),
                q,
                cluster,
                cluster not in leading,
                reach,
                sentence(signal, outcomes, (effect, low, high, q), has, len(numbers), reach),
                compared.examples[signal.feature, signal.label],
            )
        )
        leading.add(cluster)
    return made


def _reach(signal: Signal, numbers: NDArray[np.float32], effect: float) -> int:
    if signal.kind == "mean":
        return int((numbers < 0).sum() if effect > 0 else (numbers > 0).sum())
    return int((numbers < 1).sum() if effect > 0 else (numbers > 0).sum())


WORDS = {
    "any": "Where any picture shows {what},",
    "all": "Where all pictures show {what},",
    "share": "Where all pictures show {what}, as far as a straight line over their share tells,",
    "mean": "Where {what} is one standard deviation higher,",
}


def sentence(
    signal: Signal, outcomes: Outcomes, found: tuple[float, float, float, float], has: int, of: int, reach: int
) -> str:
    """Say what may be concluded of a signal, and what not."""
    effect, low, high, q = found
    mean = signal.kind == "mean"
    start = WORDS[signal.kind].format(
        what=f"{signal.feature} {signal.label}" if mean else f"{signal.label} ({signal.feature})"
    )
    which = "higher" if effect >= 0 else "lower"
    beside = ", ".join(["as many pictures", *(f"the same {name}" for name in outcomes.covariates)])
    ends = f"{low:+.3g} to {high:+.3g}"
    count = "" if mean else f"; {has:,} of {of:,} groups have it"
    text = (
        f"{start} {outcomes.name} is {abs(effect):.3g} {which} than in other groups with {beside} "
        f"(95 % interval {ends}{count}). "
    )
    if q >= LEVEL:
        return f"{text}Among so many signals, chance alone makes differences like this: conclude nothing."
    way = "for" if effect >= 0 else "against"
    return (
        f"{text}They go together; that one makes the other is not shown: groups with it may differ in other ways. "
        f"To find out, give a tip {way} it to half of the {reach:,} groups that it would reach, drawn by lot; "
        f"then compare {outcomes.name}."
    )


SIGNAL = ("signal", "feature", "label", "kind")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in SIGNAL),
        ("groups", pa.int64()),
        *((name, pa.float64()) for name in ("effect", "low", "high", "p", "q")),
        ("survives", pa.bool_()),
        ("cluster", pa.int64()),
        ("leads", pa.bool_()),
        ("reach", pa.int64()),
        ("sentence", pa.string()),
    ]
)
"""Of the table: what a Signal is called, and a Finding's fields."""


def as_table(found: Impact) -> pa.Table:
    """Return a row a signal, the least p first."""
    own = [name for name in SCHEMA.names if name not in SIGNAL]
    rows = [
        {
            "signal": one.signal.name,
            **{name: getattr(one.signal, name) for name in SIGNAL[1:]},
            **{name: getattr(one, name) for name in own},
        }
        for one in found.findings
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def write(found: Impact, out: Path) -> None:
    """Write the table into a folder, as Parquet and CSV."""
    rows = as_table(found)
    pq.write_table(rows, out / "impact.parquet")
    pa.csv.write_csv(rows, out / "impact.csv")
