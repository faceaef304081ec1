"""What was measured, and how it is told: JSON, tables and plots."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

import matplotlib as mpl
from pydantic import BaseModel

mpl.use("Agg")
from matplotlib import pyplot as plt

VERSIONS = ("bentoml", "flask", "gunicorn", "fastapi", "uvicorn", "litserve", "ray", "torch", "transformers")
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
NO_NUMBER = float("nan")


class Measure(BaseModel):
    """One load on one server. Only successes count."""

    images: int
    rate: float
    p50: float
    p99: float
    cpu_ms: float
    """Of all the server's processes, for an image."""
    client_cpu: float
    others_cpu: float
    """Share of a core that the other servers took meanwhile, though nobody asked them."""
    failures: dict[str, int]


Rounds = list[dict[str, Measure]]


class Cell(BaseModel):
    """One model and one picture. Lists hold an entry a round."""

    case: str
    picture: str
    bytes: int
    gflop: float
    clients: list[int]
    bare: list[dict[str, float]] = []
    rounds: dict[str, Rounds] = {}
    """By server, then by load."""
    notes: dict[str, str] = {}
    """By server: why it was left out, or what its answers differ in."""

    @property
    def most(self) -> str:
        return str(max(self.clients))

    def of(self, server: str, load: str, value: Callable[[Measure], float]) -> list[float]:
        """A value round by round."""
        return [value(one[load]) for one in self.rounds[server] if load in one]


class Comparison(BaseModel):
    machine: dict[str, str]
    command: str
    cells: list[Cell] = []


