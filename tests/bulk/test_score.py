"""A run, with a model that is computed by hand: each picture once, whatever happens; nothing inferred twice."""

import asyncio
import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

from bulk import EndedError, UserError, cache, rows, run
from bulk.cache import Cache
from bulk.listing import Columns
from bulk.places import Folder
from bulk.progress import Progress
from bulk.questions import Asked, Wanted
from bulk.score import VANISHED, Scorer
from testkit.photographs import encoded
from vision.core import images
from vision.core.engine import DeviceLostError
from vision.core.errors import Code, VisionError
from vision.core.images import LIMITS
from vision.core.look import ServedModel
from vision.core.predictor import predict_each
from vision.core.queues import Queue, Result
from vision.core.schemas import Card, Item, Model
from vision.tasks import TASKS
from vision.tasks.classification.spec import Classification, ClassifyOptions, Label

TASK = TASKS["classification"]
CARD = Card(
    task="classification",
    name="mean",
    version="1",
    architecture="none",
    source="here",
    licence="none",
    description="",
    preprocessing="",
    labels=60,
    input_size=(8, 8),
)


class Mean:
    """Scores 60 labels by a picture's mean level, and notes what it is asked."""

    card = CARD

    def __init__(self) -> None:
        self.seen = 0
        self.fails = False

    def predict(self, items: Sequence[Item[ClassifyOptions]]) -> list[Classification | VisionError]:
        self.seen += len(items)
        if self.fails:
            return [VisionError(Code.UNAVAILABLE, "not now") for _ in items]
        return [self._one(float(item.pixels.mean()) / 255, item.options) for item in items]

    def _one(self, level: float, options: ClassifyOptions) -> Classification:
        scores = [round(level / (index + 1), 6) for index in range(60)]
        labels = [Label(label=f"l{index}", score=score) for index, score in enumerate(scores)]
        kept = [label for label in labels[: options.top_k] if label.score >= options.min_score]
        return Classification(labels=kept, model=Model.of(CARD))


class Bench:
    """A collection of pictures, a model, and a place for results."""

    def __init__(self, path: Path) -> None:
        self.photos, self.out, self.cache = path / "photos", path / "out", path / "cache.sqlite"
        self.model = Mean()
        self.photos.mkdir()
        self.known = 0

    def add(self, name: str, level: int) -> None:
        (self.photos / name).write_bytes(encoded(Image.new("RGB", (8, 8), (level, level, level))))

    def score(self, *, retry: bool = False, table: str = "", kept: bool = True, **options: Any) -> list[dict[str, Any]]:
        """Run to the end, as the command does; return the dataset."""
        format, shard_rows = options.pop("format", "parquet"), options.pop("shard_rows", 10)
        wanted = Wanted("classification", TASK, "mean:1", ClassifyOptions(**options))
        place = Folder(self.out)
        with place.locked():
            photos = str(self.photos / table)
            begun = run.begin(place, photos, Columns(), [wanted], format, shard_rows, {"classification": CARD})
            if retry:
                run.retry_errors(begun)
            asyncio.run(self._go(begun, wanted, kept))
            begun.finish()
        assert not begun.todo()
        return [
            row
            for index in range(begun.listed.shards)
            for row in rows.read(place, index, begun.format, begun.listed.ids(index), None)
        ]

    async def _go(self, begun: run.Run, wanted: Wanted, kept: bool) -> None:
        async def call(items: Sequence[Item[Any]]) -> Sequence[Result]:
            return predict_each(self.model, items)

        served = ServedModel(TASK, CARD, images.shrink, Queue(call, 16))
        asked = Asked(wanted, served, f"mean:1 {wanted.wide.model_dump_json()}")
        store = Cache(self.cache, cache.PIXELS_KEY, [asked.key]) if kept else None
        scorer = Scorer([asked], store, LIMITS, stall_seconds=0.5)
        try:
            await run.score(begun, scorer, Progress(begun.left()))
        finally:
            self.known = scorer.known
            await scorer.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    for level in range(25):
        bench.add(f"{level:02}.png", level * 10)
    return bench


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_each_picture_is_a_row_in_its_place(bench: Bench, format: str) -> None:
    (bench.photos / "07.png").write_bytes(b"no picture")
    (bench.photos / "08.png").write_bytes(b"")
    table = bench.score(format=format, top_k=2)
    assert [row["id"] for row in table] == [f"{level:02}.png" for level in range(25)]
    broken, empty, fine = table[7], table[8], table[20]
    assert (broken["status"], broken["error"]["code"], broken["classification"]) == (
        "error",
        "unsupported_format",
        None,
    )
    assert empty["error"]["code"] == "empty_image"
    assert (fine["status"], fine["error"], fine["width"], fine["height"]) == ("ok", None, 8, 8)
    assert fine["classification"]["labels"] == [
        {"label": "l0", "score": round(200 / 255, 6)},
        {"label": "l1", "score": round(100 / 255, 6)},
    ]
    assert fine["classification"]["model"] == {"name": "mean", "version": "1", "source": "here"}
    assert fine["quality"]["brightness"] == pytest.approx(200 / 255, abs=1e-3)
    assert len(fine["sha256"]) == 64
    assert sorted(path.name for path in bench.out.iterdir() if path.name.startswith("part")) == [
        f"part-0000{index}.{format}" for index in range(3)
    ]
    told = json.loads((bench.out / "manifest.json").read_text())
    assert (told["pictures"], told["errors"]) == (25, {"unsupported_format": 1, "empty_image": 1})


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_whole_is_not_scored_again_and_what_is_missing_is(bench: Bench, kept: bool) -> None:
    before = bench.score(kept=kept)
    (bench.out / "part-00001.parquet").unlink()
    bench.model.seen = 0
    assert [{**row, "ms": 0} for row in bench.score(kept=kept)] == [{**row, "ms": 0} for row in before]
    assert (bench.model.seen, bench.known) == ((0, 10) if kept else (10, 0))


