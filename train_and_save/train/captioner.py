"""Captioning: the starter, or another image-to-text model, reads a team's own sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    VisionEncoderDecoderModel,
)

from train_and_save import datasets, starter
from train_and_save.datasets import Captioned
from train_and_save.measure.sentences import quality
from train_and_save.train.run import (
    Trained,
    TrainingRun,
    copy_settings,
    find_base,
    fine_tune,
    load_base,
    make_card,
    open_picture,
    read_parts,
    served,
)
from vision.core.schemas import Card
from vision.tasks.captioning import grid_encoder

RATE = 5e-5
LONGEST = 40
"""Words of a sentence, in tokens; what is longer is cut."""


def train(run: TrainingRun) -> Trained:
    """Train a captioner on a table of captions. Raises DataError."""
    grid_encoder.register()
    base, known = find_base(run, "captioning", starter.CAPTIONING)
    parts, origin = read_parts(run, datasets.read_captions_table(run.data), lambda _: "")
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    paired = config.model_type == "vision-encoder-decoder"
    model = load_base(VisionEncoderDecoderModel if paired else AutoModelForImageTextToText, base)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    processor = AutoImageProcessor.from_pretrained(base, local_files_only=True)
    if run.frozen:
        (model.encoder if paired else model.vision_model).requires_grad_(False)
    ends = _ends(model, paired)
    pictures: dict[str, Dataset[Any]] = {
        part: Sentences(parts[part], processor, tokenizer, ends, part == "train") for part in ("train", "choose")
    }
    model = fine_tune(run, model, pictures, RATE, collate=Collate(tokenizer.unk_token_id, paired))
    out = run.folder / "model"
    copy_settings(base, out)
    model.save_pretrained(out)
    height, width = processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape[-2:]
    card = make_card(
        run,
        "captioning",
        known,
        known.name if known else base.name,
        architecture=known.architecture if known else type(model).__name__,
        description=f"Says sentences like those it read. Made from {origin}.",
        preprocessing=known.preprocessing if known else f"{type(processor).__name__} of the base",
        labels=None,
        input_size=(width, height),
    )

    def measure(card: Card) -> dict[str, float]:
        results = served(out, card, run.device, [example.path for example in parts["held_out"]])
        said = quality([result.caption for result in results], [example.captions for example in parts["held_out"]])
        return {f"held_out_{figure}": value for figure, value in said.items()} | {"held_out_pictures": len(results)}

    return Trained(out, card, measure)


def _ends(model: Any, paired: bool) -> tuple[int, int]:
    """The tokens that a model's generate() starts from and stops at."""
    if paired:
        settings = model.generation_config
        start, end = settings.decoder_start_token_id or model.config.decoder_start_token_id, settings.eos_token_id
    else:
        start, end = model.config.text_config.bos_token_id, model.config.text_config.sep_token_id
    return start, end[0] if isinstance(end, list) else end


class Sentences(Dataset[dict[str, Tensor]]):
    """A picture and one of its sentences as token ids between the model's own start and end."""

    def __init__(
        self, examples: Sequence[Captioned], processor: Any, tokenizer: Any, ends: tuple[int, int], augment: bool
    ) -> None:
        self.pairs = [(example.path, sentence) for example in examples for sentence in example.captions]
        self.processor, self.tokenizer, self.ends, self.augment = processor, tokenizer, ends, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path, sentence = self.pairs[index]
        image = open_picture(path)
        if self.augment and torch.rand(()) < 0.5 and not {"left", "right"} & set(sentence.lower().split()):
            image = ImageOps.mirror(image)
        start, end = self.ends
        words = self.tokenizer(sentence, add_special_tokens=False, truncation=True, max_length=LONGEST).input_ids
        return {
            "pixel_values": self.processor(image, return_tensors="pt")["pixel_values"][0],
            "tokens": torch.tensor([start, *words, end]),
        }


@dataclass(frozen=True)
class Collate:
    """Sentences of a batch under one length; what is padding or a word that the tokenizer lacks is not learnt."""

    unknown: int | None
    paired: bool
    """VisionEncoderDecoderModel shifts labels itself; BLIP wants the sentence beside them."""

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        tokens = nn.utils.rnn.pad_sequence([row["tokens"] for row in rows], batch_first=True, padding_value=-100)
        labels = tokens if self.unknown is None else tokens.masked_fill(tokens == self.unknown, -100)
        batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
        if self.paired:
            return {**batch, "labels": labels[:, 1:], "decoder_input_ids": tokens[:, :-1].clamp(min=0)}
        return {**batch, "input_ids": tokens.clamp(min=0), "attention_mask": (tokens != -100).long()}
