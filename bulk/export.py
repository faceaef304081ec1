"""Results for the tools that people label and look with: COCO's JSON, Label Studio's tasks, FiftyOne's datasets.

Only pictures that could be scored are handed on: a tool would take one without answers for one that shows nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from bulk import UserError
from bulk.addresses import is_remote
from bulk.groups import Results
from bulk.places import Folder, made
from bulk.rows import Row

BESIDE = ("id", "uri", "width", "height", "status")


def export(results: Results, tool: str, out: Path) -> tuple[int, list[str]]:
    """Write files for a tool into a folder; return how many pictures they name, and their names. Raises UserError.

    Memory does not grow with the pictures.
    """
    if not results.kinds:
        raise UserError(f"{results.folder} holds no feature to export.")
    names = TOOLS[tool](results, made(out))
    with results.connected() as connection:
        [count] = connection.execute("SELECT count(*) FROM rows WHERE status = 'ok'").fetchone() or (0,)
    return count, names


def coco(results: Results, out: Folder) -> list[str]:
    """Write `WORD.json` for each feature: objects as COCO's instances, captions as COCO's captions.

    Objects and sentences have a `score`, as COCO's results do. Categories count from 1 in their names' order, not by
    COCO's own numbers. Labels of whole pictures are not in that format.
    """
    written: list[str] = []
    for word, kind in results.kinds.items():
        if kind == "labels":
            continue
        with _open(out, f"{_plain(word)}.json", written) as file:
            file.write('{"info": ' + json.dumps({"description": f"{word} of {results.asked['photos']}"}))
            file.write(', "licenses": []')
            if kind == "objects":
                labels = sorted({one["label"] for row in _rows(results, word) for one in row[word]["objects"]})
                categories = {label: number for number, label in enumerate(labels, 1)}
                found = _coco_objects(results, word, categories)
                file.write(', "categories": ')
                _write_list(file, ({"id": number, "name": label} for label, number in categories.items()))
            else:
                found = _coco_captions(results, word)
            file.write(', "images": ')
            _write_list(file, _coco_images(results, word))
            file.write(', "annotations": ')
            _write_list(file, ({"id": number, **one} for number, one in enumerate(found, 1)))
            file.write("}\n")
    if not written:
        raise UserError(f"COCO's format holds objects and captions; {results.folder} has {', '.join(results.kinds)}.")
    return written


def _coco_images(results: Results, word: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_rows(results, word), 1):
        size = {name: row[name] for name in ("width", "height")}
        yield {"id": number, "file_name": row["uri"], **size, "row_id": row["id"]}


def _coco_objects(results: Results, word: str, categories: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_rows(results, word), 1):
        for one in row[word]["objects"]:
            x1, y1, x2, y2 = one["box"]
            width, height = x2 - x1, y2 - y1
            yield {
                "image_id": number,
                "category_id": categories[one["label"]],
                "bbox": [x1, y1, round(width, 2), round(height, 2)],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "segmentation": [],
                "score": one["score"],
            }


def _coco_captions(results: Results, word: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_rows(results, word), 1):
        yield {"image_id": number, "caption": row[word]["caption"], "score": row[word]["score"]}


def label_studio(results: Results, out: Folder) -> list[str]:
    """Write `tasks.json`, in which each picture's answers are predictions, and `config.xml`, the labelling interface.

    A local picture is addressed as Label Studio's local storage does, below the root of the file system.
    """
    written: list[str] = []
    kinds = results.kinds
    labels: dict[str, set[str]] = {word: set() for word in kinds}

    def tasks() -> Iterator[dict[str, Any]]:
        for row in _rows(results, *kinds):
            regions: list[dict[str, Any]] = []
            answered = ((word, kind) for word, kind in kinds.items() if row[word])
            for word, kind in answered:
                for control, value, score in _SAID[kind](row[word], row):
                    name = _plain(word)
                    place = {"from_name": name, "to_name": "image", "type": control, "value": value}
                    size = {"original_width": row["width"], "original_height": row["height"], "image_rotation": 0}
                    regions.append({"id": f"{name}-{len(regions)}", **place, "score": score, **size})
                    labels[word].update(value.get(control, ()))
            data = {"image": _label_studio_address(row["uri"]), "id": row["id"], "uri": row["uri"]}
            yield {"data": data, "predictions": [{"model_version": _models(results), "result": regions}]}

    with _open(out, "tasks.json", written) as file:
        _write_list(file, tasks())
    with _open(out, "config.xml", written) as file:
        file.write(_interface(results, labels))
    return written


def _said_labels(found: Mapping[str, Any], row: Row) -> Iterator[tuple[str, dict[str, Any], float]]:
    for best in found["labels"][:1]:
        yield "choices", {"choices": [best["label"]]}, best["score"]


def _said_caption(found: Mapping[str, Any], row: Row) -> Iterator[tuple[str, dict[str, Any], float]]:
    yield "textarea", {"text": [found["caption"]]}, found["score"]


def _said_objects(found: Mapping[str, Any], row: Row) -> Iterator[tuple[str, dict[str, Any], float]]:
    for one in found["objects"]:
        x, y, width, height = (round(100 * part, 4) for part in _corner_and_size(one["box"], row))
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [one["label"]]}
        yield "rectanglelabels", value, one["score"]


_SAID: Mapping[str, Callable[[Mapping[str, Any], Row], Iterator[tuple[str, dict[str, Any], float]]]] = {
    "labels": _said_labels,
    "caption": _said_caption,
    "objects": _said_objects,
}


def _interface(results: Results, labels: Mapping[str, Iterable[str]]) -> str:
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image", zoom="true")
    for word, kind in results.kinds.items():
        SubElement(view, "Header", value=word)
        place = {"name": _plain(word), "toName": "image"}
        if kind == "caption":
            SubElement(view, "TextArea", place, editable="true", maxSubmissions="1")
            continue
        one, of = ("Choice", "Choices") if kind == "labels" else ("Label", "RectangleLabels")
        control = SubElement(view, of, place)
        for label in sorted(labels[word]):
            SubElement(control, one, value=label)
    indent(view)
    return tostring(view, encoding="unicode") + "\n"


def _label_studio_address(uri: str) -> str:
    if is_remote(uri):
        return uri
    return f"/data/local-files/?d={quote(str(Path(uri).absolute()).lstrip('/'))}"


def fiftyone(results: Results, out: Folder) -> list[str]:
    """Write a folder a feature: objects as a FiftyOneImageDetectionDataset, else a FiftyOneImageClassificationDataset.

    The label of a picture is its best one, or its sentence. `data.json` names the pictures where they lie.
    """
    written = []
    for word, kind in results.kinds.items():
        place = made(out.path / _plain(word))
        names: list[str] = []
        with _open(place, "data.json", names) as file:
            rows = enumerate(_rows(results, word))
            _write_map(file, ((_key(number), _path(row["uri"])) for number, row in rows))
        with _open(place, "labels.json", names) as file:
            file.write('{"classes": null, "labels": ')
            rows = enumerate(_rows(results, word))
            _write_map(file, ((_key(number), _fiftyone_label(row[word], kind, row)) for number, row in rows))
            file.write("}\n")
        written += [f"{place.path.name}/{name}" for name in names]
    return written


def _fiftyone_label(found: Mapping[str, Any], kind: str, row: Row) -> Any:
    if kind == "caption":
        return {"label": found["caption"], "confidence": found["score"]}
    if kind == "labels":
        return next(({"label": one["label"], "confidence": one["score"]} for one in found["labels"]), None)
    return [
        {
            "label": one["label"],
            "bounding_box": [round(part, 6) for part in _corner_and_size(one["box"], row)],
            "confidence": one["score"],
        }
        for one in found["objects"]
    ]


TOOLS: Mapping[str, Callable[[Results, Folder], list[str]]] = {
    "coco": coco,
    "label-studio": label_studio,
    "fiftyone": fiftyone,
}


def _rows(results: Results, *words: str) -> Iterator[Row]:
    return (
        row for row in results.rows([*BESIDE, *words]) if row["status"] == "ok" and any(row[word] for word in words)
    )


def _corner_and_size(box: tuple[float, float, float, float], row: Row) -> tuple[float, float, float, float]:
    """Return a box's left, top, width and height as shares of the picture's sides."""
    x1, y1, x2, y2 = box
    width, height = row["width"], row["height"]
    return x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height


def _models(results: Results) -> str:
    models = results.manifest.get("models", {})
    return " ".join(sorted({f"{one['name']}:{one['version']}" for one in models.values()}))


def _plain(word: str) -> str:
    """Return a feature's word as a file or a control may be called."""
    return word.replace(":", "-").replace("@", "-").replace("/", "-")


def _key(number: int) -> str:
    return f"{number:09}"


def _path(uri: str) -> str:
    return uri if is_remote(uri) else str(Path(uri).absolute())


@contextmanager
def _open(out: Folder, name: str, written: list[str]) -> Iterator[TextIO]:
    """A file to write, which lies there whole once the context ends well; then its name is in `written`."""
    with out.bring(name) as path, path.open("w") as file:
        yield file
    written.append(name)


def _write_list(file: TextIO, values: Iterable[Any]) -> None:
    file.write("[")
    for index, value in enumerate(values):
        file.write(("," if index else "") + "\n" + json.dumps(value))
    file.write("]")


def _write_map(file: TextIO, values: Iterable[tuple[str, Any]]) -> None:
    file.write("{")
    for index, (key, value) in enumerate(values):
        file.write(("," if index else "") + f"\n{json.dumps(key)}: {json.dumps(value)}")
    file.write("}")
