"""What a collection holds, and the list that is made of it: in constant memory, each id once."""

import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import UserError, addresses, lists
from bulk.addresses import Entry
from bulk.listing import Columns, Listing, listing
from bulk.places import Folder


def entries(photos: Path | str, **columns: str) -> list[Entry]:
    return list(listing(str(photos), Columns(**columns)).entries)


def listed(tmp_path: Path, text: str, **columns: str) -> list[Entry]:
    table = tmp_path / "photos.csv"
    table.write_text(text)
    return entries(table, **columns)


def test_a_folder_tree_is_listed_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "A.PNG", "x/2.webp", "x/y/1.heic", ".hidden.jpg", ".git/3.jpg", "notes.txt", "raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = listing(str(tmp_path), Columns())
    rows = [(one.id, one.group, one.uri) for one in found.entries]
    assert rows == [
        ("A.PNG", None, str(tmp_path / "A.PNG")),
        ("b.jpg", None, str(tmp_path / "b.jpg")),
        ("raw", None, str(tmp_path / "raw")),
        ("x/2.webp", "x", str(tmp_path / "x/2.webp")),
        ("x/y/1.heic", "x/y", str(tmp_path / "x/y/1.heic")),
    ]
    assert found.skipped == {".txt": 1}


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_a_table_names_pictures_ids_and_groups_and_carries_the_rest(tmp_path: Path, comma: str) -> None:
    text = "ID,Path,group,likes\n7,a.jpg,anna,12\n8,sub/b.jpg,,\n".replace(",", comma)
    first, second = listed(tmp_path, text)
    assert first == Entry("7", "anna", str(tmp_path / "a.jpg"), carried={"likes": "12"})
    assert second == Entry("8", None, str(tmp_path / "sub/b.jpg"), carried={"likes": None})


def test_without_an_id_the_rows_number_is_the_id(tmp_path: Path) -> None:
    paths = tmp_path / "photos.txt"
    paths.write_text("\ufeffa.jpg\r\n\r\n/b, c.jpg\r\n")
    assert [(one.id, one.address) for one in entries(paths)] == [("0", str(tmp_path / "a.jpg")), ("1", "/b, c.jpg")]


def test_a_parquet_table_carries_typed_columns(tmp_path: Path) -> None:
    table = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"where": ["a.jpg"], "likes": [12], "tags": [["x", "y"]]}), table)
    found = listing(str(table), Columns(path="where"))
    assert [one.carried for one in found.entries] == [{"likes": 12, "tags": ["x", "y"]}]
    assert found.carried.field("likes").type == pa.int64()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column path, uri"),
        ("path,path\na,b\n", "each once"),
        ("path,x\na.jpg\n", "row 0 has 1 values, the header 2"),
        ("path,id\na.jpg,1\n,2\n", "row 1 has no path"),
        ("path,id\na.jpg,\n", "row 0 has no id"),
        ("", "no column"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        listed(tmp_path, text)


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'nope'; it has path"):
        listed(tmp_path, "path\na.jpg\n", id="nope")


@pytest.mark.parametrize("name", ["bad.parquet", "bad.csv", "bad.tar"])
def test_what_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00nothing of the kind\x80")
    with pytest.raises(UserError, match=name):
        entries(tmp_path / name)


def test_an_id_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("path,id\n" + "".join(f"{index}.jpg,{index % 997}\n" for index in range(998)))
    with pytest.raises(UserError, match="The id '0' is there twice"):
        lists.write(tmp_path / "list", listing(str(table), Columns()), 100)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError, match=r"no pictures; skipped: 1 \.md"):
        lists.write(tmp_path / "list", listing(str(tmp_path), Columns()), 100)


def webdataset(path: Path) -> dict[str, bytes]:
    members = {"001.jpg": b"one", "001.txt": b"a dog", "001.cls": b"3", "dir/002.jpg": b"two!", "dir/002.json": b"{}"}
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return members


def test_a_tars_pictures_are_read_where_they_lie_with_their_texts(tmp_path: Path) -> None:
    members = webdataset(tmp_path / "a.tar")
    for photos, name in ((tmp_path / "a.tar", "a.tar"), (tmp_path, "a.tar")):
        first, second = entries(photos)
        assert (first.id, first.carried) == (f"{name}/001.jpg", {"txt": "a dog", "cls": "3"})
        assert (second.id, second.carried) == (f"{name}/dir/002.jpg", {"json": "{}"})
        assert second.uri == f"tar://dir/002.jpg::{tmp_path}/a.tar"
        assert [addresses.read(first), addresses.read(second)] == [members["001.jpg"], members["dir/002.jpg"]]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:secret@host/a.jpg?sig=1#x", "https://host/a.jpg"),
        ("s3://key:secret@bucket/a#1.jpg", "s3://bucket/a#1.jpg"),
        ("tar://a.jpg::https://u:p@host/x.tar?token=1", "tar://a.jpg::https://host/x.tar"),
        ("/local/what?.jpg", "/local/what?.jpg"),
    ],
)
def test_no_row_tells_credentials(address: str, shown: str) -> None:
    assert Entry("1", None, address).uri == shown


def test_a_list_is_read_a_shard_at_a_time(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("path,likes\n" + "".join(f"{index}.jpg,{index}\n" for index in range(25)))
    assert lists.write(tmp_path / lists.NAME, listing(str(table), Columns()), 10) == 25
    found = lists.List(Folder(tmp_path))
    assert (found.shards, found.entries) == (3, 25)
    assert [entry for index in range(3) for entry in found.shard(index)] == entries(table)
    assert found.ids(2) == ["20", "21", "22", "23", "24"]


@pytest.mark.served
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """benchmarks/bulk.py has the figures of ten million."""

    def peak(count: int) -> int:
        def some() -> Iterator[Entry]:
            return (Entry(f"{index:09}", None, f"/photos/{index:09}.jpg") for index in range(count))

        tracemalloc.start()
        lists.write(tmp_path / lists.NAME, Listing(some(), pa.schema([]), ids_given=True), 1000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2_000)
    assert peak(60_000) < 1.5 * peak(6_000)
