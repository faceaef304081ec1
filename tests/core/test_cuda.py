"""The way of GPUs, on the CPU device: batches, out of memory, errors that stay, compiled code, and every family."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from ultralytics.models.yolo.model import YOLO

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, another
from tests.core.test_queues import CARD, item
from train_and_save.graphs import optimize
from train_and_save.starter import STARTER
from vision.bento import store, supervisor
from vision.core import cuda, device
from vision.core.cuda import BUCKETS, MADE, Buckets, Constants, Made, Plan
from vision.core.engine import DeviceLostError
from vision.core.errors import VisionError
from vision.core.predictor import predict_each
from vision.core.schemas import Item
from vision.tasks import TASKS
from vision.tasks.detection import yolo_module

PLAN = Plan("cpu", torch.float32)


class Doubled:
    """A network computed by hand, that remembers the sizes of its batches; too little memory for larger than `most`."""

    def __init__(self, most: int = 32) -> None:
        self.sizes: list[int] = []
        self.most = most

    def __call__(self, values: Tensor) -> tuple[Tensor, ...]:
        self.sizes.append(len(values))
        if len(values) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return values * 2, values.sum(1)


def rows(count: int) -> Any:
    return np.arange(3 * count, dtype=np.float32).reshape(count, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 31, 32, 33, 70])
def test_a_batch_is_padded_to_a_bucket_and_cut_again(count: int) -> None:
    network = Doubled()
    doubled, sums = Buckets(network, PLAN)(rows(count))
    assert (doubled == rows(count) * 2).all()
    assert (sums == rows(count).sum(1)).all()
    assert set(network.sizes) <= set(BUCKETS)


def test_what_a_batch_held_before_is_in_no_later_answer() -> None:
    engine = Buckets(Doubled(), PLAN)
    first, _ = engine(rows(8))
    second, _ = engine(rows(3) + 100)
    assert (first == rows(8) * 2).all()
    assert (second == (rows(3) + 100) * 2).all()


def test_threads_get_their_own_answers() -> None:
    engine = Buckets(Doubled(), PLAN)
    started = threading.Barrier(4)

    def ask(number: int) -> bool:
        started.wait()
        return all((engine(rows(size) + number)[0] == (rows(size) + number) * 2).all() for size in range(1, 33))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(4)))


def test_out_of_memory_makes_batches_smaller_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    network = Doubled(most=4)
    engine = Buckets(network, PLAN)
    doubled, _ = engine(rows(32))
    assert (doubled == rows(32) * 2).all()
    assert "batches hold 4 from now on" in caplog.text
    network.sizes.clear()
    engine(rows(32))
    assert set(network.sizes) == {4}


def test_out_of_memory_for_one_picture_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Buckets(Doubled(most=0), PLAN)(rows(2))


def test_an_error_that_stays_is_told_apart_from_one_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(values: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    engine = Buckets(fail, PLAN)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine(rows(1))
    monkeypatch.setattr(engine.launcher, "is_cuda", True)
    monkeypatch.setattr(engine.launcher, "_works", lambda: False)
    with (
        pytest.raises(DeviceLostError, match=r"^CUDA error: device-side assert triggered$"),
        engine.launcher.noticing(),
    ):
        fail(torch.zeros(1))


class Lost:
    card = CARD

    def predict(self, items: Any) -> list[Any]:
        raise DeviceLostError("an illegal memory access was encountered")


def test_a_lost_gpu_is_no_error_of_a_picture() -> None:
    with pytest.raises(DeviceLostError):
        predict_each(Lost(), [item(1), item(2)])


def test_a_runner_whose_gpu_is_lost_ends_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with caplog.at_level("CRITICAL", "bentoml.vision"):
        supervisor.leave_for_another("detection: its GPU is lost: uncorrectable ECC error encountered")
    assert ended == [supervisor.LOST]
    if caplog.records:  # not where a test before this one has set up the service's own logging
        assert "uncorrectable ECC" in caplog.text


def test_what_a_network_carries_to_the_card_is_noted_once() -> None:
    """Copies from the CPU cannot be recorded; "meta" stands for the card here."""

    def run() -> tuple[Tensor, ...]:
        there = torch.empty(2, device="meta")
        there[0] = 3  # as RT-DETR does
        return there, torch.arange(3).to("meta"), torch.arange(4).type_as(there), torch.arange(5).float()

    constants = Constants()
    with torch.inference_mode(), constants:
        run()
    noted = [tuple(one.shape) for one in constants._noted]
    assert noted[-2:] == [(3,), (4,)]
    constants.known = True
    with torch.inference_mode(), constants:
        _, three, four, five = run()
    assert (three.shape, four.shape, five.device.type) == ((3,), (4,), "cpu")
    assert len(constants._noted) == len(noted)
    assert next(constants._next, None) is None


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        answer: Tensor = self.layer(pixels.flatten(2).mean(2))
        return answer


@pytest.mark.served
def test_compiled_code_answers_as_the_network_does_and_holds_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = cuda.Outputs(cuda.Levels(Small(), [120.0, 110.0, 100.0], [60.0, 59.0, 58.0])).eval()
    pixels = torch.randint(256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names: list[str] = []
    read = zipfile.ZipFile.namelist

    def noted(archive: zipfile.ZipFile) -> list[str]:
        names.extend(read(archive))
        return read(archive)

    monkeypatch.setattr(zipfile.ZipFile, "namelist", noted)
    code = optimize.compile_one(module, [pixels], tmp_path / "cuda_network.so")
    assert names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]
    assert [file.name for file in tmp_path.iterdir()] == ["cuda_network.so"]
    compiled = cuda.engine(module, Plan("cpu", torch.float32, code={"network": code}))
    eager = cuda.engine(module, PLAN)
    for count in (1, 3, 20):
        batch = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
        assert np.allclose(compiled(batch)[0], eager(batch)[0], atol=1e-5)


def kept(folder: Path, **differs: Any) -> Path:
    (folder / "cuda_network.so").write_bytes(b"code")
    made = Made(
        gpu="cpu",
        torch=torch.__version__,
        dtype="bfloat16",
        channels_last=True,
        code={"network": "cuda_network.so"},
        sha256={"cuda_network.so": hashlib.sha256(b"code").hexdigest()},
        engines={},
        gate={},
    )
    (folder / MADE).write_text(made.model_copy(update=differs).model_dump_json())
    return folder


def test_what_was_kept_for_this_gpu_is_run(tmp_path: Path) -> None:
    how = cuda.plan("m", "cpu", [tmp_path / "none", kept(tmp_path)])
    assert how == Plan("cpu", torch.bfloat16, True, {"network": tmp_path / "cuda_network.so"})


def test_a_model_that_bears_float16_runs_in_it_until_it_is_measured(tmp_path: Path) -> None:
    assert cuda.plan("m", "cpu", [tmp_path], "float16") == Plan("cpu", torch.float16)
    for task in TASKS:
        assert store.read_card(STARTER / task).half == "float16"


@pytest.mark.parametrize("differs", [{"gpu": "NVIDIA H100 (9.0)"}, {"torch": "2.0.0"}])
def test_what_was_kept_for_another_gpu_or_torch_is_ignored_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, differs: dict[str, str]
) -> None:
    assert cuda.plan("m", "cpu", [kept(tmp_path, **differs)]) == Plan("cpu")
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{tmp_path / MADE} is for" in line
    assert "ignored" in line


def test_damaged_code_is_refused(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "cuda_network.so").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"cuda_network\.so is damaged"):
        cuda.plan("m", "cpu", [tmp_path])


def items(card: Any) -> list[Item[Any]]:
    names = ("bus", "cat", "zidane", "coffee", "rocket")
    photos = [np.asarray(Image.open(PHOTOS[name]).convert("RGB")) for name in names]
    return [Item(photo, (photo.shape[1], photo.shape[0]), TASKS[card.task].options()) for photo in photos]


@pytest.fixture(params=["efficientnet-lite0", "flickr8k-captioner", "nanodet-g"])
def starter(request: pytest.FixtureRequest, home: Path) -> Path:
    [folder] = (home / "models" / request.param).glob("*/")
    return folder


def test_a_starter_answers_on_the_gpus_way_as_on_the_cpus(starter: Path) -> None:
    card = store.read_card(starter)
    task = TASKS[card.task]
    expected: Any = task.load(starter, card, device.CPU).predict(items(card))
    answers: Any = task.load(starter, card, device.Device("cpu", PLAN)).predict(items(card))
    for answer, exact in zip(answers, expected, strict=True):
        assert not isinstance(answer, VisionError)
        assert not isinstance(exact, VisionError)
        close(answer.model_dump(), exact.model_dump())


def close(answer: Any, exact: Any) -> None:
    if isinstance(exact, dict):
        for name, value in exact.items():
            close(answer[name], value)
    elif isinstance(exact, list | tuple):
        assert len(answer) == len(exact)
        for one, other in zip(answer, exact, strict=True):
            close(one, other)
    else:
        assert answer == (pytest.approx(exact, abs=2e-2) if isinstance(exact, float) else exact)


def test_half_precision_is_chosen_only_if_it_is_faster_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = {"float32": 10.0, "float16": 30.0, "bfloat16": 20.0}
    gates = {"float16": 0.99, "bfloat16": 1.0}
    monkeypatch.setattr(optimize, "pace", lambda model, how: paces[str(how.dtype)[6:]])

    class Pictures:
        task = "classification"

        def answers(self, model: Any) -> Any:
            return model

        def gate(self, answers: Any, exact: Any) -> float:
            return gates[answers]

    pictures: Any = Pictures()
    chosen = optimize.Chosen("float32", pictures, PLAN)  # type: ignore[arg-type]
    for dtype in (torch.float16, torch.bfloat16):
        chosen.consider(lambda how: str(how.dtype)[6:], Plan("cpu", dtype))  # type: ignore[arg-type,return-value]
    assert chosen.plan.dtype is torch.bfloat16
    assert chosen.paces == {f"eager {name}": value for name, value in paces.items()}
    gates["bfloat16"] = 0.9
    chosen = optimize.Chosen("float32", pictures, PLAN)  # type: ignore[arg-type]
    chosen.consider(lambda how: str(how.dtype)[6:], Plan("cpu", torch.bfloat16))  # type: ignore[arg-type,return-value]
    assert chosen.plan is PLAN


KEEP = """
import logging, sys
from pathlib import Path
from train_and_save.graphs import optimize
from vision.bento import store
from vision.core import cuda
from vision.core.cuda import Made
import torch
logging.basicConfig(level="INFO")
place = Path(sys.argv[1])
out = Path(sys.argv[2]) if sys.argv[2:] else None
folder = store.folder("nanodet-g")
card = store.verify(folder)
made = Made(gpu="cpu", torch=torch.__version__, dtype="bfloat16", channels_last=False, code={}, sha256={},
            engines={"eager bfloat16": 12.5}, gate={"AP": 0.999})
