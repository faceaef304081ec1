"""Trains the starter captioner on a thousand photographs and forty thousand sentences, on a CPU.

Seeing comes from the starter classifier, whose network stays frozen; learned here is to name concepts in its
features and to make a sentence of them. Four steps, each on what the one before left:
1. A linear layer names concepts. It is trained five times with a fifth of the photographs left out, so that
   the decoder learns from findings as unsure as those it will meet.
2. The decoder reads every sentence, beside the concepts that a photograph of it might have shown.
3. The decoder reads the photographs' own sentences, beside concepts and feature grid.
4. Self-critical sequence training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563) with the mean of the
   other samples as baseline (Luo 2020, https://arxiv.org/abs/2003.09971) and CIDEr-D (Vedantam et al. 2015,
   https://arxiv.org/abs/1411.5726) as reward. The weights go three tenths of the way to what it makes of them
   (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903): all of it says the same sentence too often.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from train_and_save.measure.sentences import quality, read_captions, words
from train_and_save.starter.assemble import NETWORK
from train_and_save.starter.convert import network_weights
from vision.tasks.captioning.concepts import ConceptEncoder, ConceptEncoderConfig

TIED = "decoder.lm_head.weight"
HELD_OUT, VALIDATION = 100, 80
VIEWS, FOLDS, SAMPLES = 6, 5, 5
LONGEST = 24
SAMPLING = {"do_sample": True, "num_beams": 1, "top_k": 0, "no_repeat_ngram_size": 0}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, START, END, UNKNOWN = range(4)
FUNCTION_WORDS = """
    a an the is are in on of with to and at it its his her their by from as for that there some while up out
    into over through near other one two three four has have be him them they he she who which this off down
    around along behind next
"""


def split_names(photos: Path) -> tuple[list[str], list[str], list[str]]:
    """File names of photos/images to train on, to choose with and to measure on (the last hundred)."""
    names = sorted(path.name for path in (photos / "images").iterdir())
    seen, held_out = names[:-HELD_OUT], names[-HELD_OUT:]
    validation = sorted(random.Random(0).sample(seen, VALIDATION))
    return [name for name in seen if name not in set(validation)], validation, held_out


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


def frequent_concepts(sentences: list[str], least: int = 40) -> list[str]:
    """The content words that stand in at least `least` sentences, the most frequent first."""
    counts = Counter(word for sentence in sentences for word in sorted(set(words(sentence))))
    function_words = set(FUNCTION_WORDS.split())
    return [word for word, count in counts.most_common() if count >= least and word not in function_words]


def build_model(words_known: int, concepts: list[str]) -> tuple[VisionEncoderDecoderModel, ConceptEncoder]:
    """An untrained captioner and its encoder, whose network is noise until `load_network` fills it."""
    encoder = ConceptEncoder(ConceptEncoderConfig(concepts=concepts))
    decoder = GPT2LMHeadModel(GPT2Config(
        vocab_size=words_known, n_positions=32, n_embd=encoder.config.hidden_size, n_layer=3, n_head=4,
        activation_function="gelu_pytorch_tanh", add_cross_attention=True,
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD,
    ))  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    special = {"decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": END}
    model.config.update(special)
    model.generation_config = GenerationConfig(
        **special, suppress_tokens=[PAD, START, UNKNOWN], max_new_tokens=LONGEST, num_beams=4,
        no_repeat_ngram_size=2,
    )  # fmt: skip
    return model, encoder


def load_network(encoder: ConceptEncoder, classifier: Path) -> None:
    """Fill the encoder's network with the classifier's weights, and freeze it."""
    encoder.network.load_state_dict(network_weights(classifier))
    encoder.network.eval().requires_grad_(False)


def build_processor() -> ViTImageProcessor:
    """The whole picture squeezed to 224 x 224: a caption may tell of its edges."""
    side = {"height": 224, "width": 224}
    return ViTImageProcessor(size=side, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _view(picture: Image.Image, index: int, rng: random.Random) -> Image.Image:
    if index % 2:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if index < 2:
        return picture
    width, height = (round(side * rng.uniform(0.75, 0.95)) for side in picture.size)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    return picture.crop((left, top, left + width, top + height))


@torch.inference_mode()
def look(encoder: ConceptEncoder, paths: list[Path], seed: int) -> tuple[Tensor, Tensor]:
    """What the network makes of `VIEWS` views of each photograph: whole, mirrored, and four crops.

    Returns the grids, float16 (VIEWS, P, 49, 1280), and class probabilities, float32 (VIEWS, P, 1000).
    """
    processor, rng = build_processor(), random.Random(seed)
    grids, classes = [], []
    for path in tqdm(paths, desc="features"):
        picture = Image.open(path).convert("RGB")
        views = [_view(picture, index, rng) for index in range(VIEWS)]
        grid, probabilities = encoder.look(processor(views, return_tensors="pt").pixel_values)
        grids.append(grid.half())
        classes.append(probabilities)
    return torch.stack(grids, dim=1), torch.stack(classes, dim=1)


def concept_shares(captions: list[list[str]], concepts: list[str]) -> Tensor:
    """The share of each photograph's sentences that say each concept: float32 (P, concepts), 0-1."""
    index = {concept: i for i, concept in enumerate(concepts)}
    shares = torch.zeros(len(captions), len(concepts))
    for row, sentences in zip(shares, captions, strict=True):
        for sentence in sentences:
            for word in set(words(sentence)) & index.keys():
                row[index[word]] += 1 / len(sentences)
    return shares


