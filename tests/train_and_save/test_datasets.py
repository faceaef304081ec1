"""Data sets in the forms that people and their tools write: read as they mean them, or refused with words."""

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train_and_save import datasets
from train_and_save.datasets import DataError
from train_and_save.train import run as training
from train_and_save.train.run import PARTS

SIZE = (64, 48)
BOX = [6.4, 9.6, 19.2, 19.2]
"""x, y, width, height in pixels of SIZE, as COCO has it; LINE is the same for YOLO."""
LINE = "1 0.25 0.4 0.3 0.4"
CORNERS: Any = pytest.approx((6.4, 9.6, 25.6, 28.8))


def picture(path: Path, seed: int | None = None, **options: Any) -> Path:
    """A small picture of noise, different for each path unless seeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(path)) if seed is None else seed)
    Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(path, **options)
    return path


def pictures(folder: Path, *names: str) -> list[Path]:
    return [picture(folder / name) for name in names]


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


def coco(*files: str, **changes: Any) -> dict[str, Any]:
    """A COCO table with a square on each file."""
    return {
        "images": [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(files)],
        "categories": [{"id": 0, "name": "disc"}, {"id": 1, "name": "square"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "iscrowd": 0, **changes} for i in range(len(files))
        ],
    }


# Folders of classes


def labels(folder: Path) -> dict[str, str]:
    """Label by path, of what is read."""
    return {e.path.relative_to(folder).as_posix(): e.label for e in datasets.read_image_folder(folder)}


@pytest.mark.parametrize(
    "parts",
    [
        ("Training", "Testing"),
        ("train", "val", "test"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("TRAIN", "VALID"),
        ("train2017", "val2017"),
        ("train_images", "validation-images"),
        ("Training", "Testing", "single_prediction"),
    ],
)
def test_parts_are_no_labels(tmp_path: Path, parts: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    for part in parts:
        if part == "single_prediction":
            pictures(tmp_path / part, "a.png", "b.png")
        else:
            pictures(tmp_path / part, *(f"{label}/{number}.png" for label in ("cat", "dog") for number in range(3)))
    examples = datasets.read_image_folder(tmp_path)
    assert {example.label for example in examples} == {"cat", "dog"}
    for example in examples:
        first = example.path.relative_to(tmp_path).parts[0]
        assert example.part == ("train" if "train" in first.lower() else "held_out")
    assert ("left out: 2 pictures in no class's folder" in capsys.readouterr().err) == ("single_prediction" in parts)


def test_a_class_may_be_called_as_a_part_is(tmp_path: Path) -> None:
    pictures(tmp_path, "bus/1.png", "car/1.png", "train/1.png")
    assert set(labels(tmp_path).values()) == {"bus", "car", "train"}


@pytest.mark.parametrize(
    "names",
    [
        ("{c}/1.png", "cells/{c}/2.png"),  # Kaggle's cell_images: all again in a folder of the same name
        ("cells/{c}/1.png",),
        ("some name/{c}/1.png",),
        ("train/train/{c}/1.png", "val/val/{c}/2.png"),
        ("{c}/{c}/1.png",),
    ],
)
def test_a_folder_around_the_classes_is_no_label(tmp_path: Path, names: Sequence[str]) -> None:
    folder = tmp_path / "cells"
    for label in ("sick", "well"):
        pictures(folder, *(name.format(c=label) for name in names))
    assert Counter(labels(folder).values()) == {"sick": len(names), "well": len(names)}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".git/objects"])
def test_hidden_folders_never_count(tmp_path: Path, hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, "cat/1.png", "dog/1.png", "cat/._1.png", f"{hidden}/1.png", f"cat/{hidden}/1.png")
    (tmp_path / "fox").mkdir()
    assert labels(tmp_path) == {"cat/1.png": "cat", "dog/1.png": "dog"}
    told = capsys.readouterr().err
    assert "left out: 3 pictures in hidden or system folders" in told
    assert "left out: 1 folders without a picture" in told


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".dib"])
def test_every_usual_suffix_is_a_picture(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path, "cat/1.png", "dog/1.png")
    picture(tmp_path / "fox" / f"1{suffix}", format="BMP" if suffix == ".dib" else "JPEG")
    good, bad = datasets.readable(datasets.read_image_folder(tmp_path))
    assert not bad
    assert {example.label for example in good} == {"cat", "dog", "fox"}


def test_a_class_of_pictures_that_are_not_read_does_not_vanish(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{label}/{number}.png" for label in ("cat", "dog") for number in range(10)), "fox/1.tif")
    with pytest.raises(DataError, match=r"No picture of 'fox' can be used.*1\.tif.*Convert it to JPEG or PNG"):
        datasets.readable(datasets.read_image_folder(tmp_path))


def test_composed_and_decomposed_names_are_one_label(tmp_path: Path) -> None:
    forms: list[tuple[str, Any]] = [("train", "NFC"), ("val", "NFD")]
    for part, form in forms:
        pictures(tmp_path / part, *(f"{unicodedata.normalize(form, name)}/1.png" for name in ("café", "thé")))
    assert set(labels(tmp_path).values()) == {"café", "thé"}


def dealt(examples: Sequence[Any]) -> dict[str, set[str]]:
    good, _ = datasets.readable(examples)
    parts = training.split(good, lambda _: "", seed=0)
    return {part: {example.pixels for example in parts[part]} for part in PARTS}


def test_the_same_picture_stays_in_one_part(tmp_path: Path) -> None:
    """As the same bytes, and as the same pixels in another file."""
    for number in range(12):
        picture(tmp_path / "cat" / f"{number}.png", number)
        picture(tmp_path / "dog" / f"{number}.png", 100 + number)
        picture(tmp_path / "dog" / f"again{number}.bmp", 100 + number)
        (tmp_path / "cat" / f"again{number}.png").write_bytes((tmp_path / "cat" / f"{number}.png").read_bytes())
    parts = dealt(datasets.read_image_folder(tmp_path))
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 24
    assert all(parts.values())


def test_what_is_held_out_is_not_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, numbers in (("train", range(10)), ("val", range(8, 12))):
        for label, start in (("cat", 0), ("dog", 100)):
            for number in numbers:
                picture(tmp_path / part / label / f"{part}{number}.png", start + number)
    parts = dealt(datasets.read_image_folder(tmp_path))
    assert not parts["held_out"] & (parts["train"] | parts["choose"])
    assert len(parts["held_out"]) == 8
    assert "left out: 4 pictures of train that are held out, too" in capsys.readouterr().err


# Boxes


def roboflow_coco(folder: Path) -> None:
    """Roboflow's `COCO`: a table beside the pictures of each part, its first category above all others."""
    for part, number in (("train", 2), ("valid", 1), ("test", 1)):
        names = [f"{index}_jpg.rf.0f6{part}.jpg" for index in range(number)]
        pictures(folder / part, *names)
        table = coco(*names)
        table["info"] = {"year": "2024", "version": "1", "description": "Exported from roboflow.com"}
        table["categories"] = [
            {"id": 0, "name": "shapes", "supercategory": "none"},
            {"id": 1, "name": "square", "supercategory": "shapes"},
        ]
        write(folder / part / "_annotations.coco.json", table)
    write(folder / "README.roboflow.txt", "shapes - v1\n")


