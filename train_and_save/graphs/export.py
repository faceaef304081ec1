"""Writes a network as an OpenVINO graph beside its weights, unless PyTorch is clearly faster here.

It is measured as it is saved: the graph must answer as PyTorch does, and what each engine makes in a second goes onto
the model's card. A graph that does many pictures faster with a core for each (OpenVINO's streams) is marked as such.
Classifiers, NanoDet, YOLO, RT-DETR and kin, and captioners of captioner_parts.py have graphs.
Single precision only: half precision was slower wherever it was tried (benchmarks/README.md).
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from train_and_save.graphs.streams import (
    BATCH,
    EAGER,
    OPENVINO,
    OPENVINO_STREAMS,
    keep_fastest,
    mark,
    noise_pictures,
    paces,
    picture,
    two_folders,
)
from vision.core import engine
from vision.core.engine import GRAPH_CONFIG
from vision.core.pixels import Steps
from vision.core.schemas import Card, Pixels
from vision.tasks.captioning.captioner import DECODER_GRAPH, GraphWriter, Sentence, StreamsWriter, Writer
from vision.tasks.captioning.captioner_parts import Family, Say, See, family, rules
from vision.tasks.captioning.spec import CaptionOptions
from vision.tasks.captioning.transformers_captioner import TransformersWriter
from vision.tasks.classification.transformers_classifier import TransformersNetwork
from vision.tasks.detection import detr_graph, nanodet_module
from vision.tasks.detection.detr import DetrNetwork, Queries, QueriesAlone
from vision.tasks.detection.nanodet import SIDE

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of logits, scores and pixels of a box; on AVX2 and avx512_bf16 alike 1.5e-4 was the largest difference seen."""

PIXEL_TOLERANCE = 0.01
"""Of normalised pixels, in the mean: Pillow's resizing and torchvision's round in their own ways. A crop that lies a
pixel aside makes 0.3."""


def add_graph(folder: Path, card: Card) -> Card:
    """Add graphs to a model in safetensors, unless PyTorch is clearly faster; return the card with images/s by engine.

    A model that has no graph, or whose graph answers in another way, stays as it was.
    """
    config = json.loads((folder / "config.json").read_text())
    try:
        if card.task == "classification":
            paces = _classification(folder)
        elif config["model_type"] == "nanodet":
            paces = _add_graph(folder, nanodet_module.load(folder, len(config["labels"])), _noise(3, SIDE, SIDE))
        elif config["model_type"] == "yolo":
            paces = _yolo(folder, config["side"])
        elif card.task == "captioning":
            paces = _captioning(folder)
        else:
            paces = _detr(folder)
    except Exception as error:
        # OpenVINO raises nearly every type for what it cannot convert; the model is served by PyTorch then.
        log.warning("%s runs on PyTorch; OpenVINO: %s", card.name, str(error).splitlines()[0])
        return card
    return card.model_copy(update={"engines": paces})


def _classification(folder: Path) -> dict[str, float]:
    network = TransformersNetwork(folder, "cpu")
    around = {"labels": network.labels, "multi_label": network.multi_label}
    _write_steps(folder, network.processor, network.preprocess, around)
    return _add_graph(folder, network.module, _noise(*_shape(lambda grey: network.preprocess([grey]))))


def _write_steps(
    folder: Path, processor: Any, preprocess: Callable[[list[Pixels]], Any], around: dict[str, Any] | None = None
) -> None:
    """Write a processor's steps, with what else stands around the network, if Steps does them in the same way.

    Who runs the network without transformers' processor needs them: a graph, and a GPU, which is given bytes.
    """
    steps = _steps(processor)
    if steps is None:
        return
    (folder / GRAPH_CONFIG).write_text(json.dumps({**(around or {}), **steps}, indent=1))
    if not _same_pixels(Steps.load(folder), preprocess):
        (folder / GRAPH_CONFIG).unlink()


