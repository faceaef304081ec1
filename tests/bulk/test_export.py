"""Results in the formats of other tools, read by those tools' own readers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bulk import UserError, rows
from bulk.export import export
from bulk.groups import Results
from testkit import light, results
from testkit.photographs import PHOTOS
from vision.tasks import TASKS

SCHEMA = rows.schema(
    {**{word: task.result for word, task in TASKS.items()}, "classification:dogs@head": TASKS["classification"].result},
    None,
)
NASTY = 'a "dog" & <cat>'


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Results:
    def caption(text: str) -> dict[str, Any]:
        return {"captioning": {"caption": text, "score": 0.5, "model": {}}}

    some = [
        results.row(
            "1",
            None,
            {"bus": 0.9, "tram": 0.05},
            {"bus": 0.8, "person": 0.4},
            uri=str(PHOTOS["bus"]),
            **caption("a bus"),
        ),
        results.failed("2", None),
        results.row("3", None, {NASTY: 0.6}, {NASTY: 0.7}, uri="s3://bucket/a b.jpg", **caption(NASTY)),
        results.row("4", None, {}, {}, uri=str(PHOTOS["cat"]), **caption("")),
    ]
    some[0]["classification:dogs@head"] = {"labels": [{"label": "pug", "score": 0.2}]}
    return Results(results.write(tmp_path_factory.mktemp("export") / "results", some, SCHEMA, shard=3))


def test_pycocotools_reads_objects_and_captions(scored: Results, tmp_path: Path) -> None:
    assert export(scored, "coco", tmp_path) == (3, ["captioning.json", "detection.json"])
    found = COCO(tmp_path / "detection.json")
    assert [one["file_name"] for one in found.loadImgs(found.getImgIds())] == [
        str(PHOTOS["bus"]),
        "s3://bucket/a b.jpg",
        str(PHOTOS["cat"]),
    ]
    assert [one["name"] for one in found.loadCats(found.getCatIds())] == [NASTY, "bus", "person"]
    [bus] = found.loadAnns(found.getAnnIds(imgIds=[1], catIds=found.getCatIds(catNms=["bus"])))
    assert (bus["bbox"], bus["area"], bus["score"]) == ([0, 0, 50, 50], 2500, 0.8)
    same = COCOeval(found, found.loadRes(found.loadAnns(found.getAnnIds())), "bbox")
    same.evaluate()
    same.accumulate()
    same.summarize()
    assert same.stats[0] == pytest.approx(1)
    sentences = COCO(tmp_path / "captioning.json")
    assert [one["caption"] for one in sentences.loadAnns(sentences.getAnnIds(imgIds=[1, 2]))] == ["a bus", NASTY]


def test_label_studio_gets_tasks_with_predictions(scored: Results, tmp_path: Path) -> None:
    """The test below asks its own reader."""
    assert export(scored, "label-studio", tmp_path) == (3, ["tasks.json", "config.xml"])
    first, second, third = json.loads((tmp_path / "tasks.json").read_text())
    assert first["data"]["image"] == f"/data/local-files/?d={str(PHOTOS['bus']).lstrip('/')}"
    assert second["data"]["image"] == "s3://bucket/a b.jpg"
    said = {
        (one["from_name"], str(one["value"].get(one["type"], one["value"].get("text"))))
        for one in first["predictions"][0]["result"]
    }
    assert said == {
        ("classification", "['bus']"),
        ("captioning", "['a bus']"),
        ("detection", "['bus']"),
        ("detection", "['person']"),
        ("classification-dogs-head", "['pug']"),
    }
    assert '<Choice value="a &quot;dog&quot; &amp; &lt;cat&gt;" />' in (tmp_path / "config.xml").read_text()
    assert [one["value"] for one in third["predictions"][0]["result"]] == [{"text": [""]}]


LABEL_STUDIO = """
import json
import sys
from label_studio_sdk.label_interface import LabelInterface

interface = LabelInterface(open(sys.argv[1] + "/config.xml").read())
interface.validate()
for task in json.load(open(sys.argv[1] + "/tasks.json")):
    assert interface.validate_task({"data": task["data"]})
    for prediction in task["predictions"]:
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert all(interface.validate_region(region) for region in prediction["result"])
broken = dict(task["predictions"][0], result=[{"from_name": "nobody"}])
assert interface.validate_prediction(broken, return_errors=True)
"""

FIFTYONE = """
import json
import sys
from fiftyone.utils.data import importers

found = {}
for word in ("detection", "classification", "captioning"):
    kind = "Detection" if word == "detection" else "Classification"
    reader = getattr(importers, f"FiftyOneImage{kind}DatasetImporter")
    with reader(dataset_dir=f"{sys.argv[1]}/{word}", data_path="data.json") as samples:
        found[word] = [
            (path, [(one.label, one.confidence, getattr(one, "bounding_box", None)) for one in
                    (label.detections if kind == "Detection" else [label] if label else [])])
            for path, _, label in samples
        ]
print(json.dumps(found))
"""


def ask(package: str, code: str, folder: Path, tmp_path: Path) -> str:
    """Run code with a package in an environment of its own: they bring a hundred others."""
    python = tmp_path / "venv" / "bin" / "python"
    light.uv("venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    light.uv("pip", "install", "--quiet", "--python", python, package)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "FIFTYONE_DO_NOT_TRACK": "true"}
    run = subprocess.run([python, "-c", code, folder], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.served
def test_label_studios_own_reader_finds_nothing_wrong(scored: Results, tmp_path: Path) -> None:
    export(scored, "label-studio", tmp_path / "out")
    ask("label-studio-sdk==2.1.2", LABEL_STUDIO, tmp_path / "out", tmp_path)


@pytest.mark.served
def test_fiftyones_own_reader_reads_each_feature(scored: Results, tmp_path: Path) -> None:
    """Its importers, which yield the samples; its datasets would need MongoDB."""
    export(scored, "fiftyone", tmp_path / "out")
    found = json.loads(ask("fiftyone==1.22.1", FIFTYONE, tmp_path / "out", tmp_path))
    bus, remote, cat = [path for path, _ in found["detection"]]
    assert (bus, cat) == (str(PHOTOS["bus"]), str(PHOTOS["cat"]))
    assert remote.endswith("a b.jpg")
    assert found["detection"][0][1] == [["bus", 0.8, [0, 0, 0.5, 0.5]], ["person", 0.4, [0, 0, 0.5, 0.5]]]
    assert [labels for _, labels in found["classification"]] == [[["bus", 0.9, None]], [[NASTY, 0.6, None]], []]
    assert found["captioning"][1][1] == [[NASTY, 0.5, None]]


def test_what_cannot_be_exported_is_told_and_nothing_written(scored: Results, tmp_path: Path) -> None:
    labels = pa.schema([field for field in SCHEMA if field.name not in ("captioning", "detection")])
    only = Results(results.write(tmp_path / "results", [results.row("1", None, {"bus": 0.9})], labels))
    with pytest.raises(UserError, match=r"COCO's format holds objects and captions; .* has classification"):
        export(only, "coco", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(scored, "coco", tmp_path / "file" / "out")
    only.parts[0].write_bytes(only.parts[0].read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        export(only, "label-studio", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