def label_studio_coco(folder: Path) -> None:
    """Label Studio's `COCO`: result.json beside images/, escaped slashes, a prefix that its upload has made."""
    names = [f"images/{index}f3a-photo.jpg" for index in range(4)]
    pictures(folder, *names)
    write(folder / "result.json", json.dumps(coco(*names, segmentation=[], ignore=0)).replace("/", "\\/"))


def label_studio_coco_of_windows(folder: Path) -> None:
    pictures(folder / "images", *(f"{index}.jpg" for index in range(4)))
    write(folder / "result.json", coco(*(f"images\\{index}.jpg" for index in range(4))))


def label_studio_coco_of_local_files(folder: Path) -> None:
    pictures(folder / "images", *(f"{index}.jpg" for index in range(4)))
    write(folder / "result.json", coco(*(f"/label-studio/data/media/upload/1/{index}.jpg" for index in range(4))))


def cvat_coco(folder: Path) -> None:
    """CVAT's `COCO 1.0`: annotations/instances_default.json and images/."""
    pictures(folder / "images", *(f"{index}.jpg" for index in range(4)))
    table = coco(*(f"{index}.jpg" for index in range(4)), segmentation=[], attributes={"occluded": False})
    table["licenses"] = [{"name": "", "id": 0, "url": ""}]
    write(folder / "annotations" / "instances_default.json", table)


