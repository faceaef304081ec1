"""python -m benchmarks.peers: this service beside its peers, on this machine, with the same weights, pictures, client.

Peers are as their documentation shows, and `-tuned` with our engine and decoder. All servers of a model are up at once
and are measured in turns, round after round; before that, each must answer as we do. `bare` is the limit: our engine
without HTTP. Loads: so many clients in a closed loop; `16 at once`, two clients that send 16 pictures a request (ours
only); random arrivals at half of what the same server answered to the most clients in the same round (`half`), and at
half of what the slowest did (`same`).

Writes peers.json, peers.md and plots into --out.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from benchmarks import report, weights
from benchmarks.case import Case
from benchmarks.client import Load, multipart
from benchmarks.compare import difference
from benchmarks.report import Cell, Comparison, Measure
from benchmarks.serve import NAMES, Server, started
from testkit.servers import OFFLINE, ROOT
from vision.tasks import TASKS

WARM_UP_SECONDS = 3
"""At least; BentoML's batching trains on the first eleven calls."""

AT_ONCE = 16
"""Pictures in a request, where there are several."""

CLIENT_SECONDS = 300
"""Over the load's own time: the last answers of a slow server."""


class Bare:
    """The bare loop, in a process of its own."""

    def __init__(self, case: Case, log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare"],
            cwd=ROOT,
            env={**os.environ, **OFFLINE, **case.environment(tuned=True)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._asked: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def ask(self, do: str, **arguments: Any) -> dict[str, float]:
        self._asked.write(json.dumps({"do": do, **arguments}) + "\n")
        self._asked.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the bare loop has ended; see {self._log.name}")
        return dict(json.loads(line))

    def stop(self) -> None:
        self._process.communicate()
        self._log.close()


class Bench:
    """One model: its bare loop and its servers, all up, measured in turns."""

    def __init__(self, case: Case, bare: Bare, place: Path, seconds: float, clients: Sequence[int]) -> None:
        self._case, self._bare, self._place, self._seconds, self._clients = case, bare, place, seconds, clients
        self.servers: dict[str, Server] = {}

    def measure(self, picture: str, data: bytes, rounds: int) -> Cell:
        """Check each server's answer to a picture, then measure those that pass, round after round."""
        files = {"1": self._write("one", [data])}
        if len(data) < 1_000_000:  # sixteen larger ones are more than a request may have
            files["16"] = self._write("many", [data] * AT_ONCE)
        path = self._place / f"{picture}.jpg"
        path.write_bytes(data)
        gflop = self._bare.ask("flops", picture=str(path))["gflop"]
        cell = Cell(case=self._case.name, picture=picture, bytes=len(data), gflop=gflop, clients=list(self._clients))
        servers = self._check(cell, files["1"].read_bytes(), strict=picture == "small")
        for server in servers:
            self._load(server, files["1"], WARM_UP_SECONDS, clients=max(self._clients))
            self._load(server, files["1"], WARM_UP_SECONDS, clients=1)
            cell.rounds[server.name] = []
        for number in range(rounds):
            self._round(cell, servers, files, str(path), number)
            print(f"{self._case.name}, {picture}: round {number + 1} of {rounds}", file=sys.stderr)
        return cell

    def _check(self, cell: Cell, body: bytes, *, strict: bool) -> list[Server]:
        """Note what differs from our answers; return the servers that may be measured."""
        ours = self._answer(self.servers["ours"], body)
        fit = []
        for server in self.servers.values():
            try:
                differs = difference(ours, self._answer(server, body))
            except httpx.HTTPError as error:
                cell.notes[server.name] = f"not measured, it failed: {error}"
                continue
            # We shrink a large picture before a model does; a documented peer must be the same on the small one.
            if differs and (strict or server.is_tuned):
                cell.notes[server.name] = f"not measured, its answer differs: {differs}"
                continue
            if differs:
                cell.notes[server.name] = (
                    f"its answer differs, since it shrinks a large picture in its own way: {differs}"
                )
            fit.append(server)
        return fit

    def _answer(self, server: Server, body: bytes) -> dict[str, Any]:
        server.resume()
        try:
            return server.ask(body)
        finally:
            server.pause()

    def _round(self, cell: Cell, servers: Sequence[Server], files: dict[str, Path], picture: str, number: int) -> None:
        limit = self._bare.ask("matmul") | self._bare.ask("alone", picture=picture, seconds=self._seconds / 2)
        cell.bare.append(limit | self._bare.ask("loop", picture=picture, seconds=self._seconds))
        now: dict[str, dict[str, Measure]] = {server.name: {} for server in servers}
        for count in self._clients:
            for server in servers:
                now[server.name][str(count)] = self._load(server, files["1"], self._seconds, clients=count)
        for server in servers:
            if server.name == "ours" and "16" in files:
                many = self._load(server, files["16"], self._seconds, images=AT_ONCE, clients=2)
                now[server.name]["16 at once"] = many
        capacities = {name: rate for name, loads in now.items() if (rate := loads[cell.most].rate)}
        for server in servers:
            if capacity := capacities.get(server.name):
                for load, rate in (("half", capacity / 2), ("same", min(capacities.values()) / 2)):
                    now[server.name][load] = self._load(server, files["1"], self._seconds, rate=rate, seed=number)
        for name, loads in now.items():
            cell.rounds[name].append(loads)

    def _load(self, server: Server, body: Path, seconds: float, images: int = 1, **load: float) -> Measure:
        """Run the client against a server; what it does not tell comes from the servers' processes."""
        options = [f"--{name}={value}" for name, value in load.items()]
        command = [sys.executable, "-m", "benchmarks.client", server.url, str(body), f"--seconds={seconds}", *options]
        others = [other for other in self.servers.values() if other is not server]
        server.resume()
        idle = sum(other.cpu_seconds() for other in others)
        cpu = server.cpu_seconds()
        run = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds + CLIENT_SECONDS
        )
        cpu = server.cpu_seconds() - cpu
        idle = sum(other.cpu_seconds() for other in others) - idle
        server.pause()
        came = Load.model_validate_json(run.stdout)
        count = len(came.ms) * images
        p50, p99 = np.quantile(came.ms, (0.5, 0.99)).tolist() if came.ms else (nan, nan)
        return Measure(
            images=count,
            rate=count / came.seconds,
            p50=p50,
            p99=p99,
            cpu_ms=cpu / count * 1000 if count else nan,
            client_cpu=came.client_cpu,
            others_cpu=idle / came.seconds,
            failures=came.failures,
        )

    def _write(self, name: str, pictures: Sequence[bytes]) -> Path:
        file = self._place / name
        file.write_bytes(multipart(pictures, self._case.options))
        return file


def measure_case(case: Case, home: Path, asked: argparse.Namespace, results: Comparison) -> None:
    """Start all servers of a model and measure each picture."""
    photos = weights.pictures()
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory()))
        bare = Bare(case, asked.out / f"{case.name}-bare.log")
        stack.callback(bare.stop)
        bench = Bench(case, bare, place, asked.seconds, asked.clients)
        body, silent = multipart([photos["small"]], case.options), {}
        for name in asked.peers:
            print(f"{case.name}: starting {name}", file=sys.stderr)
            try:
                log = asked.out / f"{case.name}-{name}.log"
                server = stack.enter_context(started(name, case, home, body, log))
            except RuntimeError as error:
                silent[name] = f"not measured, see its log: {error}"
                continue
            server.pause()
            bench.servers[name] = server
        for picture in asked.pictures:
            cell = bench.measure(picture, photos[picture], asked.rounds)
            cell.notes |= silent
            results.cells.append(cell)
            report.write(results, asked.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=("starters", "production", "all"), default="starters")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--pictures", nargs="+", choices=("small", "large"), default=["small", "large"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--peers", nargs="+", choices=NAMES[1:], default=NAMES[1:])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    parser.add_argument("--out", type=Path, default=Path("build/peers"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers must end, too
    asked.peers = ["ours", *dict.fromkeys(asked.peers)]
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Comparison(
        machine=report.machine(), command=shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]])
    )
    with TemporaryDirectory() as folder:
        home, cases = Path(folder) / "bentoml", []
        cases += weights.starters(home, asked.tasks)
        if asked.cases != "starters":
            made = weights.production(home, Path(folder), asked.tasks)
            cases = made if asked.cases == "production" else cases + made
        for case in cases:
            measure_case(case, home, asked, results)
    print((asked.out / "peers.md").read_text())


if __name__ == "__main__":
    main()