def machine() -> dict[str, str]:
    """What this machine is, and what was installed."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in info)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "instructions": " ".join(name for name in EXTENSIONS if name in flags),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
    }


def write(results: Comparison, out: Path) -> None:
    (out / "peers.json").write_text(results.model_dump_json(indent=1))
    (out / "peers.md").write_text("\n".join(markdown(results)) + "\n")
    for cell in results.cells:
        if cell.rounds:
            plot(cell, out / f"{cell.case.replace(' ', '-')}-{cell.picture}.png")


def markdown(results: Comparison) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results.machine.items())
    yield f"\n`{results.command}`"
    yield "\nMedians over the rounds; in brackets the least and the most."
    for cell in results.cells:
        yield from _cell(cell)


def _cell(cell: Cell) -> Iterator[str]:
    bare = {name: median(one[name] for one in cell.bare) for name in cell.bare[0]} if cell.bare else {}
    yield f"\n## {cell.case}, {cell.picture} picture ({cell.bytes / 1e6:.2f} MB)\n"
    for name, note in cell.notes.items():
        yield f"- {name}: {note}"
    if not bare:
        return
    peak = max(bare["float32"], bare["bfloat16"])
    yield (
        f"- {cell.gflop:.2f} GFLOP a picture; this machine multiplies matrices at {bare['float32']:.0f} GFLOP/s in "
        f"float32, {bare['bfloat16']:.0f} in bfloat16 (0: not in hardware)"
    )
    yield f"- one picture without a server: decoding {bare['decode_ms']:.1f} ms, forward {bare['forward_ms']:.1f} ms\n"
    head = ["server", *(f"images/s, {count} clients" for count in cell.clients), f"of bare, {cell.most} clients"]
    head += ["ours / it, round by round", "CPU ms an image", "p50 ms, 1 client", "over forward"]
    head += ["p50 / p99 ms at half of its own rate", "at half of the slowest's", "client CPU", "of matmul", "failures"]
    yield _row(head)
    yield _row(["---"] * len(head))
    rates = [one["rate"] for one in cell.bare]
    share = bare["rate"] * cell.gflop / peak
    blank = [""] * (len(cell.clients) - 1)
    yield _row(
        ["bare loop", *blank, _spread(rates), "", "", f"{bare['cpu_ms']:.1f}", "", "", "", "", "", f"{share:.0%}", ""]
    )
    for server in cell.rounds:
        yield _row(_server(cell, server, bare, peak))
    if "ours" in cell.rounds and (together := cell.of("ours", "16 at once", lambda one: one.rate)):
        shares = _spread([rate / limit for rate, limit in zip(together, rates, strict=False)])
        yield f"\nTwo clients with 16 pictures a request: {_spread(together)} images/s, {shares} of the bare loop."
    yield from _verdict(cell)
    others = [one.others_cpu for rounds in cell.rounds.values() for loads in rounds for one in loads.values()]
    yield f"\nServers that nobody asked took {median(others):.1%} of a core, {max(others):.1%} at most."


def _verdict(cell: Cell) -> Iterator[str]:
    """Ours beside the bare loop and beside the best of the peers, who that is in each round."""
    if "ours" not in cell.rounds:
        return
    yield ""
    rates, costs = (cell.of("ours", cell.most, value) for value in (lambda one: one.rate, lambda one: one.cpu_ms))
    yield f"- of the bare loop: {_rounds(rates, [one['rate'] for one in cell.bare])}"
    yield f"- CPU ms an image, of the bare loop's: {_rounds(costs, [one['cpu_ms'] for one in cell.bare])}"
    for kind in ("documented", "tuned"):
        peers = [name for name in cell.rounds if name != "ours" and name.endswith("-tuned") == (kind == "tuned")]
        if not peers:
            continue
        best = [
            max(values) for values in zip(*(cell.of(p, cell.most, lambda one: one.rate) for p in peers), strict=True)
        ]
        yield f"- images/s, of the best {kind} peer's: {_rounds(rates, best)}"
        for load, what in (("half", "half of its own rate"), ("same", "the same rate, half of the slowest's")):
            late = [min(all_) for all_ in zip(*(cell.of(p, load, lambda one: one.p99) for p in peers), strict=False)]
            ours = cell.of("ours", load, lambda one: one.p99)
            yield f"- p99 at {what}, of the best {kind} peer's: {_rounds(ours, late)}"


def _rounds(some: Sequence[float], others: Sequence[float]) -> str:
    """The ratios round by round, and their median before them."""
    ratios = [a / b for a, b in zip(some, others, strict=False) if b]
    return f"{_median(ratios):.2f} ({' '.join(f'{ratio:.2f}' for ratio in ratios)})"


def _server(cell: Cell, server: str, bare: dict[str, float], peak: float) -> list[str]:
    most = cell.of(server, cell.most, lambda one: one.rate)
    ours = cell.of("ours", cell.most, lambda one: one.rate) if "ours" in cell.rounds else []
    alone = _median(cell.of(server, "1", lambda one: one.p50))
    late = [
        " / ".join(
            f"{_median(cell.of(server, load, value)):.0f}" for value in (lambda one: one.p50, lambda one: one.p99)
        )
        for load in ("half", "same")
    ]
    failed = sum(sum(one.failures.values()) for loads in cell.rounds[server] for one in loads.values())
    client = max((one.client_cpu for loads in cell.rounds[server] for one in loads.values()), default=NO_NUMBER)
    return [
        server,
        *(_spread(cell.of(server, str(count), lambda one: one.rate)) for count in cell.clients),
        f"{_median(most) / bare['rate']:.2f}",
        "" if server == "ours" else _rounds(ours, most),
        f"{_median(cell.of(server, cell.most, lambda one: one.cpu_ms)):.1f}",
        f"{alone:.1f}",
        f"{alone - bare['forward_ms']:+.1f}",
        *late,
        f"{client:.0%}",
        f"{_median(most) * cell.gflop / peak:.0%}",
        str(failed),
    ]


def _row(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def _median(values: Sequence[float]) -> float:
    return median(values) if values else NO_NUMBER


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})" if values else ""


def plot(cell: Cell, file: Path) -> None:
    """Rates with the most clients, a dot a round, beside the bare loop; latencies at half of the capacity."""
    names = list(cell.rounds)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.4 * len(names) + 1.6), sharey=True)
    for row, name in enumerate(names):
        rates = cell.of(name, cell.most, lambda one: one.rate)
        left.barh(row, _median(rates), color="tab:blue" if name == "ours" else "lightgrey")
        left.plot(rates, [row] * len(rates), "k.", markersize=4)
        for value, colour in ((lambda one: one.p99, "lightgrey"), (lambda one: one.p50, "tab:orange")):
            right.barh(row, _median(cell.of(name, "half", value)), color=colour)
    if cell.bare:
        left.axvline(_median([one["rate"] for one in cell.bare]), color="k", linestyle="--", label="bare loop")
        left.legend()
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel(f"images/s, {cell.most} clients")
    right.set_xlabel("ms at half of the own capacity: p50 (orange), p99 (grey)")
    figure.suptitle(f"{cell.case}, {cell.picture} picture")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