def ids_as_text(folder: Path) -> None:
    pictures(folder / "images", *(f"{index}.jpg" for index in range(4)))
    table = coco(*(f"{index}.jpg" for index in range(4)), category_id="1")
    for image in table["images"]:
        image["id"] = str(image["id"])
    write(folder / "annotations.json", table)


def cvat_yolo(folder: Path) -> None:
    """CVAT's `YOLO 1.1`: labels beside the pictures, names in obj.names."""
    for index in range(4):
        picture(folder / "obj_train_data" / f"{index}.jpg")
        write(folder / "obj_train_data" / f"{index}.txt", f"{LINE}\n")
    write(folder / "obj.names", "disc\nsquare\n")
    write(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(folder / "train.txt", "".join(f"data/obj_train_data/{index}.jpg\n" for index in range(4)))


def cvat_ultralytics(folder: Path) -> None:
    """CVAT's `Ultralytics YOLO Detection`."""
    for index in range(4):
        picture(folder / "images" / "train" / f"{index}.jpg")
        write(folder / "labels" / "train" / f"{index}.txt", LINE)
    write(folder / "data.yaml", "names:\n  0: disc\n  1: square\npath: .\ntrain: train.txt\n")
    write(folder / "train.txt", "".join(f"data/images/train/{index}.jpg\n" for index in range(4)))


def label_studio_yolo(folder: Path) -> None:
    """Label Studio's `YOLO`: classes.txt and notes.json beside images/ and labels/."""
    for index in range(4):
        picture(folder / "images" / f"{index}f3a-photo.jpg")
        write(folder / "labels" / f"{index}f3a-photo.txt", f"{LINE}\n")
    write(folder / "classes.txt", "disc\nsquare")
    write(folder / "notes.json", {"categories": [{"id": 0, "name": "disc"}, {"id": 1, "name": "square"}], "info": {}})


def label_img(folder: Path) -> None:
    """LabelImg's YOLO: everything in one folder."""
    for index in range(4):
        picture(folder / f"{index}.jpg")
        write(folder / f"{index}.txt", f"{LINE}\n")
    write(folder / "classes.txt", "disc\nsquare\n")


def roboflow_yolo(folder: Path) -> None:
    """Roboflow's `YOLOv8`: the part stands above images/ and labels/; polygons among boxes."""
    for part, number in (("train", 2), ("valid", 1), ("test", 1)):
        for index in range(number):
            picture(folder / part / "images" / f"{index}_jpg.rf.0f6{part}.jpg")
            polygon = "1 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6"
            write(folder / part / "labels" / f"{index}_jpg.rf.0f6{part}.txt", LINE if index else polygon)
    write(folder / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['disc', 'square']\n")


def hugging_face_boxes(folder: Path) -> None:
    pictures(folder / "train", *(f"{index}.jpg" for index in range(4)))
    rows = [{"file_name": f"{i}.jpg", "objects": {"bbox": [BOX], "categories": ["square"]}} for i in range(4)]
    write(folder / "train" / "metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(
    "export",
    [
        roboflow_coco, label_studio_coco, label_studio_coco_of_windows, label_studio_coco_of_local_files, cvat_coco,
        ids_as_text, cvat_yolo, cvat_ultralytics, label_studio_yolo, label_img, roboflow_yolo, hugging_face_boxes,
    ],
)  # fmt: skip
def test_boxes_of_an_export(tmp_path: Path, export: Callable[[Path], None]) -> None:
    export(tmp_path)
    examples, names = datasets.read_boxes(tmp_path)
    assert len(examples) == 4
    for example in examples:
        assert not example.problem
        assert example.boxes == [("square", CORNERS)]
    assert "square" in names
    assert "shapes" not in names
    if export in (roboflow_coco, roboflow_yolo):
        assert Counter(example.part for example in examples) == {"train": 2, "held_out": 2}


def test_parts_that_lists_tell(tmp_path: Path) -> None:
    """Darknet's: all pictures in one folder, train.txt and test.txt beside it."""
    label_img(tmp_path / "data" / "obj")
    (tmp_path / "data" / "obj" / "classes.txt").rename(tmp_path / "obj.names")
    write(tmp_path / "train.txt", "".join(f"data/obj/{index}.jpg\n" for index in range(3)))
    write(tmp_path / "test.txt", "data/obj/2.jpg\ndata/obj/3.jpg\n")
    examples, _ = datasets.read_boxes(tmp_path)
    assert [example.part for example in examples] == ["train", "train", "held_out", "held_out"]


def test_cocos_own_parts_stay_apart(tmp_path: Path) -> None:
    """Also where both have a picture of one name, and with other tables of the same pictures beside."""
    for part, label in (("train2017", "disc"), ("val2017", "square")):
        pictures(tmp_path / part, "1.jpg", "2.jpg")
        content = coco("1.jpg", "2.jpg", category_id=["disc", "square"].index(label))
        write(tmp_path / "annotations" / f"instances_{part}.json", content)
        write(tmp_path / "annotations" / f"person_keypoints_{part}.json", content | {"annotations": []})
        write(tmp_path / "annotations" / f"captions_{part}.json", {"images": content["images"], "annotations": []})
    examples, _ = datasets.read_boxes(tmp_path)
    assert [(e.part, e.path.parent.name, e.boxes[0][0]) for e in examples] == [
        ("train", "train2017", "disc"), ("train", "train2017", "disc"),
        ("held_out", "val2017", "square"), ("held_out", "val2017", "square"),
    ]  # fmt: skip


def test_a_category_keeps_its_name_in_its_own_table(tmp_path: Path) -> None:
    for part, names in (("train", ["disc", "square"]), ("valid", ["square", "disc"])):
        pictures(tmp_path / part, "1.jpg")
        table = coco("1.jpg") | {"categories": [{"id": index, "name": name} for index, name in enumerate(names)]}
        write(tmp_path / part / "_annotations.coco.json", table)
    examples, names = datasets.read_boxes(tmp_path)
    assert [example.boxes[0][0] for example in examples] == ["square", "disc"]
    assert sorted(names) == ["disc", "square"]


def test_one_name_in_two_folders_is_found_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "images", "a/1.jpg", "b/1.jpg")
    table = coco("a/1.jpg", "b/1.jpg", "c/1.jpg")
    table["annotations"][1]["category_id"] = 0
    write(tmp_path / "annotations.json", table)
    examples, _ = datasets.read_boxes(tmp_path)
    assert [(e.path.parent.name, e.boxes[0][0]) for e in examples] == [("a", "square"), ("b", "disc")]
    assert "left out: 1 names in" in capsys.readouterr().err
    (tmp_path / "images" / "b" / "1.jpg").unlink()
    examples, _ = datasets.read_boxes(tmp_path)
    assert [(e.path.parent.name, e.boxes[0][0]) for e in examples] == [("a", "square")]
    pictures(tmp_path / "images", "b/1.jpg")
    write(tmp_path / "annotations.json", coco("1.jpg"))
    with pytest.raises(DataError, match=r"'1\.jpg' may be .*a/1\.jpg or .*b/1\.jpg: name its folder, too"):
        datasets.read_boxes(tmp_path)


@pytest.mark.parametrize(("table", "name"), [("instances_train.json", "1.jpg"), ("annotations.json", "train/1.jpg")])
def test_a_picture_of_another_part_is_another_picture(tmp_path: Path, table: str, name: str) -> None:
    pictures(tmp_path, "val/1.jpg", "train/2.jpg")
    write(tmp_path / "annotations" / table, coco(name, "train/2.jpg"))
    examples, _ = datasets.read_boxes(tmp_path)
    assert [example.path.name for example in examples] == ["2.jpg"]


@pytest.mark.parametrize(("table", "files"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_compared_in_one_form(tmp_path: Path, table: Any, files: Any) -> None:
    name = "Äpfel für Zoë"
    for folder in ("coco", "yolo", "captions"):
        picture(tmp_path / folder / "images" / f"{unicodedata.normalize(files, name)}.jpg")
    other = unicodedata.normalize(table, name)
    write(tmp_path / "coco" / "annotations.json", coco(f"{other}.jpg"))
    write(tmp_path / "yolo" / "labels" / f"{other}.txt", LINE)
    write(tmp_path / "yolo" / "names.txt", "disc\nsquare\n")
    write(tmp_path / "captions" / "captions.tsv", f"{other}.jpg\tapples\n")
    for folder in ("coco", "yolo"):
        [example], _ = datasets.read_boxes(tmp_path / folder)
        assert example.boxes == [("square", CORNERS)]
    assert len(datasets.read_captions_table(tmp_path / "captions")) == 1


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 0.9 0.5 0.2004 1.0000001", (51.1872, 0, 64, 48)),  # a hair over
        ("1 1.000001 0.5 0.5 0.5", (48, 12, 64, 36)),
        ("1 0.25 0.25 0.75 0.25 0.5 0.75", (16, 12, 48, 36)),
        ("1 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6", (6.4, 9.6, 25.6, 28.8)),
    ],
)
def test_lines_that_ultralytics_takes(tmp_path: Path, line: str, box: tuple[float, ...]) -> None:
    label_img(tmp_path)
    write(tmp_path / "0.txt", f"{LINE}\n{line}\n{line}\n")
    examples, _ = datasets.read_boxes(tmp_path)
    assert examples[0].problem == ""
    assert [corners for _, corners in examples[0].boxes] == [CORNERS, pytest.approx(box, abs=1e-3)]


def test_annotations_without_a_box_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "images", "0.jpg", "1.jpg", "2.jpg", "3.jpg", "not in it.jpg")
    table = coco("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    table["annotations"][0]["bbox"] = []
    del table["annotations"][1]["bbox"]
    table["annotations"][2]["bbox"] = None
    write(tmp_path / "annotations.json", table)
    examples, _ = datasets.read_boxes(tmp_path)
    assert [len(example.boxes) for example in examples] == [0, 0, 0, 1]
    told = capsys.readouterr().err
    assert "left out: 3 annotations without a box" in told
    assert "left out: 1 pictures that no table names" in told


def test_boxes_of_another_size_are_no_boxes_of_the_picture(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "0.jpg")
    table = coco("0.jpg")
    table["images"][0] |= {"width": 640, "height": 480}
    write(tmp_path / "annotations.json", table)
    with pytest.raises(DataError, match="no box belongs to a picture"):
        datasets.read_boxes(tmp_path)


def test_background_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_studio_yolo(tmp_path)
    pictures(tmp_path / "images", "none.jpg")
    write(tmp_path / "labels" / "nowhere.txt", LINE)
    examples, _ = datasets.read_boxes(tmp_path)
    assert len(examples) == 5
    told = capsys.readouterr().err
    assert "1 of 5 pictures have no label file" in told
    assert "left out: 1 label files without a picture" in told


# Captions


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.tsv", "0.jpg\ta dog, running\n1.jpg\ta cat\n"),
        ("captions.tsv", "image\tcaption\n0.jpg\ta dog, running\n1.jpg\ta cat\n"),
        ("captions.csv", 'file,caption\n0.jpg,"a dog, running"\n1.jpg,a cat\n'),
        ("captions.csv", "file;caption\n0.jpg;a dog, running\n1.jpg;a cat\n"),
        ("captions.csv", 'image_name,comment\n0.jpg,"a dog,\nrunning"\n1.jpg,a cat\n'),
        ("captions.csv", "id,File_Name,Text\n7,0.jpg,a dog, running\n8,1.jpg,a cat\n"),
        ("captions.csv", "path,caption\r\nC:\\data\\0.jpg,a dog, running\r\n.\\1.jpg,a cat\r\n"),
        ("captions.csv", "path,caption\n/home/me/images/0.JPG,a dog, running\ndata/1.JPG,a cat\n"),
        ("captions.csv", "image_id,caption\n0,a dog, running\n1,a cat\n"),
        ("captions.txt", "image,caption\n0.jpg,a dog, running\n1.jpg,a cat\n"),  # Flickr8k as Kaggle has it
        ("Flickr8k.token.txt", "0.jpg#0\ta dog, running\n1.jpg#0\ta cat\n"),
        ("results.csv", "image_name| comment_number| comment\n0.jpg| 0| a dog, running\n1.jpg| 0| a cat\n"),
        ("metadata.csv", 'file_name,text\nimages/0.jpg,"a dog, running"\nimages/1.jpg,a cat\n'),
        (
            "metadata.jsonl",
            '{"file_name": "images/0.jpg", "text": "a dog, running"}\n{"file_name": "images/1.jpg", "text": "a cat"}\n',
        ),
    ],
)
def test_captions_of_a_table(tmp_path: Path, name: str, content: str) -> None:
    pictures(tmp_path / "images", "0.jpg", "1.jpg")
    write(tmp_path / name, content)
    examples = datasets.read_captions_table(tmp_path)
    assert [example.captions for example in examples] == [["a dog, running"], ["a cat"]]


