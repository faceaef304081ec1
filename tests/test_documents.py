"""Tables that repeat the code say what the code says."""

import os
import re

import pytest

from testkit.servers import ROOT
from vision.api.endpoints import ENDPOINTS
from vision.core.errors import KINDS, RETRY_AFTER, Code
from vision.insights.rules import SHIPPED
from vision.settings import PREFIX, SETTINGS, Settings

README = (ROOT / "README.md").read_text()
ERRORS = ROOT / "docs" / "errors.md"


def rows(table: str) -> list[list[str]]:
    """The cells of each row of the README's table that has this heading."""
    [text] = re.findall(rf"^\| {table} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_readme_tells_every_setting_with_its_default() -> None:
    told: dict[str, str] = {}
    for variables, default, _ in rows("variable"):
        names = re.findall(r"`(\w+)`", variables)
        values = re.split(r", (?=\d)", default) if len(names) > 1 and default[0].isdigit() else [default] * len(names)
        told |= dict(zip(names, values, strict=True))
    assert set(told) == {PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if not name.endswith("_model"):
            assert told[PREFIX + name.upper()] in shown(field.default), name


def shown(value: object) -> set[str]:
    """How a default may stand in the table."""
    if value in (None, {}, []):
        return {"none"}
    if isinstance(value, bool):
        return {f"`{str(value).lower()}`"}
    if isinstance(value, int | float):
        return {f"{value:,g}", f"{value:,}", f"{value / 1e6:g} M", f"{value / 1e6:g} MB", f"{value / 1e9:g} G"}
    if isinstance(value, list):
        return {"all seven"} if value == SETTINGS.formats else set()
    if value == str(SHIPPED):
        return {f"`{SHIPPED.relative_to(ROOT)}`"}
    return {f"`{value}`"}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_the_readme_tells_every_endpoint_with_its_options(path: str) -> None:
    [options] = [options for endpoint, options, _ in rows("endpoint") if endpoint == f"`POST {path}`"]
    endpoint = ENDPOINTS[path]
    if endpoint.beside:
        assert f"`min_score` ({endpoint.options.model_fields['min_score'].default:g})" in options
        return
    if endpoint.task is None:
        assert all(f"`{name}`" in options for name in endpoint.options.model_fields["features"].default)
        return
    for name, field in endpoint.task.options.model_fields.items():
        default = "" if field.default is None else rf" \({field.default:g}\)"
        assert re.search(rf"`{name}`{default}", options), name


def test_the_table_of_errors_is_the_code_s() -> None:
    """UPDATE_SNAPSHOT=1 writes it again."""
    lines = [
        f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {RETRY_AFTER.get(kind.status, '')} |"
        for code, kind in KINDS.items()
    ]
    text = ERRORS.read_text()
    head = text[: text.index("|---")]
    made = head + "|---|---|---|---|\n" + "".join(f"{line}\n".replace("|  |", "| |") for line in lines)
    if os.environ.get("UPDATE_SNAPSHOT"):
        ERRORS.write_text(made)
    assert made == ERRORS.read_text()
    assert set(KINDS) == set(Code)
