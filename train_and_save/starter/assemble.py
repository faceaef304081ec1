"""Puts a starter's shipped files together into what the store holds. No torch is needed.

What the captioner shares with the classifier ships once: the network's weights, and those of its graph.
"""

import json
import re
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

STARTER = Path(__file__).parent
CLASSIFICATION, CAPTIONING, DETECTION = (STARTER / task for task in ("classification", "captioning", "detection"))

GRAPHS = "graphs"
"""Beside a starter's other files: its OpenVINO graphs, as graphs.py writes them."""

SHARED = "shared.json"
"""There: of each .bin the parts that the classifier's openvino.bin holds, as [start here, start there, bytes]."""

WEIGHTS, NETWORK = "model.safetensors", "encoder.network."


def parts(task: str) -> list[Path]:
    """The folders that a starter is made of."""
    return [CLASSIFICATION, CAPTIONING] if task == "captioning" else [STARTER / task]


def model(task: str, out: Path) -> None:
    """Write a starter to `out` as an ordinary Hugging Face folder, without graphs."""
    for file in (STARTER / task).glob("*.*"):
        shutil.copyfile(file, out / file.name)
    if task == "captioning":
        weights = load_file(CAPTIONING / WEIGHTS)
        if not any(name.startswith(NETWORK) for name in weights):
            classifier = load_file(CLASSIFICATION / WEIGHTS)
            weights |= {NETWORK + name.removeprefix("timm_model."): weight for name, weight in classifier.items()}
        save_file(weights, out / WEIGHTS, metadata={"format": "pt"})


def graphs(task: str, out: Path) -> None:
    """Write a starter's graphs, and what stands around them, to `out`."""
    shipped = STARTER / task / GRAPHS
    shared: dict[str, list[tuple[int, int, int]]] = {}
    if (shipped / SHARED).is_file():
        shared = json.loads((shipped / SHARED).read_text())
    for file in shipped.glob("openvino*"):
        if shared.get(file.name):
            whole = join(file.read_bytes(), (CLASSIFICATION / GRAPHS / "openvino.bin").read_bytes(), shared[file.name])
            (out / file.name).write_bytes(whole)
        else:
            shutil.copyfile(file, out / file.name)


def join(own: bytes, classifier: bytes, shared: list[tuple[int, int, int]]) -> bytes:
    """Undo split()."""
    whole, taken = bytearray(), 0
    for here, there, size in shared:
        missing = here - len(whole)
        whole += own[taken : taken + missing]
        taken += missing
        whole += classifier[there : there + size]
    return bytes(whole + own[taken:])


def split(graph: Path, classifier: Path, least: int = 1024) -> tuple[bytes, list[tuple[int, int, int]]]:
    """Return the bytes of a graph's .bin that the classifier's lacks, and where the others lie in both.

    They are compared weight by weight, those of `least` bytes or more.
    """
    theirs, ours = (file.with_suffix(".bin").read_bytes() for file in (classifier, graph))
    known = {theirs[start : start + size]: start for start, size in _weights(classifier) if size >= least}
    shared = [
        (start, known[ours[start : start + size]], size)
        for start, size in _weights(graph)
        if ours[start : start + size] in known
    ]
    own, end = bytearray(), 0
    for start, _, size in shared:
        own += ours[end:start]
        end = start + size
    return bytes(own + ours[end:]), shared


def _weights(graph: Path) -> list[tuple[int, int]]:
    """Where each of a graph's weights starts in its .bin, and its bytes."""
    found = re.findall(r'<data [^>]*\boffset="(\d+)" size="(\d+)"', graph.read_text())
    return sorted({(int(start), int(size)) for start, size in found})
