"""python -m testkit.fuzz [--mutations N] [--examples N] [--seed N]: all that the tests send a part of, and figures.

Ends with the first answer that is undocumented, blames the service or hangs, and with the first process that dies.
"""

import argparse
import time

import httpx

from testkit.fuzz.attack import Attack, attack
from testkit.fuzz.bombs import BOMBS, LARGE, Bomb
from testkit.fuzz.pictures import cases, corpus
from testkit.fuzz.schema import schemathesis
from testkit.fuzz.watch import HANG_SECONDS, check_answer, fresh_server, growth, pids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=8_000, help="pictures beside the whole and the cut ones")
    parser.add_argument("--examples", type=int, default=400, help="generated requests an operation, about")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with fresh_server() as server:
        before = pids(server.url)
        for bombs in (BOMBS, LARGE):
            tell_bombs(server.url, bombs)
        files = corpus()
        done = attack(server.url, cases(files, chosen.mutations, chosen.seed), chosen.seed, tell_progress)
        print(f"\n{len(files):,} files, whole, cut and mutated: {done}")
        requests, told = schemathesis(server.url, chosen.examples, chosen.seed)
        print(f"\nschemathesis: {requests:,} requests, each answer as documented")
        print(told[told.index("Test Phases") :])
        assert pids(server.url) == before, "a process has died"
        traces = [line for line in server.lines if '"exception"' in line]
        assert not traces, traces[0]
    print("No process died, nothing hung, every answer was a documented one that blames the input.")


def tell_bombs(url: str, bombs: dict[str, Bomb]) -> None:
    print(f"\n{'picture':50}{'bytes':>12}{'answer':>20}{'seconds':>9}{'MB more':>9}")
    with httpx.Client(base_url=url, timeout=6 * HANG_SECONDS) as client:
        for name, bomb in bombs.items():
            data = bomb.make()
            with growth(url) as more:
                start = time.perf_counter()
                response = client.post("/classify", files={"images": data})
                seconds = time.perf_counter() - start
            (outcome,) = check_answer(url, response, 1)
            assert outcome == bomb.outcome, (name, outcome)
            print(f"{name:50}{len(data):12,}{outcome:>20}{seconds:9.2f}{more.highest:9.0f}", flush=True)


def tell_progress(done: Attack) -> None:
    print(f"{done.pictures:,} pictures", end="\r", flush=True)


if __name__ == "__main__":
    main()