def train_naming(layer: nn.Linear, inputs: Tensor, said: Tensor, epochs: int = 30) -> None:
    """Fit a layer that names concepts: inputs (VIEWS, P, 2280), shares said (P, concepts)."""
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.logit(said.mean(dim=0).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.3)
    for _ in range(epochs):
        for rows in torch.randperm(len(said)).split(64):
            logits = layer(functional.dropout(inputs[torch.randint(VIEWS, rows.shape), rows], 0.5))
            loss = functional.binary_cross_entropy_with_logits(logits, said[rows], reduction="sum")
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            optimizer.step()


def name_left_out(layer: nn.Linear, inputs: Tensor, said: Tensor) -> Tensor:
    """Logits (VIEWS, P, concepts), each from a layer that did not see its photograph.

    The layer handed in is left trained on all of them.
    """
    logits = torch.zeros(*inputs.shape[:2], said.shape[1])
    fold = torch.arange(len(said)) % FOLDS
    for left_out in tqdm(range(FOLDS), desc="concepts"):
        train_naming(layer, inputs[:, fold != left_out], said[fold != left_out])
        with torch.no_grad():
            logits[:, fold == left_out] = layer(inputs[:, fold == left_out])
    train_naming(layer, inputs, said)
    return logits


class Imagined:
    """Concept logits for photographs of which only the sentences are known.

    A ridge regression from what is said to what the layer names in the photographs (logits and said are both
    (P, concepts)), and on top of it part of what it got wrong on a random one.
    """

    def __init__(self, logits: Tensor, said: Tensor, ridge: float = 2.0, noise: float = 0.7) -> None:
        self.mean = logits.mean(dim=0)
        inverse = torch.linalg.inv(said @ said.T + ridge * torch.eye(len(said)))
        # with kernel ridge regression the residual of a row, had it been left out, is alpha / diag(inverse)
        alpha = inverse @ (logits - self.mean)
        self.slope = said.T @ alpha
        self.misses = noise * alpha / inverse.diagonal().unsqueeze(-1)

    def __call__(self, said: Tensor) -> Tensor:
        """Shares (B, concepts) -> logits (B, concepts)."""
        return self.mean + said @ self.slope + self.misses[torch.randint(len(self.misses), (len(said),))]


