"""Pictures and results at addresses: an S3 server on loopback, and plain HTTP."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from bulk import UserError, addresses, lists, rows
from bulk.listing import Columns, listing
from bulk.places import place
from testkit.photographs import encoded
from testkit.servers import OFFLINE, ROOT

pytestmark = pytest.mark.served


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A server with a bucket `photos`: pictures in a folder and in a tar."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("photos")
        with io.BytesIO() as out, tarfile.open(fileobj=out, mode="w") as tar:
            for index in range(6):
                data = encoded(Image.new("RGB", (40, 30), (index * 40, 0, 0)))
                system.pipe_file(f"photos/all/{index // 3}/{index}.png", data)
                info = tarfile.TarInfo(f"{index}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.close()
            system.pipe_file("photos/all.tar", out.getvalue())
        yield system
    server.stop()


@pytest.mark.parametrize("photos", ["s3://photos/all", "s3://photos/all.tar"])
def test_a_bucket_is_listed_and_read_as_a_folder_is(s3: Any, photos: str) -> None:
    found = list(listing(photos, Columns()).entries)
    assert len(found) == 6
    assert addresses.read(found[4]) == s3.cat_file("photos/all/1/4.png")
    shown = {"s3://photos/all": "s3://photos/all/1/4.png", "s3://photos/all.tar": "tar://4.png::s3://photos/all.tar"}
    assert found[4].uri == shown[photos]


def test_a_table_at_an_address_names_pictures_beside_it(s3: Any) -> None:
    s3.pipe_file("photos/list.csv", b"path,likes\nall/0/1.png,7\ns3://photos/all/0/2.png,8\n")
    found = list(listing("s3://photos/list.csv", Columns()).entries)
    assert [one.uri for one in found] == ["s3://photos/all/0/1.png", "s3://photos/all/0/2.png"]
    assert addresses.read(found[0]) == s3.cat_file("photos/all/0/1.png")


@pytest.mark.parametrize("name", ["s3://photos/nothing.csv", "s3://nobody/list.csv", "nosuch://photos/list.csv"])
def test_what_is_not_there_is_told_in_a_line(s3: Any, name: str) -> None:
    with pytest.raises(UserError, match="cannot be"):
        list(listing(name, Columns()).entries)


def test_results_lie_whole_at_an_address_and_a_run_goes_on_there(s3: Any, home: Path, tmp_path: Path) -> None:
    def score(*more: str) -> str:
        command = [sys.executable, "-m", "bulk", "score", "s3://photos/all", "--out", "s3://photos/results", *more]
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "XDG_CACHE_HOME": str(tmp_path)}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    options = ("--features", "classification", "--shard-rows", "4")
    assert "6 pictures" in score(*options)
    out = place("s3://photos/results")
    assert out.names() == [lists.NAME, "manifest.json", "part-00000.parquet", "part-00001.parquet"]
    with s3.open("photos/results/part-00001.parquet", "rb") as file:
        before = pq.read_table(file).to_pylist()
    assert [row["uri"] for row in before] == ["s3://photos/all/1/4.png", "s3://photos/all/1/5.png"]
    s3.rm("photos/results/part-00001.parquet")
    assert "2 pictures" in score(*options)
    format = rows.Parquet(pq.read_schema(out.read("part-00000.parquet")))
    again = rows.read(out, 1, format, lists.List(out).ids(1), None)
    assert [row | {"ms": 0} for row in again] == [row | {"ms": 0} for row in before]
