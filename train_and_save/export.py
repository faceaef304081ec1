"""Writes a network as an OpenVINO graph beside its weights, where that is the faster engine here.

It is measured as it is saved: the graph must answer as PyTorch does, and what each engine makes in a second goes onto
the model's card. Classifiers have a graph, and what ships with the code; other detectors and captioners run on PyTorch.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
import torch
from PIL import Image
from torch import nn
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from train_and_save.captioner_graphs import Say, See
from vision.models import engine, nanodet_module
from vision.models.captioner import DECODER_GRAPH, GraphWriter
from vision.models.concepts import ConceptEncoderConfig
from vision.models.engine import GRAPH_CONFIG
from vision.models.nanodet import SIDE
from vision.models.transformers_captioner import TransformersWriter
from vision.models.transformers_classifier import TransformersNetwork
from vision.schemas import CaptionOptions, Card

log = logging.getLogger(__name__)

BATCH = 4
TOLERANCE = 1e-3
"""Of logits, scores and pixels of a box; on AVX2 and avx512_bf16 alike 1.5e-4 was the largest difference seen."""

SECONDS = 1.0
EAGER, OPENVINO = "pytorch eager", "openvino float32"


def add_graph(folder: Path, card: Card) -> Card:
    """Add graphs to a model in safetensors, where they are the faster; return the card with images/s by engine.

    A model that has no graph, or whose graph answers in another way, stays as it was.
    """
    config = json.loads((folder / "config.json").read_text())
    try:
        if card.task == "classification":
            paces = _classification(folder)
        elif config["model_type"] == "nanodet":
            paces = _add_graph(folder, nanodet_module.load(folder, len(config["labels"])), (3, SIDE, SIDE))
        elif config.get("encoder", {}).get("model_type") == ConceptEncoderConfig.model_type:
            paces = _captioning(folder)
        else:
            return card
    except Exception as error:
        # OpenVINO raises nearly every type for what it cannot convert; the model is served by PyTorch then.
        log.warning("%s runs on PyTorch; OpenVINO: %s", card.name, str(error).splitlines()[0])
        return card
    return card.model_copy(update={"engines": paces})


def _classification(folder: Path) -> dict[str, float]:
    network = TransformersNetwork(folder, "cpu")
    grey = [np.full((*size, 3), 127, np.uint8) for size in ((48, 64), (64, 48))]
    upright, wide = (network.preprocess([pixels]).shape[1:] for pixels in grey)
    if upright != wide:
        raise ValueError("its inputs are of many shapes, and a graph takes one.")
    paces = _add_graph(folder, network.module, upright)
    if engine.has_graph(folder, "cpu") and isinstance(network.processor, TimmWrapperImageProcessor):
        _write_steps(network, folder)
    return paces


def _write_steps(network: TransformersNetwork, folder: Path) -> None:
    """Note what stands around the graph of a timm network, where the classifier can do it without torchvision."""
    steps = network.processor.val_transforms.transforms
    kinds = [type(step).__name__ for step in steps]
    if kinds != ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"] or len(set(steps[1].size)) > 1:
        return
    config = network.processor.data_config
    around = {
        "labels": network.labels,
        "multi_label": network.multi_label,
        "resize": steps[0].size,
        "crop": steps[1].size[0],
        "resample": config["interpolation"].upper(),
        "mean": config["mean"],
        "std": config["std"],
    }
    (folder / GRAPH_CONFIG).write_text(json.dumps(around, indent=1))


def _captioning(folder: Path) -> dict[str, float]:
    eager = TransformersWriter(folder, "cpu")
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(BATCH)]
    with TemporaryDirectory() as place:
        graphs = Path(place)
        _convert_captioner(eager, graphs)
        (graphs / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        graph = GraphWriter(graphs)
        _refuse(_difference_of_log_probs(graph, eager))
        options = CaptionOptions()
        paces = _paces(
            {EAGER: lambda: eager.write(pictures, options), OPENVINO: lambda: graph.write(pictures, options)}
        )
        _keep_if_faster(paces, graphs, folder)
    return paces


def _convert_captioner(eager: TransformersWriter, out: Path) -> None:
    model, processor, search = eager.model, eager.processor, eager.model.generation_config
    height, width = processor.size["height"], processor.size["width"]
    see, say = See(model), Say(model)
    pixels = torch.zeros(2, 3, height, width)
    with torch.inference_mode():
        seen = see(pixels)
    _, layers, pair, heads, _, head = seen.shape
    said = torch.zeros(2, layers, pair, heads, 1, head)
    _convert(see, (pixels,), [[-1, 3, height, width]], out / engine.GRAPH)
    tokens, parents = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    shapes = [[-1], [-1], [-1, layers, pair, heads, -1, head], [-1, *seen.shape[1:]]]
    _convert(say, (tokens, parents, said, seen), shapes, out / DECODER_GRAPH)
    rules = {
        "decoder_start_token_id": search.decoder_start_token_id,
        "eos_token_id": search.eos_token_id,
        "max_new_tokens": search.max_new_tokens,
        "num_beams": search.num_beams,
        "no_repeat_ngram_size": search.no_repeat_ngram_size,
        "suppress_tokens": search.suppress_tokens,
        "positions": model.decoder.config.n_positions,
    }
    around = {
        "width": width,
        "height": height,
        "resample": Image.Resampling(processor.resample).name,
        "mean": processor.image_mean,
        "std": processor.image_std,
        "rules": rules,
    }
    (out / GRAPH_CONFIG).write_text(json.dumps(around, indent=1))


def _difference_of_log_probs(graph: GraphWriter, eager: TransformersWriter) -> float:
    """Of every next token, over a sentence of some tokens for each of two pictures of noise."""
    inputs = _noise((2, 3, graph.size[1], graph.size[0]))
    vocabulary = eager.model.decoder.config.vocab_size
    sentences = torch.randint(vocabulary, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = eager.model(pixel_values=inputs, decoder_input_ids=sentences).logits
    [seen] = graph.see(inputs.numpy())
    said = np.zeros((2, *seen.shape[1:4], 0, seen.shape[5]), np.float32)
    difference = 0.0
    for position, expected in enumerate(logits.log_softmax(-1).numpy().transpose(1, 0, 2)):
        log_probs, said = graph.say(sentences[:, position].numpy(), np.arange(2), said, seen)
        difference = max(difference, float(np.abs(log_probs - expected).max()))
    return difference


def _add_graph(folder: Path, module: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    inputs = _noise((BATCH, *shape))
    eager = engine.eager(module, "cpu")
    with TemporaryDirectory() as place:
        _convert(module, (inputs,), [[-1, *shape]], Path(place) / engine.GRAPH)
        graph = engine.openvino(Path(place))
        pairs = zip(graph(inputs.numpy()), eager(inputs.numpy()), strict=True)
        _refuse(max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs))
        paces = _paces({EAGER: lambda: eager(inputs.numpy()), OPENVINO: lambda: graph(inputs.numpy())})
        _keep_if_faster(paces, Path(place), folder)
    return paces


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _convert(module: nn.Module, example: tuple[torch.Tensor, ...], shapes: list[list[int]], out: Path) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.trace, which convert_model goes through
        model = ov.convert_model(module, example_input=example)
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    ov.save_model(model, out, compress_to_fp16=False)


def _refuse(difference: float) -> None:
    if difference > TOLERANCE:
        raise ValueError(f"OpenVINO's answers differ from PyTorch's by {difference:g}; at most {TOLERANCE:g} may be.")


def _keep_if_faster(paces: dict[str, float], graphs: Path, folder: Path) -> None:
    if paces[OPENVINO] > paces[EAGER]:
        for file in graphs.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


def _paces(engines: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Images a second of each, the best of runs of BATCH in turns: a machine's noise only ever slows."""
    best = dict.fromkeys(engines, 0.0)
    end = time.perf_counter() + SECONDS * len(engines)
    for run in engines.values():
        run()
    while time.perf_counter() < end:
        for name, run in engines.items():
            start = time.perf_counter()
            run()
            best[name] = max(best[name], BATCH / (time.perf_counter() - start))
    return {name: round(pace, 1) for name, pace in best.items()}
