"""Insights of a scored collection by group: equal to those of each profile alone, whatever the rows' order."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import UserError, insights
from bulk.groups import Results
from testkit import results
from testkit.results import row
from vision.insights import rules
from vision.insights.profile import insights as together

pytestmark = pytest.mark.served

RULES = rules.load(rules.SHIPPED)


def profiles(count: int) -> list[dict[str, Any]]:
    rows = [
        row(f"{group}-{index}", f"g{group}", {"beach": 0.9}, {"person": 0.8, "dog": 0.5} if index else {"person": 0.7})
        for group in range(count)
        for index in range(3)
    ]
    return [*rows, results.failed("broken", "g1"), row("lone", None)]


def test_each_group_gets_what_its_pictures_alone_would(tmp_path: Path) -> None:
    rows = profiles(40)
    random.Random(28).shuffle(rows)
    found = Results(results.write(tmp_path / "results", rows, shard=17), "group")
    assert found.count() == (122, 121)
    out = tmp_path / "insights.parquet"
    assert insights.write(found, RULES, 0.3, out) == 40
    written = pq.read_table(out).to_pylist()
    assert [one["group"] for one in written] == sorted(f"g{group}" for group in range(40))
    by_name = {one["group"]: one for one in written}
    for name, shown in found.groups():
        alone = together([one.picture for one in shown], found.rules(RULES)).model_dump(mode="json")
        assert by_name[name] == {"group": name, "ids": [one.id for one in shown], **alone}
    assert by_name["g1"]["answered"] == 3
    assert by_name["g1"]["failed"][0]["error"]["code"] == "undecodable_image"
    assert [tip["id"] for tip in by_name["g0"]["tips"]] == []


def test_pictures_are_grouped_by_a_carried_column(tmp_path: Path) -> None:
    found = Results(results.write(tmp_path, profiles(3)), "town")
    [(name, shown)] = found.groups()
    assert (name, len(shown)) == ("Bonn", 11)


def test_what_cannot_be_grouped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        Results(tmp_path / "none", "group")
    with pytest.raises(UserError, match=r"holds no part-\*\.parquet"):
        Results(tmp_path, "group")
    folder = results.write(tmp_path / "results", profiles(2))
    with pytest.raises(UserError, match="no column 'street' to group by; it has group, town"):
        Results(folder, "street")
    (folder / "part-00000.parquet").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        Results(folder, "group")


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    folder = results.write(tmp_path, profiles(40), shard=20)
    part = folder / "part-00002.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:500] + bytes(byte ^ 90 for byte in data[500:1500]) + data[1500:])
    with pytest.raises(UserError, match=r"is damaged: .*part-00002.parquet is damaged .* score again"):
        list(Results(folder, "group").groups())
    part.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"is damaged: .*part-00002.parquet"):
        Results(folder, "group").count()


def test_a_signal_that_lacks_is_told_with_the_command_that_adds_it(tmp_path: Path) -> None:
    schema = pa.schema([field for field in results.SCHEMA if field.name != "detection"])
    found = Results(results.write(tmp_path, profiles(2), schema), "group")
    command = "python -m bulk score photos --features classification detection --out"
    with pytest.raises(UserError, match=f"lacks detection, .*{command}"):
        found.rules(RULES)


@pytest.mark.parametrize("options", [{"min_score": 0.5}, {"min_score": 0.25, "labels": ["dog"]}])
def test_rows_that_hold_only_some_of_a_signal_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = results.write(tmp_path, profiles(2))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["asked"]["features"]["detection"] = {"options": options}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="some of detection only"):
        Results(folder, "group").rules(RULES)


def test_a_group_that_is_no_profile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulk.groups.MOST", 3)
    with pytest.raises(UserError, match="'g1' has more than 3 pictures"):
        list(Results(results.write(tmp_path, profiles(2)), "group").groups())


def test_memory_does_not_grow_with_the_groups(tmp_path: Path) -> None:
    most = []
    for count in (1_500, 6_000):
        found = Results(results.write(tmp_path / str(count), profiles(count)), "group")
        tracemalloc.start()
        pools = pa.total_allocated_bytes()
        assert insights.write(found, RULES, 0.3, tmp_path / "out.parquet") == count
        most.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - pools)
        tracemalloc.stop()
    assert most[1] < 2 * most[0]  # of four times as many
