"""A graph may be asked by several threads from its first call on."""

import subprocess
import sys

from testkit.servers import ROOT

FIRST_CALLS = """
import sys, threading
from pathlib import Path
import numpy as np
from vision.core import engine

graph = engine.Graph(engine.read(Path("train_and_save/starter/classification/graphs/openvino.xml")), "THROUGHPUT")
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(4)

def ask():
    barrier.wait()
    answers.append(graph(np.zeros((1, 3, 224, 224), np.float32))[0].tobytes())

answers = []
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(answers) == 4
assert len(set(answers)) == 1
"""


def test_the_first_calls_may_come_from_several_threads_at_once() -> None:
    """OpenVINO 2026.4 makes a table then, under two locks that two threads take in different orders."""
    subprocess.run([sys.executable, "-c", FIRST_CALLS], cwd=ROOT, check=True, timeout=60)
