"""Turns an Ultralytics checkpoint (.pt, a pickle) into safetensors and a configuration, in a process of its own.

A pickle may hold any code. Here it is read by torch's restricted unpickler, which builds only what is named to it:
classes of torch.nn and of Ultralytics' own networks. What a training leaves beside the network (before 8.2.48 its loss,
in a file that was not stripped its figures) is not built either: an empty object stands for it. A checkpoint that asks
for more is refused unread. The process has an empty environment, no standard input and limits on time and memory.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

SECONDS = 600
MEMORY_BYTES = 16 * 1024**3
CLASSES = ("torch.nn.modules.", "ultralytics.nn.modules.", "ultralytics.nn.tasks.")
PLAIN = {"ultralytics.utils.IterableSimpleNamespace", "torch.Size", "torch.device"}
BEFORE_8_0_136 = "ultralytics.yolo.utils."
"""Where ultralytics.utils lay then."""
ACTIVATION = re.compile(r"(torch\.)?nn\.\w+\([\w=., -]*\)")
UNREAD = {
    *(f"ultralytics.utils.loss.{name}" for name in ("v8DetectionLoss", "E2EDetectLoss", "E2ELoss")),
    *(f"ultralytics.utils.loss.{name}" for name in ("BboxLoss", "DFLoss", "VarifocalLoss", "FocalLoss")),
    "ultralytics.utils.tal.TaskAlignedAssigner",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),
}
"""What Ultralytics' trainers pickle beside a network."""


class Unread:
    """Stands for what is in UNREAD; what it is made of is dropped."""

    def __new__(cls, *_: object) -> "Unread":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def convert(pt: Path, out: Path) -> None:
    """Write a detector's checkpoint into `out` as model.safetensors and config.json.

    Raises ValueError with one line when it is no detector, holds other code than a network, or cannot be read.
    """
    with TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-sP", __file__, str(pt.absolute()), str(out.absolute())],
            env={
                "PYTHONPATH": _home_of("ultralytics"),  # all else that the caller has set stays behind
                "YOLO_CONFIG_DIR": folder,
                "YOLO_OFFLINE": "true",
                "YOLO_AUTOINSTALL": "false",
                "HOME": folder,
            },
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


def _home_of(package: str) -> str:
    """Return the folder that holds a package, as this process finds it; nothing where it is not installed."""
    spec = find_spec(package)
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else ""


def _convert(pt: Path, out: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from ultralytics.nn.tasks import DetectionModel

    with torch.serialization.safe_globals(_allowed(pt)), patch.object(torch.nn.Module, "__init__", _never_called):
        checkpoint = torch.load(pt, map_location="cpu", weights_only=True)
    model: Any = checkpoint.get("ema") or checkpoint["model"]
    if type(model) is not DetectionModel:
        sys.exit(f"it holds a {type(model).__name__}, which is no detector")
    weights = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
    side = checkpoint.get("train_args", {}).get("imgsz", 640)
    labels = [model.names[index] for index in range(len(model.names))]
    config: dict[str, Any] = {"model_type": "yolo", "yaml": model.yaml, "labels": labels, "side": side}
    _check_architecture(config["yaml"])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))


def _never_called(*_: object, **__: object) -> None:
    sys.exit("it calls a constructor, while a saved network is only filled; nothing of it was run")


def _check_architecture(architecture: dict[str, Any]) -> None:
    """End where Ultralytics' parse_model, which evaluates an activation and looks names up, would build no layer."""
    import torch
    from ultralytics.nn import tasks

    activation = str(architecture.get("activation") or "nn.SiLU()")
    if not ACTIVATION.fullmatch(activation):
        sys.exit(f"its activation is {activation!r}, which is no layer; nothing of it was run")
    for row in architecture["backbone"] + architecture["head"]:
        name = str(row[2])
        found = getattr(torch.nn, name.removeprefix("nn."), None) if "nn." in name else getattr(tasks, name, None)
        if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
            sys.exit(f"its architecture names {name}, which is no layer; nothing of it was run")


def _allowed(pt: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Import the classes that a checkpoint names, after checking that each is part of a network; Unread for others."""
    import importlib

    import torch

    classes: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for asked in torch.serialization.get_unsafe_globals_in_checkpoint(pt):
        name = asked.replace(BEFORE_8_0_136, "ultralytics.utils.")
        if name in UNREAD:
            classes.append((Unread, asked))
            continue
        if not name.startswith(CLASSES) and name not in PLAIN:
            sys.exit(f"it asks for {name}, which is no part of a network; nothing of it was run")
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        if not (isinstance(found, type) and (name in PLAIN or issubclass(found, torch.nn.Module))):
            sys.exit(f"it asks for {name}, which is no class of a network; nothing of it was run")
        classes.append((found, asked))
    return classes


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
