"""A hub on loopback, and checkpoints of real architectures with seeded random weights to put on it."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from torch import nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    ConvNextImageProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from ultralytics.models.yolo.model import YOLO

from testkit.photographs import PHOTOS

COMMIT = "c" * 40
LABELS = {index: f"label {index}" for index in range(1000)}


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders `owner/repository` below `root` as the Hugging Face hub does, as far as its client asks."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root = root
        self.requests: list[tuple[str, str, str | None]] = []
        self.breaks: set[str] = set()
        """File names whose next download is cut in the middle."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            self._info("/".join(path.split("/")[3:5]), tree="/tree/" in path)
        elif "/resolve/" in path:
            repository, _, rest = path.strip("/").partition("/resolve/")
            self._file(self.server.root / repository / rest.partition("/")[2])
        else:
            self._missing()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _info(self, repository: str, *, tree: bool) -> None:
        folder = self.server.root / repository
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        names = sorted(folder.iterdir())
        files = [{"rfilename": file.name} for file in names]
        rows = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in names]
        info = {"id": repository, "sha": COMMIT, "siblings": files, "cardData": {"license": "apache-2.0"}, "tags": []}
        self._send(json.dumps(rows if tree else info).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._missing("EntryNotFound")
            return
        data = file.read_bytes()
        first, status = 0, 200
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if (wanted := self.headers.get("Range")) is not None:
            first, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = self.command == "GET" and file.name in self.server.breaks
        self._send(data[first:], headers, status, half=cut)
        if cut:
            self.server.breaks.discard(file.name)
            self.close_connection = True

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, *, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)

    def _missing(self, code: str = "EntryNotFound") -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": "not here"}, 404)


@contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


# Checkpoints. `full` makes them as large as the originals; else depth or width is cut, and nothing else.


def vit(out: Path, full: bool, **sizes: Any) -> None:
    torch.manual_seed(1)
    config = ViTConfig(num_hidden_layers=12 if full else 2, id2label=LABELS, **sizes)
    model = ViTForImageClassification(config)
    _spread(model.classifier, 0.15)
    _save(out, model, ViTImageProcessor(do_resize=True, size={"height": 224, "width": 224}))


def resnet(out: Path, full: bool) -> None:
    torch.manual_seed(2)
    config = ResNetConfig(depths=[3, 4, 6, 3] if full else [1, 1, 1, 1], id2label=LABELS)
    model = ResNetForImageClassification(config)
    _spread(model.classifier, 0.03)
    _calibrate(model, 224)
    _save(out, model, ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875, resample=3))


def blip(out: Path, full: bool) -> None:
    torch.manual_seed(3)
    layers = {} if full else {"num_hidden_layers": 2}
    text = {"vocab_size": 30524, "bos_token_id": 30522, "sep_token_id": 102, "eos_token_id": 2, "pad_token_id": 0}
    config = BlipConfig(vision_config={"image_size": 384, **layers}, text_config={**text, **layers})
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{i}" for i in range(30522 - len(words))] + ["[DEC]", "[ENC]"]
    tokenizer = _words(words, pad="[PAD]", unknown="[UNK]", start="[CLS]", end="[SEP]")
    side = {"height": 384, "width": 384}
    _save(out, BlipForConditionalGeneration(config), BlipImageProcessor(size=side), tokenizer)


def vit_gpt2(out: Path, full: bool) -> None:
    torch.manual_seed(4)
    encoder = ViTModel(ViTConfig(num_hidden_layers=12 if full else 2), add_pooling_layer=True)
    decoder = GPT2LMHeadModel(GPT2Config(n_layer=12 if full else 2, add_cross_attention=True))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    special = {"decoder_start_token_id": 50256, "eos_token_id": 50256, "bos_token_id": 50256, "pad_token_id": 50256}
    model.config.update(special)
    for name, value in {**special, "max_length": 16}.items():
        setattr(model.generation_config, name, value)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [*sorted(alphabet), *(f"Ġword{i}" for i in range(50256 - len(alphabet))), "<|endoftext|>"]
    bpe = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end)
    _save(out, model, ViTImageProcessor(size={"height": 224, "width": 224}), tokenizer)


def rt_detr(out: Path, full: bool) -> None:
    torch.manual_seed(5)
    stages = ["stage2", "stage3", "stage4"]
    backbone: dict[str, Any] = {
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2] * 4,
        "layer_type": "basic",
        "out_features": stages,
    }
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(**backbone),
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3 if full else 1,
        num_queries=300 if full else 50,
        id2label={index: f"thing {index}" for index in range(80)},
    )
    model = RTDetrForObjectDetection(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)  # its own initialisation is so small that pictures vanish
    _calibrate(model, 640)
    _spread(model.model.decoder.class_embed, 0.2)
    _save(out, model, RTDetrImageProcessor())


def yolo(out: Path, architecture: str) -> None:
    torch.manual_seed(6)
    model = YOLO(f"{architecture}.yaml", verbose=False)
    network: Any = model.model
    _calibrate(network, 640)
    head = network.model[-1]
    for branch in [*head.cv3, *getattr(head, "one2one_cv3", [])]:
        nn.init.normal_(branch[-1].weight, std=0.02)
        nn.init.normal_(branch[-1].bias, mean=-2, std=0.5)
    out.mkdir(parents=True)
    model.save(out / f"{architecture}.pt")


def _calibrate(model: nn.Module, side: int) -> None:
    """Set batch norms to what photographs make of random weights; else every picture gets the same answer."""
    names = ("bus", "cat", "zidane", "coffee", "rocket")
    pictures = [np.asarray(Image.open(PHOTOS[name]).convert("RGB").resize((side, side))) for name in names]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
    model.eval()


def _spread(head: nn.Module, std: float) -> None:
    """Random heads give every label nearly the same score; with larger weights their order means something."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)


def _words(words: list[str], *, pad: str, unknown: str, start: str, end: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, bos_token=start, eos_token=end
    )


def _save(out: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(out)
