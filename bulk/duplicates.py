"""Copies in a collection: the same bytes, and pictures whose perceptual hashes are near."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bulk.groups import Results
from vision.insights.pictures import NEAR

MOST = 50_000
"""Different hashes that are compared, each with each: more than these are looked at as a sample."""
GROUPS, MEMBERS = 6, 4
"""That are shown."""
BLOCK = 64


class Copy(NamedTuple):
    id: str
    uri: str


@dataclass(frozen=True)
class Duplicates:
    """copies: pictures whose bytes are those of an earlier one. near: different files that look like another one.

    compared: of how many hashes near ones were looked for, `hashes` in all. groups: the largest, copies first.
    """

    copies: int
    copied: Sequence[tuple[int, Sequence[Copy]]]
    near: int
    alike: Sequence[tuple[int, Sequence[Copy]]]
    compared: int
    hashes: int

    def counts(self) -> dict[str, int]:
        return {"same bytes as another": self.copies, "looks like another": self.near}


def duplicates(results: Results, rows: duckdb.DuckDBPyConnection) -> Duplicates:
    """Find copies. Files look alike where their hashes differ in at most NEAR of 64 bits, or over others between."""
    [(copies,)] = results.ask(rows, "SELECT count(sha256) - count(DISTINCT sha256) FROM rows")
    copied = results.ask(
        rows,
        f"SELECT count(*), list({{'id': id, 'uri': uri}} ORDER BY id)[:{MEMBERS}] FROM rows WHERE sha256 IS NOT NULL "  # noqa: S608
        f"GROUP BY sha256 HAVING count(*) > 1 ORDER BY 1 DESC, min(id) LIMIT {GROUPS}",
    )
    rows.execute(
        "CREATE OR REPLACE TEMP TABLE hashes AS "
        "SELECT quality.hash AS hash, count(DISTINCT coalesce(sha256, id)) AS files "
        "FROM rows WHERE quality IS NOT NULL GROUP BY 1"
    )
    [(total,)] = results.ask(rows, "SELECT count(*) FROM hashes")
    some = results.ask(rows, f"SELECT hash, files FROM hashes ORDER BY hash(hash), hash LIMIT {MOST}")  # noqa: S608
    names, files = [hash for hash, _ in some], np.array([count for _, count in some], np.int64)
    group = near_groups(np.array([int(name, 16) for name in names], np.uint64))
    sizes = np.bincount(group, files, minlength=1).astype(np.int64)
    largest = [int(one) for one in np.argsort(-sizes, kind="stable")[:GROUPS] if sizes[one] > 1]
    alike = []
    for one in largest:
        members = [names[at] for at in np.flatnonzero(group == one)]
        query = (
            "SELECT min(id), arg_min(uri, id) FROM rows WHERE list_contains(?, quality.hash) "
            "GROUP BY coalesce(sha256, id) ORDER BY 1 LIMIT ?"
        )
        found = rows.execute(query, [members, MEMBERS]).fetchall()
        alike.append((int(sizes[one]), [Copy(*each) for each in found]))
    return Duplicates(
        copies,
        [(count, [Copy(one["id"], one["uri"]) for one in members]) for count, members in copied],
        int(sizes[sizes > 1].sum()),
        alike,
        len(some),
        total,
    )


def near_groups(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number the groups of hashes (n,) in which each is near to another."""
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None]
        one, other = np.nonzero(np.bitwise_count(block ^ hashes[None, start:]) <= NEAR)
        apart = one < other
        first.append(one[apart] + start)
        second.append(other[apart] + start)
    pairs = (np.concatenate(first), np.concatenate(second))
    joined = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(hashes), len(hashes)))
    return np.asarray(connected_components(joined, directed=False)[1], np.int64)