(place / "cuda.json").write_text(made.model_dump_json())
optimize.keep(f"nanodet-g:{card.version}", card, made, place, out)
card = store.verify(folder)
print(card.engines.get("cpu, eager bfloat16"), card.metrics.get("cpu, AP"), "cuda.json" in card.sha256)
folders = [out / f"nanodet-g-{card.version}" if out else folder]
print(cuda.plan("nanodet-g", "cpu", folders))
"""


@pytest.mark.served
def test_what_was_chosen_is_kept_in_the_store_and_told_by_the_card_or_kept_in_a_folder(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(another(home, tmp_path_factory))}

    def keep(*folders: Path) -> list[str]:
        command = [sys.executable, "-W", "ignore", "-c", KEEP, *map(str, folders)]
        run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return run.stdout.splitlines()

    assert keep(tmp_path, tmp_path / "engines") == ["None None False", "eager bfloat16"]
    assert keep(tmp_path) == ["12.5 0.999 True", "eager bfloat16"]


def test_an_encoder_of_pictures_makes_no_mask_while_it_is_exported() -> None:
    """Attention with a mask, even one that hides nothing, has no fast kernel."""
    torch.manual_seed(0)
    model: Any = ViTForImageClassification(ViTConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2)).eval()
    pixels = torch.rand(2, 3, 224, 224)

    def masks() -> list[int]:
        with torch.no_grad():
            nodes = torch.export.export(model, (pixels,)).graph.nodes
        return [len(node.args) for node in nodes if "scaled_dot_product_attention" in str(node.target)]

    with torch.no_grad():
        before = model(pixels).logits
    assert masks() == [4]  # query, key, value and the mask
    cuda.unmasked(model)
    assert masks() == [3]
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, before)


def test_why_a_recording_failed_is_what_went_wrong_first() -> None:
    with pytest.raises(RuntimeError) as raised, raising_at_its_end():
        raise RuntimeError("operation not permitted when stream is capturing")
    assert str(cuda.reason(raised.value)) == "operation not permitted when stream is capturing"


@contextmanager
def raising_at_its_end() -> Iterator[None]:
    """As torch.cuda.graph does."""
    try:
        yield
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_yolo_keeps_its_strides_on_the_cpu(tmp_path: Path) -> None:
    """Else making anchor points waits for the GPU, and cannot be recorded; "meta" stands for it here."""
    network: Any = YOLO("yolo26n.yaml", verbose=False).model
    weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    labels = [str(label) for label in range(80)]
    (tmp_path / "config.json").write_text(json.dumps({"yaml": network.yaml, "labels": labels}))
    module: Any = cuda.Best(yolo_module.load(tmp_path))
    head = module.to("meta", torch.float16).network.model.model[-1]
    assert (head.stride.device.type, head.stride.tolist()) == ("cpu", [8, 16, 32])
