"""Turns an Ultralytics checkpoint (.pt, a pickle) into safetensors and a configuration, in a process of its own.

A pickle may hold any code. Here it is read by torch's restricted unpickler, which builds only what is named to it:
classes of torch.nn and of Ultralytics' own networks. A checkpoint that asks for more is refused unread. The process
has an empty environment, no standard input and limits on time and memory.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SECONDS = 600
MEMORY_BYTES = 16 * 1024**3
CLASSES = ("torch.nn.modules.", "ultralytics.nn.modules.", "ultralytics.nn.tasks.")
PLAIN = {"ultralytics.utils.IterableSimpleNamespace", "torch.Size", "torch.device"}


def convert(pt: Path, out: Path) -> None:
    """Write a detector's checkpoint into `out` as model.safetensors and config.json.

    Raises ValueError with one line when it is no detector, holds other code than a network, or cannot be read.
    """
    with TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-I", __file__, str(pt.absolute()), str(out.absolute())],
            env={"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "HOME": folder},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ValueError(f"{pt.name} was not converted: {reason}")


def _convert(pt: Path, out: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from ultralytics.nn.tasks import DetectionModel

    with torch.serialization.safe_globals(_allowed(pt)):
        checkpoint = torch.load(pt, map_location="cpu", weights_only=True)
    model = checkpoint.get("ema") or checkpoint["model"]
    if type(model) is not DetectionModel:
        sys.exit(f"it holds a {type(model).__name__}, which is no detector")
    weights = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
    side = checkpoint.get("train_args", {}).get("imgsz", 640)
    labels = [model.names[index] for index in range(len(model.names))]
    config = {"model_type": "yolo", "yaml": model.yaml, "labels": labels, "side": side}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))


def _allowed(pt: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Import the classes that a checkpoint names, after checking that each is part of a network."""
    import importlib

    import torch

    classes: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(pt):
        if not name.startswith(CLASSES) and name not in PLAIN:
            sys.exit(f"it asks for {name}, which is no part of a network; nothing of it was run")
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, type):
            sys.exit(f"it asks for {name}, which is no class; nothing of it was run")
        classes.append(found)
    return classes


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
