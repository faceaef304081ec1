"""What is measured: a model's weights, as the peers and this service hold them."""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel


class Case(BaseModel):
    """One model. `original` is the folder or .pt that it came from, `saved` its folder in our store."""

    name: str
    task: str
    original: Path
    saved: Path
    tag: str
    options: dict[str, int] = {}
    """Options of the task that differ from the defaults, the same for all."""

    def environment(self, *, tuned: bool = False) -> dict[str, str]:
        """What a server or the bare loop is told."""
        return {"BENCH_CASE": self.model_dump_json(), "BENCH_TUNED": str(int(tuned))}

    @classmethod
    def from_environment(cls) -> Self:
        return cls.model_validate_json(os.environ["BENCH_CASE"])


def is_tuned() -> bool:
    return os.environ["BENCH_TUNED"] == "1"


Answer = dict[str, Any]
"""The part of a result that depends on the picture: `labels`, `caption` or `objects`, as in vision/core/schemas.py."""