def _shape(preprocess: Callable[[Pixels], Any]) -> tuple[int, ...]:
    """Return the shape of what a network takes of a picture, the same for every picture."""
    grey = [np.full((*size, 3), 127, np.uint8) for size in ((48, 64), (64, 48))]
    upright, wide = (tuple(preprocess(pixels).shape[1:]) for pixels in grey)
    if upright != wide:
        raise ValueError("its inputs are of many shapes, and a graph takes one.")
    return upright


def _steps(processor: Any) -> dict[str, Any] | None:
    """Return a processor's steps as GraphNetwork and GraphWriter do them without torchvision, if they are the same."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return _timm_steps(processor)
    settings = processor.to_dict()
    size = settings.get("size") or {}
    if not all(settings.get(step) for step in ("do_resize", "do_rescale")) or settings.get("do_pad"):
        return None
    normalized = settings.get("do_normalize")
    resize: int | list[int] | None = None
    crop = (settings.get("crop_size") or {}).get("height") if settings.get("do_center_crop") else None
    if "height" in size:
        resize = [size["height"], size["width"]]
    elif "shortest_edge" in size and "crop_pct" in settings:  # ConvNext's
        crop = size["shortest_edge"]
        resize = int(crop / settings["crop_pct"]) if crop < 384 else [crop, crop]
    elif "shortest_edge" in size:
        resize = size["shortest_edge"]
    if resize is None or (isinstance(resize, int) and crop is None):
        return None
    return {
        "resize": resize,
        "crop": crop,
        "resample": Image.Resampling(settings["resample"]).name,
        "mean": settings["image_mean"] if normalized else [0.0] * 3,
        "std": settings["image_std"] if normalized else [1.0] * 3,
    }


def _timm_steps(processor: TimmWrapperImageProcessor) -> dict[str, Any] | None:
    steps = processor.val_transforms.transforms
    kinds = [type(step).__name__ for step in steps]
    if kinds != ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"] or len(set(steps[1].size)) > 1:
        return None
    config = processor.data_config
    return {
        "resize": steps[0].size,
        "crop": steps[1].size[0],
        "resample": config["interpolation"].upper(),
        "mean": config["mean"],
        "std": config["std"],
    }


def _same_pixels(ours: Callable[..., Any], theirs: Callable[..., Any]) -> bool:
    """Whether two preprocessings give the same, up to rounding, on noise of several shapes."""
    pictures = [picture(*size) for size in ((480, 640), (640, 427), (100, 80), (3, 7), (1, 1))]
    return all(np.abs(ours([one]) - np.asarray(theirs([one]))).mean() <= PIXEL_TOLERANCE for one in pictures)


def _captioning(folder: Path) -> dict[str, float]:
    eager = TransformersWriter(folder, "cpu")
    _write_steps(folder, eager.processor, eager.preprocess)
    with two_folders() as (graphs, streams):
        parts = family(eager.model)
        _convert_captioner(parts, eager, graphs)
        eager.tokenizer.backend_tokenizer.save(str(graphs / "tokenizer.json"))
        graph = GraphWriter(graphs)
        if not _same_pixels(graph.preprocess, eager.preprocess):
            raise ValueError("its preprocessing is not known here.")
        _refuse(_difference_of_log_probs(graph, parts, eager))
        pictures = noise_pictures()
        options = CaptionOptions()
        mark(graphs, streams)
        writers: dict[str, Writer] = {EAGER: eager, OPENVINO: graph, OPENVINO_STREAMS: StreamsWriter(streams)}
        expected, *others = (writer.write(pictures, options) for writer in writers.values())
        if not all(_is_same(one, other) for said in others for one, other in zip(said, expected, strict=True)):
            raise ValueError("its sentences are found in another way than here.")
        found = paces({name: partial(writer.write, pictures, options) for name, writer in writers.items()})
        keep_fastest(found, graphs, streams, folder)
    return found


def _is_same(one: Sentence, other: Sentence) -> bool:
    return one.text == other.text and abs(one.score - other.score) <= TOLERANCE


def _convert_captioner(parts: Family, eager: TransformersWriter, out: Path) -> None:
    steps, found = _steps(eager.processor), rules(parts)
    if steps is None or not isinstance(steps["resize"], list) or steps["crop"]:
        raise ValueError("its preprocessing is not known here.")
    height, width = steps["resize"]
    see, say = See(parts).eval(), Say(parts).eval()
    pixels = torch.zeros(2, 3, height, width)
    with torch.inference_mode():
        seen = see(pixels)
    _, heads, head, _ = seen[0].shape
    cache = [len(parts.layers), 2, heads, head]
    said = torch.zeros(2, *cache[:3], 1, head)
    _convert(see, (pixels,), [[-1, 3, height, width]], out / engine.GRAPH)
    tokens, parents = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    shapes = [[-1], [-1], [-1, *cache[:3], -1, head], *([-1, *part.shape[1:]] for part in seen)]
    _convert(say, (tokens, parents, said, *seen), shapes, out / DECODER_GRAPH)
    (out / GRAPH_CONFIG).write_text(json.dumps({**steps, "rules": asdict(found), "cache": cache}, indent=1))


def _difference_of_log_probs(graph: GraphWriter, parts: Family, eager: TransformersWriter) -> float:
    """Of every next token, over a sentence of some tokens for each of two pictures of noise."""
    model, inputs = eager.model, torch.from_numpy(graph.preprocess([picture(240, 320), picture(320, 240)]))
    seen, said = graph.see(inputs.numpy()), graph.nothing_said(2)
    sentences = torch.randint(1000, (2, 8), generator=_seeded())
    with torch.inference_mode():
        if model.config.model_type == "blip":
            embeds = model.vision_model(pixel_values=inputs)[0]
            logits = model.text_decoder(sentences, encoder_hidden_states=embeds).logits
        else:
            logits = model(pixel_values=inputs, decoder_input_ids=sentences).logits
    difference = 0.0
    for position, expected in enumerate(logits.log_softmax(-1).numpy().transpose(1, 0, 2)):
        log_probs, said = graph.say(sentences[:, position].numpy(), np.arange(2), said, *seen)
        difference = max(difference, float(np.abs(log_probs - expected).max()))
    return difference


def _yolo(folder: Path, side: int) -> dict[str, float]:
    from vision.tasks.detection import yolo_module

    module = yolo_module.load(folder)
    pictures = torch.randint(256, (BATCH, side, side, 3), generator=_seeded()).to(torch.uint8)
    paces = _add_graph(folder, module, pictures, [-1, -1, -1, 3])
    if engine.has_graph(folder, "cpu"):
        (folder / GRAPH_CONFIG).write_text(json.dumps({"end2end": module.end2end}))
    return paces


def _detr(folder: Path) -> dict[str, float]:
    network = DetrNetwork(folder, "cpu")
    if network.preprocess(picture(48, 64)).keys() != {"pixel_values"}:
        raise ValueError("its inputs have masks, and a graph takes none.")
    shape = _shape(lambda grey: network.preprocess(grey)["pixel_values"])

    def preprocess(pictures: list[Pixels]) -> torch.Tensor:
        return network.preprocess(pictures[0])["pixel_values"]

    around: dict[str, Any] = {"labels": network.labels}
    if _same_to_the_level(network.processor, preprocess):
        around |= _ways_to_answer(network.processor, QueriesAlone(network.model), shape)
    _write_steps(folder, network.processor, preprocess, around)
    return _add_graph(folder, QueriesAlone(network.model), _noise(*shape))


def _same_to_the_level(processor: Any, theirs: Callable[[list[Pixels]], torch.Tensor]) -> bool:
    """Whether detr_graph.preprocess() makes the very pixels that a processor makes, of noise of several shapes."""
    found = _steps(processor)
    if found is None or found["resample"] != "BILINEAR" or found["crop"]:
        return False
    steps = Steps(**found)
    shapes = ((480, 640), (1000, 751), (100, 80), (3, 7), (1, 1))
    return all(
        np.abs(detr_graph.preprocess(steps, [one]) - theirs([one]).numpy()).max() <= TOLERANCE
        for one in (picture(*shape) for shape in shapes)
    )


def _ways_to_answer(processor: Any, module: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how detr_graph.found() gets the processor's answers from a network's outputs; empty where it cannot."""
    with torch.inference_mode():
        logits, boxes = module(torch.zeros(1, *shape))
    # None so near another that rounding could put them in another order.
    logits = torch.linspace(-4, 4, logits.numel())[torch.randperm(logits.numel(), generator=_seeded())].view_as(logits)
    [expected] = processor.post_process_object_detection(Queries(logits, boxes.sigmoid()), threshold=0.0)
    order = expected["scores"].argsort(descending=True, stable=True)
    queries = logits.shape[1]
    ways: list[tuple[detr_graph.Scores, int]] = [("sigmoid", queries), ("sigmoid", 100), ("softmax", queries)]
    for scores, most in ways:
        found = detr_graph.found(logits[0].numpy(), boxes[0].sigmoid().numpy(), scores, most, 0.0)
        parts = [expected[name][order].numpy() for name in ("scores", "labels", "boxes")]
        same_shapes = [np.shape(one) for one in found] == [one.shape for one in parts]
        if same_shapes and _difference(found, [*parts[:2], parts[2].clip(0, 1)]) <= TOLERANCE:
            return {"scores": scores, "most": most}
    return {}


