"""Models by name from a hub on loopback: what is served answers as the reference libraries do.

FULL=1 makes the checkpoints as large as the originals (`make test-hub`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    VisionEncoderDecoderModel,
    pipeline,
)
from ultralytics.engine.results import Results
from ultralytics.models.yolo.model import YOLO

from testkit import hub
from testkit.photographs import PHOTOS, encoded
from testkit.servers import ROOT, serve

pytestmark = pytest.mark.served

FULL = bool(os.environ.get("FULL"))
VIT, RESNET, RT_DETR = "google/vit-base-patch16-224", "microsoft/resnet-50", "PekingU/rtdetr_v2_r18vd"
BLIP, VIT_GPT2 = "Salesforce/blip-image-captioning-base", "nlpconnect/vit-gpt2-image-captioning"
YOLO26, YOLO11 = "Ultralytics/YOLO26/yolo26n.pt", "Ultralytics/YOLO11/yolo11n.pt"
SERVED = [(VIT, BLIP, RT_DETR), (RESNET, VIT_GPT2, YOLO26), (None, None, YOLO11)]
"""Classifier, captioner and detector of each server; None is the starter."""

Save = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    hub.vit(root / VIT, FULL)
    hub.resnet(root / RESNET, FULL)
    hub.blip(root / BLIP, FULL)
    hub.vit_gpt2(root / VIT_GPT2, FULL)
    hub.rt_detr(root / RT_DETR, FULL)
    hub.yolo(root / "Ultralytics/YOLO26", "yolo26n")
    hub.yolo(root / "Ultralytics/YOLO11", "yolo11n")
    return root


@pytest.fixture(scope="module")
def loopback(root: Path) -> Iterator[hub.Hub]:
    with hub.serve_hub(root) as server:
        yield server


@pytest.fixture
def save(loopback: hub.Hub, tmp_path: Path) -> Save:
    """Run a command of train_and_save against the hub on loopback, with an empty store and cache of its own."""

    def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return train_and_save(loopback, tmp_path, *arguments, **environment)

    return run


def train_and_save(
    loopback: hub.Hub, home: Path, *arguments: str | Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    settings = {"BENTOML_HOME": str(home / "bentoml"), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": loopback.url}
    return subprocess.run(
        [sys.executable, "-m", "train_and_save", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
    )


def models(home: Path) -> list[str]:
    return sorted(path.parent.name for path in (home / "bentoml" / "models").glob("*/*/"))


def identity(names: tuple[str | None, ...]) -> str:
    return "+".join(Path(name).stem if name else "starter" for name in names)


@pytest.fixture(scope="module", params=SERVED, ids=identity)
def served(
    request: pytest.FixtureRequest, loopback: hub.Hub, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[tuple[str | None, ...], str]]:
    """A server of three models saved by name; its models' names and its address."""
    place = tmp_path_factory.mktemp("served")
    shutil.copytree(home / "models", place / "bentoml" / "models")
    settings = {}
    for name in request.param:
        if name is not None:
            run = train_and_save(loopback, place, "hub", "--name", name)
            assert run.returncode == 0, run.stderr
            variable, _, tag = run.stdout.strip().partition("=")
            settings[variable] = tag
    with serve(place / "bentoml", **settings) as url:
        yield request.param, url


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(PHOTOS["bus"]) as image:
        return encoded(image, "PNG", exif=exif)


PICTURES = {name: PHOTOS[name].read_bytes() for name in ("bus", "zidane", "cat", "camera")} | {"turned": turned()}


def opened(data: bytes) -> Image.Image:
    import io

    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def post(url: str, endpoint: str, data: bytes, **options: Any) -> dict[str, Any]:
    response = httpx.post(url + endpoint, files={"images": data}, data=options, timeout=120)
    assert response.status_code == 200, response.text
    [result] = response.json()["results"]
    assert isinstance(result, dict)
    return result