@dataclass(frozen=True)
class Sentences:
    """Token rows (S, LONGEST + 2), start, words, end, padding, and each one's photograph (S,)."""

    tokens: Tensor
    photo: Tensor

    @classmethod
    def of(cls, captions: list[list[str]], tokenizer: PreTrainedTokenizerFast) -> "Sentences":
        """The sentences of each photograph, cut after `LONGEST` words."""
        rows = [[START, *tokenizer(line).input_ids[:LONGEST], END] for lines in captions for line in lines]
        tokens = torch.tensor([row + [PAD] * (LONGEST + 2 - len(row)) for row in rows])
        return cls(tokens, torch.tensor([photo for photo, lines in enumerate(captions) for _ in lines]))

    def batches(self, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, sentences of about one length together so that little is padding."""
        lengths = (self.tokens != PAD).sum(dim=1)
        chunks = (lengths + 2 * torch.rand(len(lengths))).argsort().split(size)
        for chunk in random.sample(chunks, len(chunks)):
            yield self.tokens[chunk, : int(lengths[chunk].max())], self.photo[chunk]


class Steps:
    """AdamW over what may be trained; the rate rises for 5 % of the steps and falls as a cosine."""

    def __init__(self, model: nn.Module, rate: float, total: int) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.05, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(20 * (step + 1) / total, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))),
        )

    def __call__(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


def word_logits(model: VisionEncoderDecoderModel, attended: Tensor, tokens: Tensor) -> Tensor:
    """Attended vectors (B, M, hidden), tokens (B, T) -> logits (B, T - 1, words) for each that follows."""
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = model.decoder(input_ids=tokens[:, :-1], encoder_hidden_states=attended).logits
    return logits.float()


def train_on_sentences(
    model: VisionEncoderDecoderModel,
    sentences: Sentences,
    attend: Callable[[Tensor], Tensor],
    rate: float,
    epochs: int,
) -> None:
    """Steps 2 and 3. `attend` gives what the decoder attends to, (B, M, hidden), for photographs (B,)."""
    model.decoder.train()
    step = Steps(model, rate, epochs * math.ceil(len(sentences.tokens) / 64))
    for epoch in range(epochs):
        for tokens, photo in tqdm(list(sentences.batches()), desc=f"sentences {epoch + 1}/{epochs}"):
            target = tokens[:, 1:].masked_fill((tokens[:, 1:] == PAD) | (tokens[:, 1:] == UNKNOWN), -100)
            logits = word_logits(model, attend(photo), tokens).flatten(0, 1)
            step(functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1))


class CiderD:
    """CIDEr-D (0-10) of a sentence, as token ids with the end token, against a photograph's references."""

    def __init__(self, references: list[list[list[int]]]) -> None:
        found = [{gram for ids in photo for gram in self._grams(ids)} for photo in references]
        self.frequency = Counter(gram for grams in found for gram in grams)
        self.photographs = math.log(len(references))
        self.references = [[self._vector(ids) for ids in photo] for photo in references]

    @staticmethod
    def _grams(ids: list[int]) -> Counter[tuple[int, ...]]:
        return Counter(tuple(ids[i : i + n]) for n in range(1, 5) for i in range(len(ids) - n + 1))

    def _vector(self, ids: list[int]) -> tuple[dict[tuple[int, ...], float], list[float], int]:
        counts = self._grams(ids)
        weights = {g: n * (self.photographs - math.log(max(1, self.frequency[g]))) for g, n in counts.items()}
        norms = [math.hypot(*(w for gram, w in weights.items() if len(gram) == n)) for n in range(1, 5)]
        return weights, norms, len(ids)

    def __call__(self, ids: list[int], photo: int) -> float:
        """The score of one sentence for the photograph in row `photo` of the references."""
        weights, norms, length = self._vector(ids)
        total = 0.0
        for other, other_norms, other_length in self.references[photo]:
            dots = [0.0] * 4
            for gram in weights.keys() & other.keys():
                dots[len(gram) - 1] += min(weights[gram], other[gram]) * other[gram]
            cosines = [d / (a * b) for d, a, b in zip(dots, norms, other_norms, strict=True) if a * b > 0]
            total += sum(cosines) / 4 * math.exp(-((length - other_length) ** 2) / 72)
        return 10 * total / len(self.references[photo])


def train_on_reward(
    model: VisionEncoderDecoderModel,
    reward: Callable[[list[int], int], float],
    attend: Callable[[Tensor], Tensor],
    photographs: int,
    epochs: int,
    rate: float = 5e-5,
) -> None:
    """Step 4, on the photographs in rows 0 to `photographs` of `reward` and `attend`."""
    step = Steps(model, rate, epochs * math.ceil(photographs / 24))
    for epoch in range(epochs):
        progress = tqdm(torch.randperm(photographs).split(24), desc=f"reward {epoch + 1}/{epochs}")
        for photo in progress:
            attended = attend(photo).repeat_interleave(SAMPLES, dim=0)
            model.decoder.eval()
            seen = BaseModelOutput(last_hidden_state=attended.detach())
            tokens = model.generate(encoder_outputs=seen, **SAMPLING)
            model.decoder.train()
            said = tokens[:, 1:] != PAD
            lines = [row[mask].tolist() for row, mask in zip(tokens[:, 1:], said, strict=True)]
            owners = photo.repeat_interleave(SAMPLES).tolist()
            scores = torch.tensor([reward(ids, owner) for ids, owner in zip(lines, owners, strict=True)])
            progress.set_postfix(reward=f"{scores.mean():.3f}")
            groups = scores.view(-1, SAMPLES)
            advantage = (groups - groups.mean(dim=1, keepdim=True)).view(-1, 1) * SAMPLES / (SAMPLES - 1)
            chosen = word_logits(model, attended, tokens).log_softmax(dim=-1)
            chosen = chosen.gather(2, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
            step(-(advantage * chosen * said).sum() / said.sum())


def save_starter(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model without the classifier's network, in float16, with tokenizer and preprocessing."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        key: value.half().contiguous()
        for key, value in model.state_dict().items()
        if not key.startswith(NETWORK) and key != TIED
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    for part in (model.config, model.generation_config, tokenizer, build_processor()):
        part.save_pretrained(out)


@torch.inference_mode()
def say(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, paths: list[Path]) -> list[str]:
    """Return a sentence for each picture, decoded as the model's generation_config says."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    tokens = model.eval().generate(build_processor()(pictures, return_tensors="pt").pixel_values)
    return [str(line) for line in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def train(photos: Path, classifier: Path, out: Path, seed: int = 0) -> dict[str, float]:
    """Train the starter captioner into `out`; returns its `quality` on the validation photographs.

    photos: images/ and captions.tsv. classifier: a timm EfficientNet-Lite0 in Hugging Face layout. The last
    hundred photographs are neither looked at nor read.
    """
    torch.set_num_threads(1)  # sums in another order lead the sampling elsewhere
    torch.manual_seed(seed)
    random.seed(seed)
    captions = read_captions(photos)
    train, validation, held_out = split_names(photos)
    names = train + sorted(captions.keys() - {*train, *validation, *held_out})
    told = [[line.replace(" '", "'") for line in captions[name]] for name in names]
    lines = [line for photo in told for line in photo]
    tokenizer, concepts = build_tokenizer(lines), frequent_concepts(lines)
    said = concept_shares(told, concepts)
    model, encoder = build_model(len(tokenizer), concepts)
    load_network(encoder, classifier)

    grid, classes = look(encoder, [photos / "images" / name for name in train], seed)
    inputs = torch.cat([grid.float().mean(dim=2), classes], dim=-1)
    logits = name_left_out(encoder.name_concepts, inputs, said[: len(train)])
    encoder.name_concepts.requires_grad_(False)
    imagined = Imagined(logits[0], said[: len(train)])

    def attend(photo: Tensor) -> Tensor:
        view = torch.randint(VIEWS, photo.shape)
        seen = functional.dropout(grid[view, photo].float(), 0.2)
        return torch.cat([encoder.show(logits[view, photo]), encoder.place(seen)], dim=1)

    every, own = Sentences.of(told, tokenizer), Sentences.of(told[: len(train)], tokenizer)
    train_on_sentences(model, every, lambda photo: encoder.show(imagined(said[photo])), rate=1e-3, epochs=6)
    train_on_sentences(model, own, attend, rate=3e-4, epochs=2)
    reward = CiderD([[[*tokenizer(line).input_ids, END] for line in photo] for photo in told])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train_on_reward(model, reward, attend, len(train), epochs=12)
    after = model.state_dict()
    for name, weight in after.items():
        if weight.is_floating_point():
            weight.lerp_(before[name], 0.7)

    save_starter(model, tokenizer, out)
    sentences = say(model, tokenizer, [photos / "images" / name for name in validation])
    return quality(sentences, [captions[name] for name in validation])