def test_the_list_is_fixed_when_a_run_starts(bench: Bench) -> None:
    bench.score()
    bench.add("99.png", 250)
    assert len(bench.score()) == 25


def test_the_same_picture_costs_one_inference(bench: Bench) -> None:
    for index in range(30):
        bench.add(f"copy{index}.png", 70)
    table = bench.score(kept=False)
    assert len(table) == 55
    assert bench.model.seen == 25
    assert len({row["sha256"] for row in table}) == 25


def test_other_options_cost_no_inference(bench: Bench, tmp_path: Path) -> None:
    bench.score()
    asked: list[dict[str, Any]] = [{"top_k": 50}, {"top_k": 3, "min_score": 0.1}, {"min_score": 0.9}]
    for number, options in enumerate(asked):
        bench.out = tmp_path / f"out{number}"
        seen, alone = bench.model.seen, Mean()
        for row in bench.score(**options):
            level = int(row["id"][:2]) * 10 / 255
            assert row["classification"] == alone._one(level, ClassifyOptions(**options)).model_dump()
        assert bench.model.seen == seen
    bench.out = tmp_path / "more"
    assert len(bench.score(top_k=55)[9]["classification"]["labels"]) == 55  # more than what is kept
    assert bench.model.seen == seen + 25


def test_a_failure_that_may_pass_is_tried_again_when_asked(bench: Bench) -> None:
    (bench.photos / "list.csv").write_text("path\n" + "".join(f"{index:02}.png\n" for index in range(25)))
    (bench.photos / "03.png").rename(bench.photos / "away")
    (bench.photos / "14.png").write_bytes(b"no picture")
    first = bench.score(table="list.csv", kept=False)
    assert [row["id"] for row in first if row["status"] == "error"] == ["3", "14"]
    assert first[3]["error"] == {
        "code": "unavailable",
        "message": "The picture cannot be read: No such file or directory.",
    }
    (bench.photos / "away").rename(bench.photos / "03.png")
    seen = bench.model.seen
    assert bench.score(table="list.csv", kept=False)[3]["status"] == "error"
    again = bench.score(table="list.csv", kept=False, retry=True)
    assert bench.model.seen == seen + 1
    assert [row["id"] for row in again if row["status"] == "error"] == ["14"]
    assert [row for row in again if row["id"] != "3"] == [row for row in first if row["id"] != "3"]