def test_a_quotation_mark_may_be_the_sentences_own(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "0.jpg", "1.jpg", "2.jpg")
    write(tmp_path / "captions.tsv", '0.jpg\t"no dog\n1.jpg\t"a cat" is here\n2.jpg\ta 6" ruler\n')
    said = [example.captions for example in datasets.read_captions_table(tmp_path)]
    assert said == [['"no dog'], ['"a cat" is here'], ['a 6" ruler']]


def test_captions_in_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file name in each; the folder that the table tells counts."""
    pictures(tmp_path / "images", "a/1.jpg", "b/1.jpg")
    write(tmp_path / "captions.csv", "file,caption\na/1.jpg,first\nb/1.jpg,second\nb/2.jpg,none\n")
    said = [example.captions for example in datasets.read_captions_table(tmp_path)]
    assert said == [["first"], ["second"]]
    assert "left out: 1 names in" in capsys.readouterr().err


def test_hugging_faces_parts_and_labels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / part, "0.jpg", "1.jpg")
        with write(tmp_path / part / "metadata.csv", "").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "label"], ["0.jpg", "cat"], ["1.jpg", "dog"]])
    examples = datasets.read_image_folder(tmp_path)
    assert [(e.label, e.part) for e in examples] == [
        (x, part) for part in ("held_out", "train") for x in ("cat", "dog")
    ]


# What is refused


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("annotations.json", "{", r"annotations\.json is no JSON"),
        ("annotations.json", coco("0.jpg", category_id=5), r"annotation 0 is of category 5, which is not among"),
        ("annotations.json", coco("0.jpg", category_id=None), r"an annotation has no category_id: \{.*Export it again"),
        ("annotations.json", coco("0.jpg", bbox=[1, 2, 3]), r"bbox of annotation 0 is not x, y, width, height"),
        ("annotations.json", coco("0.jpg") | {"images": [{"id": 1}]}, r"an image has no file_name"),
        ("annotations.json", coco("0.jpg") | {"images": ["0.jpg"]}, r"an image has no id"),
        ("annotations.json", coco("other.jpg"), r"No picture of .*annotations\.json lies in .*: put the pictures"),
        ("data.yaml", "names: [a, b", r"data\.yaml is no YAML"),
        ("data.yaml", "names: disc", r"data\.yaml: names is 'disc'; write a list"),
        ("data.yaml", "names: {one: disc}", r"data\.yaml: names is no list of names, nor names by number"),
        ("names.txt", "disc\n\nsquare\n", r"names\.txt line 2 is empty"),
        ("captions.csv", "0.jpg,a dog\n", r"captions\.csv begins with '0\.jpg,a dog': it lacks a header"),
        (
            "captions.csv",
            "file,words\n0.jpg,a dog\n",
            r"has no column for caption, by a name such as .*has file, words",
        ),
        ("captions.csv", 'file,caption\n0.jpg,"a dog\n', r"captions\.csv line 2: unexpected end of data"),
        ("captions.tsv", "0.jpg a dog\n", r"captions\.tsv line 1 has 1 cells; 2 are wanted"),
        ("metadata.jsonl", "{", r"metadata\.jsonl line 1 is no JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "0.jpg", "objects": {"bbox": [1]}}',
            r"metadata\.jsonl line 1: objects is not",
        ),
    ],
)
def test_the_file_the_record_and_the_way_out_are_told(tmp_path: Path, file: str, content: Any, words: str) -> None:
    pictures(tmp_path / "images", "0.jpg")
    write(tmp_path / file, content)
    read = datasets.read_captions_table if file.startswith("captions") else datasets.read_boxes
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    label_studio_yolo(tmp_path)
    write(tmp_path / "data.yaml", "names: [square, disc]\n")
    with pytest.raises(DataError, match=r"classes\.txt and .*data\.yaml name different classes"):
        datasets.read_boxes(tmp_path)
    cvat_coco(tmp_path / "coco")
    write(tmp_path / "coco" / "result.json", coco("0.jpg", category_id=0))
    with pytest.raises(DataError, match=r"0\.jpg has other boxes in .* than in another table"):
        datasets.read_boxes(tmp_path / "coco")
