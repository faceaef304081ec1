"""The door's refusals leave nothing behind."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from vision.api.door import Door
from vision.core.errors import Code, VisionError
from vision.settings import SETTINGS


class Body:
    """What a request holds."""


def test_a_shed_request_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr("vision.api.door.SETTINGS", SETTINGS.model_copy(update={"max_in_flight": 0}))
    entrance = Door(nothing)

    def shed(enter: Callable[[], None]) -> weakref.ref[Body]:
        body = Body()
        with pytest.raises(VisionError) as raised:
            enter()
        assert raised.value.code is Code.OVERLOADED
        return weakref.ref(body)

    kept = [shed(enter) for enter in (entrance.check_room, entrance.enter) for _ in range(2)]
    gc.collect()
    assert [body() for body in kept] == [None] * 4
