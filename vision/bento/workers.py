"""The public processes: how many there are, and what they count together."""

import os
from functools import cache

from prometheus_client import multiprocess

from vision.bento import hop
from vision.core.device import cores, likely_gpu
from vision.core.ledger import Ledger
from vision.settings import SETTINGS
from vision.tasks import TASKS


def default(cores: int, *, gpu: bool) -> int:
    """Return how many public processes feed the models: on a CPU those need the cores themselves.

    One keeps somewhat more than two cores busy, of which one is its event loop's.
    """
    return max(1, (cores - 1) // 2) if gpu else 1


COUNT: int = SETTINGS.workers or default(cores(), gpu=any(likely_gpu(SETTINGS.device, task) for task in TASKS))

DRAINING, CONNECTIONS, IN_FLIGHT, BUFFERED = "draining", "connections", "requests in flight", "bytes buffered"


def warm(task: str, index: int) -> str:
    """The name of what tells that the model at `index` is warm."""
    return f"{task} {index} is warm"


def in_flight_of(key: str) -> str:
    """The column of a key's requests in work."""
    return f"requests of {key}"


def bucket_of(key: str) -> tuple[str, str]:
    """The cells of a key: requests that are left of its minute, and as of when."""
    return f"tokens of {key}", f"updated of {key}"


@cache
def ledger() -> Ledger:
    """This public process's row among the others, in a file beside the runners' sockets.

    Where nothing is served, as in a test of a part, there are no others.
    """
    models = [warm(task, index) for task in TASKS for index in range(len(SETTINGS.models(task)))]
    columns = [DRAINING, CONNECTIONS, IN_FLIGHT, BUFFERED, *models, *map(in_flight_of, SETTINGS.api_keys)]
    cells = [*models, *(name for key in SETTINGS.api_keys for name in bucket_of(key))]
    if "BENTOML_RUNNER_MAP" not in os.environ:
        return Ledger(None, 1, columns, cells, SETTINGS.max_in_flight)
    path = next(iter(hop.sockets().values())).parent / "public.ledger"
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    return Ledger(file, COUNT, columns, cells, SETTINGS.max_in_flight, multiprocess.mark_process_dead)