def _add_graph(
    folder: Path, module: nn.Module, inputs: torch.Tensor, shape: list[int] | None = None
) -> dict[str, float]:
    """Convert, compare and measure on inputs (BATCH, ...); a shape that is not theirs has -1 where any size may be."""
    eager = engine.eager(module, "cpu")
    with two_folders() as (graphs, streams):
        _convert(module, (inputs,), [shape or [-1, *inputs.shape[1:]]], graphs / engine.GRAPH)
        mark(graphs, streams)
        engines = {EAGER: eager, OPENVINO: engine.openvino(graphs), OPENVINO_STREAMS: engine.openvino(streams)}
        expected, *others = (one(inputs.numpy()) for one in engines.values())
        difference = max(_difference(other, expected) for other in others)
        if difference > TOLERANCE:
            _refuse(difference, max(TOLERANCE, 2 * _rounding(module, inputs)))
        found = paces({name: partial(one, inputs.numpy()) for name, one in engines.items()})
        keep_fastest(found, graphs, streams, folder)
    return found


def _noise(*shape: int) -> torch.Tensor:
    return torch.rand((BATCH, *shape), generator=_seeded()) * 2 - 1


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _convert(module: nn.Module, example: tuple[torch.Tensor, ...], shapes: list[list[int]], out: Path) -> None:
    import openvino as ov  # late, here and below: a model for a GPU is saved without it

    with torch.inference_mode(), warnings.catch_warnings():
        # Of torch.jit.trace, which convert_model goes through, and of checks of shapes, which are constants here.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        model = ov.convert_model(module, example_input=example)
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    ov.save_model(model, out, compress_to_fp16=False)


def _rounding(module: nn.Module, inputs: torch.Tensor) -> float:
    """How much PyTorch's outputs in single precision differ from those in double: little in a network that learnt."""
    exact = copy.deepcopy(module).double()
    wide = inputs.double() if inputs.is_floating_point() else inputs
    return _difference(engine.eager(module, "cpu")(inputs.numpy()), engine.eager(exact, "cpu")(wide.numpy()))


def _difference(some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def _refuse(difference: float, most: float = TOLERANCE) -> None:
    if difference > most:
        raise ValueError(f"OpenVINO's answers differ from PyTorch's by {difference:g}; at most {most:g} may be.")
