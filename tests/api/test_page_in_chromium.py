"""The page in a real browser: what a person does with it, and what others may try."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from testkit.photographs import PHOTOS, encoded
from testkit.programs import need
from testkit.servers import ROOT, Served, another, served

register_heif_opener()
driver = pytest.importorskip("playwright.sync_api")

KEY = "key-of-a-person-81bd"
PERSON = str(ROOT / "examples" / "photographer.jpg")

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need("chromium", "chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def pages(browser: Any, url: str, expected: str = r"^$") -> Iterator[Open]:
    """Open pages that may ask nobody but the service, and complain of nothing but what is expected."""
    contexts, asked, complaints = [], [], []

    def open_page(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert not [one for one in asked if not one.startswith((f"{url}/", f"blob:{url}/"))]
    assert not [one for one in complaints if not re.search(expected, one)]


@pytest.fixture
def open_page(browser: Any, server: str) -> Iterator[Open]:
    with pages(browser, server, expected=r"status of (415|422)") as opened:
        yield opened


def done(page: Any, pictures: int) -> None:
    page.locator("#progress", has_text=re.compile(rf"^{pictures} picture")).wait_for(state="attached")


def visible_boxes(page: Any) -> int:
    count: int = page.locator(".box:visible").count()
    return count


def test_from_an_example_to_the_code_that_did_it(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_alt_text("Example: a man behind a camera").click()
    page.locator(".box:visible", has_text="person").wait_for()
    assert page.locator("#caption .sentence").inner_text()
    assert page.locator("#classes li").first.inner_text().startswith("tripod")
    assert page.locator("#object-list li:visible").count() == visible_boxes(page) == 1

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#threshold").fill("25")
    assert visible_boxes(page) > 3
    page.locator("#threshold").fill("95")
    assert visible_boxes(page) == 0
    page.locator("#threshold").fill("40")
    page.locator("#object-list button:visible").hover()
    assert page.locator(".box.lit").count() == 1
    page.locator(".box:visible").hover()
    assert page.locator("#object-list .lit").count() == 1
    assert not asked

    page.get_by_role("tab", name="curl").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("curl http://127.0.0.1")
    page.get_by_role("tab", name="JSON").click()
    shown = json.loads(page.locator("#code").inner_text())
    assert shown["results"][0]["classification"]["labels"][0]["label"] == "tripod"
    page.get_by_role("button", name="Start over").click()
    assert page.locator("#work").is_hidden()


def test_boxes_lie_where_the_objects_are(open_page: Open) -> None:
    """Of a photograph that the camera held upright: its EXIF says so, and its pixels lie on their side."""
    turned = Image.open(PHOTOS["bus"]).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    page = open_page()
    page.set_input_files(
        "#pick", {"name": "turned.jpg", "mimeType": "image/jpeg", "buffer": encoded(turned, "JPEG", exif=exif)}
    )
    page.locator(".box:visible", has_text="bus").wait_for()
    picture, box = page.locator("#frame img").bounding_box(), page.locator(".box", has_text="bus").first.bounding_box()
    assert picture["height"] > picture["width"]
    found = [(box["x"] - picture["x"]) / picture["width"], (box["y"] - picture["y"]) / picture["height"]]
    assert found == pytest.approx([0.037, 0.2], abs=0.03)
    assert box["width"] / picture["width"] == pytest.approx(0.957, abs=0.03)


def test_several_are_a_profile(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="all four, as a profile").click()
    done(page, 4)
    profile = page.locator("#profile")
    profile.get_by_text("person", exact=True).wait_for()
    assert "2 of 4" in profile.inner_text()
    page.locator("#tiles button").nth(2).click()
    assert page.locator("#stage-title").inner_text() == "cat.jpg"


def test_tips_name_the_pictures_that_they_are_about(open_page: Open) -> None:
    page = open_page()
    page.set_input_files("#pick", [PERSON, PERSON, str(ROOT / "examples" / "coffee.jpg")])
    tip = page.locator(".tip")
    tip.get_by_text("look nearly the same").wait_for()
    tip.get_by_role("button", name="2. photographer.jpg").click()
    assert page.locator("#tiles button").nth(1).get_attribute("aria-current") == "true"


def test_which_model_is_asked_shows_in_the_code(open_page: Open) -> None:
    page = open_page()
    page.set_input_files("#pick", PERSON)
    page.locator(".box:visible").wait_for()
    page.get_by_text("Models", exact=True).click()
    page.get_by_label("captioning").select_option("not asked")
    page.locator("#caption").wait_for(state="hidden")
    page.get_by_role("tab", name="Python").click()
    page.locator("#code", has_text='"features":["classification","detection"]').wait_for()


def test_heic_is_shown_as_the_service_draws_it(open_page: Open) -> None:
    page = open_page()
    heic = encoded(Image.open(PHOTOS["bus"]), "HEIF")
    page.set_input_files("#pick", {"name": "phone.heic", "mimeType": "image/heic", "buffer": heic})
    page.get_by_text("here is the service's own drawing").wait_for()
    picture = page.locator("#frame img")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 810
    page.get_by_role("tab", name="JSON").click()
    assert "characters of base64" in page.locator("#code").inner_text()


def test_what_fails_is_said_in_words(open_page: Open) -> None:
    page = open_page()
    page.set_input_files(
        "#pick",
        [
            {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"},
            {"name": "cut.jpg", "mimeType": "image/jpeg", "buffer": Path(PERSON).read_bytes()[:300]},
            {"name": "fine.jpg", "mimeType": "image/jpeg", "buffer": Path(PERSON).read_bytes()},
        ],
    )
    page.get_by_text("notes.txt: no picture").wait_for()
    page.locator("#progress", has_text="2 pictures, 1 failed").wait_for()
    assert "send it again in full" in page.locator("#failure").inner_text()
    page.locator("#tiles button").nth(1).click()
    page.locator(".box:visible").wait_for()
    assert page.locator("#failure").is_hidden()


HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    "a\"'`;$(touch x)&<b>.jpg",
    "../../etc/passwd.jpg",
    "\u202egpj.exe.jpg",
    "x" * 240 + ".jpg",
]


def test_names_and_labels_are_only_ever_text(open_page: Open) -> None:
    page = open_page()
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    found = {"label": evil, "score": 0.9, "box": [0, 0, 9, 9], "box_normalized": [0.1, 0.1, 0.5, 0.5]}
    model = {"name": evil, "version": evil, "source": evil}
    result = {
        "size": {"width": 9, "height": 9},
        "classification": {"labels": [{"label": evil, "score": 0.9}], "model": model},
        "captioning": {"caption": evil, "model": model},
        "detection": {"objects": [found], "model": model},
        "reading": {"text": evil, "model": model},
        "ms": {"total": 1},
    }
    page.route("**/analyze", lambda route: route.fulfill(json={"results": [result]}))
    scripts, pictures = page.locator("script").count(), page.locator("img").count()
    data = Path(PERSON).read_bytes()
    page.set_input_files("#pick", [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name in HOSTILE])
    done(page, len(HOSTILE))
    for name, tile in zip(HOSTILE, page.locator("#tiles button").all(), strict=True):
        tile.click()
        page.locator("#frame img").wait_for()
        assert page.locator("#stage-title").text_content() == name
        assert page.locator("#caption .sentence").text_content() == evil
        assert json.loads(page.locator("#others pre").inner_text()) == {"text": evil}
        for tab in ("JSON", "curl", "Python", "JavaScript"):
            page.get_by_role("tab", name=tab, exact=True).click()
        assert page.locator("script").count() == scripts
        assert page.locator("img").count() == pictures + 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_code_for_a_hostile_name_sends_that_file(browser: Any, server: str, tmp_path: Path) -> None:
    """The shown curl and Python are run where the files are: no part of a name is a command."""
    need("curl", "curl")
    for name in HOSTILE[1], "it's 50%;type=x,y.jpg":
        (tmp_path / name).write_bytes(Path(PERSON).read_bytes())
        with pages(browser, server) as opened:
            page = opened()
            page.set_input_files("#pick", str(tmp_path / name))
            page.locator(".box:visible").wait_for()
            for tab, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
                page.get_by_role("tab", name=tab, exact=True).click()
                code = page.locator("#code").inner_text()
                run = subprocess.run([*program, code], cwd=tmp_path, capture_output=True, text=True)
                assert run.returncode == 0, code + run.stderr
                assert "tripod" in run.stdout
    assert not (tmp_path / "x").exists()


def test_200_pictures_dropped_at_once_are_all_answered(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Models", exact=True).click()
    for task in ("captioning", "detection"):
        page.get_by_label(task).select_option("not asked")
    generator = np.random.default_rng(28)
    small = np.asarray(Image.open(PERSON).convert("RGB").resize((96, 96))).astype(int)
    pictures = [
        encoded(
            Image.fromarray((small + generator.integers(-20, 20, small.shape)).clip(0, 255).astype(np.uint8)), "JPEG"
        )
        for _ in range(200)
    ]
    held = page.evaluate_handle(
        """(pictures) => {
          const data = new DataTransfer();
          for (const [index, bytes] of pictures.entries())
            data.items.add(new File([Uint8Array.from(bytes)], `${index}.jpg`, { type: "image/jpeg" }));
          return data;
        }""",
        [list(one) for one in pictures],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": held})
    done(page, 200)
    assert page.locator("#progress").inner_text() == "200 pictures"
    page.locator("#tiles button").nth(199).click()
    page.locator("#classes li").first.wait_for()
    assert page.locator("#stage-title").inner_text() == "199.jpg"


def test_a_service_that_comes_back_is_asked_again(browser: Any, server: str) -> None:
    with pages(browser, server, expected="ERR_INTERNET_DISCONNECTED") as opened:
        page = opened()
        page.locator("#state[data-state=ready]").wait_for()
        page.context.set_offline(True)
        page.set_input_files("#pick", PERSON)
        page.locator("#state[data-state=gone]").wait_for()
        page.get_by_text("The service does not answer. As soon as it does").wait_for()
        page.context.set_offline(False)
        page.locator(".box:visible").wait_for()
        assert page.locator("#state").inner_text() == "ready"


def test_a_photo_that_comes_while_the_service_is_away_is_told_so_and_asked_later(browser: Any, server: str) -> None:
    with pages(browser, server, expected="ERR_FAILED") as opened:
        page = opened()
        page.route("**/docs.json", lambda route: route.abort())
        page.reload()
        page.locator("#state[data-state=gone]").wait_for()
        page.set_input_files("#pick", PERSON)
        page.get_by_text("The service does not answer. As soon as it does").wait_for()
        page.unroute("**/docs.json")
        page.locator(".box:visible").wait_for()
        assert page.locator("#state").inner_text() == "ready"


def test_everything_can_be_done_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    page.locator("#state[data-state=ready]").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.locator(f"{selector}:focus").count():
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#pick")
    tab_to("[data-examples='photographer.jpg']")
    page.keyboard.press("Enter")
    page.locator(".box:visible").wait_for()
    tab_to("#threshold")
    before = visible_boxes(page)
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    assert visible_boxes(page) > before
    tab_to("#object-list button")
    assert page.locator(".box.lit").count() == 1
    tab_to("[role=tab]")
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "curl"
    tab_to("#copy")
    tab_to("summary")


def test_a_photo_can_be_pasted(open_page: Open) -> None:
    page = open_page()
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], "image.jpg", { type: "image/jpeg" }));
          document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        list(Path(PERSON).read_bytes()),
    )
    page.locator(".box:visible").wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing(open_page: Open, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe is evaluated in the page, which the page's own policy forbids
    page = open_page(color_scheme=scheme, bypass_csp=True)
    page.set_viewport_size({"width": width, "height": 860})
    page.locator("#state[data-state=ready]").wait_for()
    found = [axe.run(page)]
    page.get_by_role("button", name="all four, as a profile").click()
    done(page, 4)
    page.get_by_text("Models", exact=True).click()
    page.locator(".box:visible").wait_for()
    found.append(axe.run(page))
    docs = open_page("/docs", color_scheme=scheme, bypass_csp=True)
    docs.locator(".endpoint").first.wait_for()
    found.append(axe.run(docs))
    for result in found:
        assert len(result.response["passes"]) > 15
        assert not result.response["violations"], result.generate_report()


@pytest.fixture(scope="module")
def guarded(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = f"person:{hashlib.sha256(KEY.encode()).hexdigest()}"
    with served(another(home, tmp_path_factory), VISION_API_KEYS=keys) as running:
        yield running


def test_a_key_is_asked_for_and_kept_in_memory_until_the_service_ends(browser: Any, guarded: Served) -> None:
    with pages(browser, guarded.url, expected=r"status of 40[13]|ERR_CONNECTION_REFUSED|ERR_EMPTY") as opened:
        page = opened()
        field = page.get_by_label("This service asks for a key")
        field.fill("wrong")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("The service does not know this key.").wait_for()
        field.fill(KEY)
        page.get_by_role("button", name="Use it").click()
        field.wait_for(state="hidden")
        page.set_input_files("#pick", PERSON)
        page.locator(".box:visible").wait_for()
        page.get_by_role("tab", name="curl").click()
        assert "$VISION_KEY" in page.locator("#code").inner_text()
        assert KEY not in page.content()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        field.wait_for()

        field.fill(KEY)
        page.get_by_role("button", name="Use it").click()
        field.wait_for(state="hidden")
        guarded.stop()
        page.set_input_files("#pick", PERSON)
        page.locator("#state[data-state=gone]").wait_for()
        page.get_by_text("The service does not answer. As soon as it does").wait_for()