def test_the_service_answers_as_the_reference_libraries(served: tuple[tuple[str | None, ...], str], root: Path) -> None:
    (classifier, captioner, detector), url = served
    assert detector is not None
    for data in PICTURES.values():
        if classifier is not None:
            assert_same_labels(post(url, "/classify", data), reference_labels(root / classifier, data))
        if captioner is not None:
            caption, score = reference_caption(root / captioner, data)
            answer = post(url, "/caption", data, num_beams=1, max_new_tokens=12)
            assert answer["caption"] == caption
            assert answer["score"] == pytest.approx(score, abs=1e-4)
        assert_same_objects(url, root / detector, data)
    if classifier is not None:
        cards = {card["task"]: card for card in httpx.get(f"{url}/models").json()["models"]}
        assert cards["classification"]["source"] == f"{classifier} at {hub.COMMIT[:12]}"
        assert cards["classification"]["licence"] == "apache-2.0"
        for task in ("classification", "detection"):
            engines = {"openvino float32", "openvino float32, streams", "pytorch eager"}
            assert cards[task]["engines"].keys() == engines
        assert cards["detection"]["licence"].startswith("AGPL-3.0" if "YOLO" in detector else "apache-2.0")


def test_make_serve_brings_production_models(loopback: hub.Hub, tmp_path: Path) -> None:
    online = {"HF_ENDPOINT": loopback.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with serve(tmp_path / "bentoml", ["make", "serve", "MODELS=hub", "PORT={port}"], **online) as url:
        names = {card["task"]: card["name"] for card in httpx.get(f"{url}/models").json()["models"]}
    assert names == {
        "classification": "vit-base-patch16-224",
        "captioning": "blip-image-captioning-base",
        "detection": "yolo26n",
    }


def reference_labels(folder: Path, data: bytes) -> list[dict[str, Any]]:
    labels: list[dict[str, Any]] = pipeline("image-classification", model=str(folder))(opened(data), top_k=5)
    return labels


def assert_same_labels(result: dict[str, Any], reference: list[dict[str, Any]]) -> None:
    assert [item["label"] for item in result["labels"]] == [item["label"] for item in reference]
    assert [item["score"] for item in result["labels"]] == pytest.approx([i["score"] for i in reference], abs=1e-3)


def reference_caption(folder: Path, data: bytes) -> tuple[str, float]:
    loader = BlipForConditionalGeneration if "blip" in folder.name else VisionEncoderDecoderModel
    model, tokenizer = loader.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pixel_values = AutoImageProcessor.from_pretrained(folder)(opened(data), return_tensors="pt").pixel_values
    with torch.inference_mode():
        found: Any = model.generate(
            pixel_values=pixel_values, num_beams=1, max_new_tokens=12, return_dict_in_generate=True, output_logits=True
        )
    [tokens] = found.sequences
    said = zip(found.logits, tokens[-len(found.logits) :], strict=True)  # a lone sentence has no padding
    score = torch.stack([logits[0].log_softmax(-1)[token] for logits, token in said]).mean().exp().item()
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip(), score


def reference_objects(path: Path, data: bytes) -> list[tuple[str, float, list[float]]]:
    """Every object of a picture with its score and box, best first."""
    if path.suffix == ".pt":
        [result] = cast(list[Results], YOLO(path).predict(opened(data), conf=0.001, verbose=False, device="cpu"))
        assert result.boxes is not None
        rows = torch.as_tensor(result.boxes.data).tolist()
        found = [(result.names[int(row[5])], row[4], row[:4]) for row in rows]
    else:
        rows = pipeline("object-detection", model=str(path), threshold=0.0)(opened(data))
        width, height = opened(data).size
        limits = {"xmin": width, "ymin": height, "xmax": width, "ymax": height}  # boxes of the service end there
        found = [
            (row["label"], row["score"], [min(max(row["box"][side], 0), limits[side]) for side in limits])
            for row in rows
        ]
    return sorted(found, key=lambda item: -item[1])


def assert_same_objects(url: str, path: Path, data: bytes, **options: str) -> None:
    """At a threshold in the widest gap between scores, so that none lies on it."""
    reference = reference_objects(path, data)
    scores = [score for _, score, _ in reference[:40]]
    gap = max(range(5, len(scores) - 1), key=lambda i: scores[i] - scores[i + 1])
    expected = reference[: gap + 1]
    options |= {"min_score": str((scores[gap] + scores[gap + 1]) / 2), "max_detections": "300"}
    result = post(url, "/detect", data, **options)
    assert len(result["objects"]) == len(expected)
    remaining = list(result["objects"])
    for label, score, box in expected:
        match = min(remaining, key=lambda item: (item["label"] != label, distance(item["box"], box)))
        remaining.remove(match)
        assert match["label"] == label
        assert match["score"] == pytest.approx(score, abs=1e-3)
        assert match["box"] == pytest.approx(box, abs=1)


def distance(box: list[float], other: list[float]) -> float:
    return max(abs(one - two) for one, two in zip(box, other, strict=True))


def test_an_interrupted_download_leaves_the_store_alone_and_goes_on(
    save: Save, loopback: hub.Hub, tmp_path: Path
) -> None:
    loopback.breaks = {"model.safetensors"}
    first = save("hub", "--name", RESNET, HF_HUB_DOWNLOAD_TIMEOUT="2")
    loopback.requests.clear()
    if first.returncode != 0:
        assert len(first.stderr.strip().splitlines()[-1:]) == 1
        assert models(tmp_path) == []
    again = save("hub", "--name", RESNET)
    assert again.returncode == 0, again.stderr
    assert models(tmp_path) == ["resnet-50"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hub", "--name", "nobody/nothing"], "hub: The hub has no model 'nobody/nothing'"),
        (["hub", "--name", "a/b/c/d"], "hub: 'a/b/c/d' is no model name"),
        (["hub", "--name", ""], "hub: '' is no model name"),
        (
            ["hub", "--name", "Ultralytics/YOLO26"],
            "hub: Ultralytics/YOLO26 has no config.json; for a YOLO name its file",
        ),
        (["hub", "--name", "Ultralytics/YOLO26/other.pt"], "hub: Ultralytics/YOLO26/other.pt: there is no such file"),
        (["hub", "--task", "detection", "--name", RESNET], "hub: resnet-50 is a model for classification"),
        (["path", ROOT / "tests"], "path: "),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_the_store_alone(
    save: Save, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    run = save(*arguments)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith(reason)
    assert "Traceback" not in run.stderr
    assert models(tmp_path) == []


def test_a_path_that_is_not_there_is_told_by_the_parser(save: Save, tmp_path: Path) -> None:
    run = save("path", tmp_path / "nowhere")
    assert run.returncode == 2
    assert run.stderr.strip().endswith(f"argument path: there is no {tmp_path / 'nowhere'}")


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_hub_it_says_what_to_do(save: Save, environment: dict[str, str]) -> None:
    run = save("hub", **environment)
    assert run.returncode == 1
    assert "No hub is reachable for google/vit-base-patch16-224" in run.stderr
    assert "python -m train_and_save path DIR" in run.stderr
    assert "Traceback" not in run.stderr


class Marker:
    """A pickle that leaves a mark when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["bin", "pt"])
def test_pickled_code_is_never_run(save: Save, root: Path, tmp_path: Path, kind: str) -> None:
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    folder.mkdir()
    if kind == "bin":
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(root / RESNET / name, folder)
    file = folder / {"bin": "pytorch_model.bin", "pt": "evil.pt"}[kind]
    torch.save({"model": Marker(mark)}, file)
    run = save("path", folder)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert not mark.exists()
    assert models(tmp_path) == []
    torch.load(file, weights_only=False)
    assert mark.exists(), "read without care, it would have run"


def test_a_bin_is_read_once_and_saved_as_safetensors(save: Save, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resnet-bin"
    shutil.copytree(root / RESNET, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    from safetensors.torch import load_file

    torch.save(load_file(root / RESNET / "model.safetensors"), folder / "pytorch_model.bin")
    run = save("path", folder)
    assert run.returncode == 0, run.stderr
    [saved] = (tmp_path / "bentoml" / "models" / "resnet-bin").glob("*/")
    assert not list(saved.glob("pytorch_model*"))
    before, after = load_file(root / RESNET / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_damaged_weights_are_refused(save: Save, root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / RESNET, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    run = save("path", folder)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("path: cut does not run")
    assert models(tmp_path) == []