def test_a_model_that_fails_is_no_answer_and_is_not_kept(bench: Bench) -> None:
    bench.model.fails = True
    assert {row["error"]["message"] for row in bench.score()} == {"not now"}
    bench.model.fails = False
    assert {row["status"] for row in bench.score(retry=True)} == {"ok"}


def test_a_source_that_vanished_ends_the_run_which_can_go_on(bench: Bench) -> None:
    names = [f"{index % 25:02}.png" for index in range(25)] + [f"gone/{index}.png" for index in range(VANISHED + 50)]
    (bench.photos / "list.txt").write_text("\n".join(names))
    with pytest.raises(EndedError, match=f"{VANISHED} pictures in a row cannot be read, the last is .*gone/99.png"):
        bench.score(table="list.txt")
    whole = {path.name for path in bench.out.iterdir() if path.name.startswith("part")}
    assert {"part-00000.parquet", "part-00001.parquet"} <= whole
    (bench.photos / "gone").mkdir()
    for index in range(VANISHED + 50):
        bench.add(f"gone/{index}.png", index)
    table = bench.score(table="list.txt", retry=True)
    assert [row["status"] for row in table] == ["ok"] * len(names)


def test_a_source_that_stalls_ends_the_run(bench: Bench) -> None:
    os.mkfifo(bench.photos / "stalls")
    (bench.photos / "list.txt").write_text("00.png\nstalls\n")
    try:
        with pytest.raises(EndedError, match=r"stalls did not answer within 0\.5 s"):
            bench.score(table="list.txt")
    finally:
        os.close(os.open(bench.photos / "stalls", os.O_RDWR | os.O_NONBLOCK))  # lets the reader's thread go


def test_a_full_disk_ends_the_run_which_can_go_on(bench: Bench) -> None:
    bench.score()
    for path in bench.out.glob("part-*"):
        path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # a file that is larger is refused, as on a full disk
    try:
        with pytest.raises(EndedError, match="cannot be written: File too large"):
            bench.score(kept=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(bench.out.glob("*part-*"))
    assert len(bench.score()) == 25


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_damaged_shard_is_named_and_nothing_is_written(bench: Bench, format: str) -> None:
    bench.score(format=format)
    part = bench.out / f"part-00001.{format}"
    whole = part.read_bytes()
    for damaged in (whole[:-20], b"", whole[: len(whole) // 2] + b"\0" * 8 + whole[len(whole) // 2 + 8 :]):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match=r"part-00001.* is damaged .* Remove that file"):
            bench.score(format=format)
        assert part.read_bytes() == damaged
    part.unlink()
    assert len(bench.score(format=format)) == 25


def test_another_question_needs_another_place(bench: Bench) -> None:
    bench.score(top_k=5)
    with pytest.raises(UserError, match="holds a run with other features"):
        bench.score(top_k=6)
    with pytest.raises(UserError, match="holds a run with other shard_rows"):
        bench.score(shard_rows=11)


def test_a_place_with_other_files_is_left_alone(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "thesis.doc").touch()
    with pytest.raises(UserError, match=r"holds thesis\.doc and no manifest"):
        bench.score()


def test_a_collection_that_cannot_be_listed_leaves_nothing(bench: Bench) -> None:
    (bench.photos / "list.csv").write_text("path,id\n00.png,1\n01.png,1\n")
    with pytest.raises(UserError, match="The id '1' is there twice"):
        bench.score(table="list.csv")
    assert not bench.out.exists()


def test_two_scorers_do_not_share_a_place(bench: Bench) -> None:
    with Folder(bench.out).locked(), pytest.raises(UserError, match="another process scores there"):
        bench.score()


def test_a_damaged_cache_is_named(bench: Bench) -> None:
    bench.cache.write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"cache\.sqlite cannot be used: file is not a database"):
        bench.score()
    assert bench.cache.read_bytes() == b"no database" * 100


def test_a_lost_gpu_ends_the_run_and_no_picture_is_told_to_have_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> NoReturn:
        raise DeviceLostError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as broken:
        broken.setattr(bench.model, "predict", lost)
        with pytest.raises(EndedError, match="illegal memory access"):
            bench.score()
    assert not list(bench.out.glob("part-*"))
    assert {row["status"] for row in bench.score()} == {"ok"}
