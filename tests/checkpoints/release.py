"""Trains a YOLO for two epochs with whatever Ultralytics is installed: run by proof.py in an environment of its own."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ultralytics import YOLO  # type: ignore[attr-defined]  # old releases have it nowhere else


def write_data(folder: Path) -> Path:
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 16:48] = 250, 20, 20
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("0 .5 .5 .5 .5\n")
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [square, disc]\n")
    return data


def main(architecture: str, out: Path) -> None:
    """Write `<architecture>-best.pt`, stripped as a whole training leaves it, and `-last.pt`, as a killed one does."""
    model: Any = YOLO(f"{architecture}.yaml")
    model.add_callback("on_model_save", lambda trainer: shutil.copy(trainer.last, out / f"{architecture}-last.pt"))
    model.train(
        data=str(write_data(out / "data")), epochs=2, imgsz=64, batch=4, device="cpu", workers=0, plots=False,
        amp=False, project=str(out), name=architecture, exist_ok=True,
    )  # fmt: skip
    shutil.copy(out / architecture / "weights" / "best.pt", out / f"{architecture}-best.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
