"""The models as each documentation would load and call them: eager torch in float32, one PIL picture a call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.case import Answer, Case

Look = Callable[[Image.Image], Answer]

MIN_SCORE, MAX_DETECTIONS = 0.25, 100
"""Of detection, as in vision/tasks/detection/spec.py."""


def load(case: Case) -> Look:
    """Load a case's original weights; return what looks at a picture."""
    match case.task:
        case "classification":
            return _classifier(case.original)
        case "captioning":
            return _captioner(case.original, case.options)
        case _:
            return _yolo(case.original) if case.original.suffix == ".pt" else _nanodet(case.original)


def _classifier(folder: Path) -> Look:
    from transformers import pipeline

    classify: Any = pipeline("image-classification", model=str(folder), device="cpu", dtype=torch.float32)
    return lambda picture: {"labels": classify(picture.convert("RGB"), top_k=5)}


def _captioner(folder: Path, options: dict[str, int]) -> Look:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoTokenizer,
        VisionEncoderDecoderModel,
    )

    from vision.tasks.captioning import grid_encoder

    grid_encoder.register()  # the starter's encoder is ours
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    paired = AutoConfig.from_pretrained(folder).model_type == "vision-encoder-decoder"
    loader: Any = VisionEncoderDecoderModel if paired else AutoModelForImageTextToText
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def look(picture: Image.Image) -> Answer:
        pixel_values = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        tokens = model.generate(pixel_values=pixel_values, **options)
        return {"caption": tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()}

    return look


def _yolo(pt: Path) -> Look:
    from ultralytics.models.yolo.model import YOLO

    model: Any = YOLO(pt)

    def look(picture: Image.Image) -> Answer:
        options: dict[str, Any] = {"conf": MIN_SCORE, "max_det": MAX_DETECTIONS, "imgsz": 640, "device": "cpu"}
        boxes = model.predict(picture.convert("RGB"), verbose=False, **options)[0].boxes
        rows = zip(boxes.cls.tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), strict=True)
        return {"objects": [_object(model.names[int(label)], score, box) for label, score, box in rows]}

    return look


def _nanodet(folder: Path) -> Look:
    """The starter's network has no library of its own: its published pre- and postprocessing, one picture a call."""
    from safetensors.torch import load_file
    from torchvision.ops import batched_nms

    from vision.tasks.detection.nanodet import MEAN_BGR, NMS_IOU, SIDE, STD_BGR
    from vision.tasks.detection.nanodet_module import NanoDet

    labels: list[str] = json.loads((folder / "config.json").read_text())["labels"]
    model = NanoDet(len(labels))
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    model.eval()

    @torch.inference_mode()
    def look(picture: Image.Image) -> Answer:
        pixels = np.asarray(picture.convert("RGB"))
        scale = SIDE / max(pixels.shape[:2])
        height, width = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        canvas = np.zeros((SIDE, SIDE, 3), np.float32)
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        canvas[top : top + height, left : left + width] = (small[..., ::-1] - MEAN_BGR) / STD_BGR
        scores, boxes = (output[0] for output in model(torch.from_numpy(canvas).permute(2, 0, 1)[None]))
        anchors, classes = (scores >= MIN_SCORE).nonzero(as_tuple=True)
        found = scores[anchors, classes]
        keep = batched_nms(boxes[anchors], found, classes, NMS_IOU)
        corners = (boxes[anchors[keep]] - torch.tensor([left, top, left, top])) / scale
        corners = corners.clamp(torch.zeros(4), torch.tensor([pixels.shape[1], pixels.shape[0]] * 2))
        rows = zip(classes[keep].tolist(), found[keep].tolist(), corners.tolist(), strict=True)
        return {"objects": [_object(labels[label], score, box) for label, score, box in rows]}

    return look


def _object(label: str, score: float, box: list[float]) -> Answer:
    return {"label": label, "score": score, "box": box}
