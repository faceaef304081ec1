"""Which way of running a model is kept, of those that were measured."""

from pathlib import Path

import pytest

from train_and_save.graphs.streams import EAGER, OPENVINO, OPENVINO_STREAMS, keep_fastest


@pytest.mark.parametrize(
    ("eager", "graph", "streams", "kept"),
    [
        (10, 12, 11, "graph"),
        (10, 12, 13, "streams"),
        (10, 12, 12.5, "graph"),  # it would lie in memory twice for little
        (12, 11, 10, "graph"),  # and PyTorch in it as a whole
        (13, 11, 10, None),
        (13, 10, 12, "streams"),
    ],
)
def test_the_fastest_is_kept_and_of_near_ones_the_lighter(
    eager: float, graph: float, streams: float, kept: str | None, tmp_path: Path
) -> None:
    for name in ("graph", "streams", "model"):
        (tmp_path / name).mkdir()
    for name in ("graph", "streams"):
        (tmp_path / name / "openvino.xml").write_text(name)
    keep_fastest(
        {EAGER: eager, OPENVINO: graph, OPENVINO_STREAMS: streams},
        *(tmp_path / name for name in ("graph", "streams", "model")),
    )
    found = [file.read_text() for file in (tmp_path / "model").iterdir()]
    assert found == ([kept] if kept else [])
