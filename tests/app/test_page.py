"""The page in a browser: ``tagrank app`` in a process of its own, and headless Chromium that reaches nothing else."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tagrank import Annotator
from tagrank.retrieval import open_index

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'tagrank[app]')")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.timeout(600)

SOON = 60_000
"""Milliseconds in which what is waited for has to happen, also on a machine that is busy with other tests."""


class Server:
    """``tagrank app`` in a process.

    Attributes:
        url: of its page.
        temporary: the folder of its temporary files.
    """

    def __init__(self, world: Path, temporary: Path, *options: str) -> None:
        self.temporary = temporary
        command = [sys.executable, "-m", "tagrank", "app", str(world / "model"), "--port", "0", "--max-size", "1"]
        environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        assert said, line + self._process.communicate()[1]
        self.url = said[1]

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; the exit code, and what is on stderr."""
        self._process.send_signal(signal.SIGINT)
        _, complaints = self._process.communicate(timeout=120)
        return self._process.returncode, complaints


@pytest.fixture(scope="module")
def server(chromium: str, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(world, tmp_path_factory.mktemp("temporary"), "--index", str(world / "index"))
    yield server
    # A browser is still connected.
    assert server.interrupt() == (130, "tagrank: interrupted\n")


@pytest.fixture(scope="module")
def browser(chromium: str, server: Server) -> Iterator[Browser]:
    """Chromium that reaches no other machine: it finds no name, and no address but this."""
    closed = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-dev-shm-usage")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=[*closed])


Open = Callable[..., Page]


@pytest.fixture
def open_page(server: Server, browser: Browser) -> Iterator[Open]:
    """Opens the page as a user of its own. At the end it must have asked its server alone, and said no error."""
    asked: set[str] = set()
    errors: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(SOON)
        page.on("request", lambda request: asked.add(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector(".dropzone")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in asked if not url.startswith((server.url, "data:", "blob:"))} == set()
    # Two that Chromium calls errors of the page are none: a refusal, and a stream of events that a reload cuts short.
    harmless = ("status of 413", "AbortError: BodyStreamBuffer was aborted")
    assert [error for error in errors if not any(part in error for part in harmless)] == []


def drop(page: Page, *photos: Path) -> None:
    """Choose files, and wait until all have been read."""
    page.set_input_files(".dropzone input", photos)
    status = page.locator(".dropzone .status")
    expect(status).to_have_text("", timeout=SOON)


def shown(page: Page, kind: str) -> list[str]:
    """The tags of a kind: accepted, listed or further."""
    return page.locator(f".tags li.{kind} .tag").all_text_contents()


def accept(page: Page, tag: str) -> None:
    page.locator(f".tags button[data-do=accept][data-tag={json.dumps(tag)}]").click()
    page.wait_for_selector(f".tags li.accepted button[data-tag={json.dumps(tag)}]")


def choose(field: Locator, text: str) -> None:
    """Type into a field with suggestions, and take the first."""
    field.click()
    field.press_sequentially(text)
    field.press("Enter")


@contextmanager
def changes(page: Page, selector: str) -> Iterator[None]:
    """Wait until the text of a part is another."""
    before = page.text_content(selector)
    yield
    page.wait_for_function("([s, t]) => document.querySelector(s).textContent !== t", arg=[selector, before])


def test_tagging(open_page: Open, world: Path, annotator: Annotator) -> None:
    """Drop a photograph, look at its list, accept tags, take one back, add one that is not proposed."""
    photo = world / "photos" / "a.jpg"
    page = open_page()
    drop(page, photo)
    tags = annotator.annotate(photo)
    assert shown(page, "listed") == [tag.tag for tag in tags]
    assert page.locator(".tags li.listed .share").all_text_contents() == [f"{100 * tag.score:.0f}%" for tag in tags]
    widths = page.eval_on_selector_all(".tags li.listed .fill", "fills => fills.map(fill => fill.style.width)")
    assert [float(width.removesuffix("%")) for width in widths] == pytest.approx([100 * t.score for t in tags], abs=0.1)
    assert page.locator(".stage img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [320, 240]
    assert page.locator(".positions li").count() == min(len(tags) + 1, annotator.ranker.steps)

    for given in (["owl"], ["owl", "salt, pepper"]):
        accept(page, given[-1])
        suggestion = annotator.suggest(photo, given)
        assert shown(page, "accepted") == given
        assert shown(page, "listed") == [tag.tag for tag in suggestion]
        assert page.locator(".positions li").count() == min(len(given) + len(suggestion) + 1, annotator.ranker.steps)
    with changes(page, ".tags"):
        page.click(".tags button[data-do=take_back][data-tag=owl]")
    assert shown(page, "accepted") == ["salt, pepper"]
    assert shown(page, "listed") == [tag.tag for tag in annotator.suggest(photo, ["salt, pepper"])]
    with changes(page, ".tags"):
        choose(page.get_by_label("Another tag"), "<b>gr")
    assert shown(page, "accepted") == ["salt, pepper", "<b>grass</b>"]
    with changes(page, ".tags"):
        page.click(".tags button[data-do=clear]")
    assert shown(page, "listed") == [tag.tag for tag in tags]


def test_several_photographs_and_downloads(open_page: Open, world: Path, annotator: Annotator) -> None:
    photos = [world / "photos" / f"{name}.jpg" for name in "abc"]
    page = open_page()
    drop(page, *photos)
    assert page.eval_on_selector_all(".strip img", "all => all.map(image => image.alt)") == ["a.jpg", "b.jpg", "c.jpg"]
    assert page.text_content(".stage .name") == "a.jpg"
    with changes(page, ".stage"):
        page.click(".strip [title='b.jpg']")
    accept(page, "fox")
    page.wait_for_selector(".strip [title='b.jpg'] .badge")
    assert page.locator(".strip .badge").count() == 1

    def download(button: str) -> tuple[str, bytes]:
        with page.expect_download() as download:
            page.click(f".downloads [data-do={button}]")
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    name, content = download("csv")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    expected = {
        "a.jpg": [tag.tag for tag in annotator.annotate(photos[0])],
        "b.jpg": ["fox", *(tag.tag for tag in annotator.suggest(photos[1], ["fox"]))],
        "c.jpg": [tag.tag for tag in annotator.annotate(photos[2])],
    }
    assert name == "tags.csv"
    assert {image: [row["tag"] for row in rows if row["image"] == image] for image in expected} == expected
    assert download("csv") == (name, content), "the same can be downloaded again"
    page.check(".downloads input[value=accepted]")
    assert download("csv")[1].decode().splitlines()[1].startswith("b.jpg,1,fox,,")
    if find_spec("exiv2"):
        name, content = download("xmp")
        assert (name, b"<rdf:li>fox</rdf:li>" in content) == ("b.jpg.xmp", True)
        page.check(".downloads input[value=lists]")
        name, content = download("xmp")
        assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["a.jpg.xmp", "b.jpg.xmp", "c.jpg.xmp"]
    with changes(page, ".stage"):
        page.click(".stage [data-do=remove]")
    assert page.text_content(".stage .name") == "c.jpg"
    assert page.locator(".strip li").count() == 2


def test_search(open_page: Open, world: Path, annotator: Annotator) -> None:
    index = open_index(world / "index")
    page = open_page()
    drop(page, world / "photos" / "a.jpg")

    def found() -> list[str]:
        page.wait_for_selector(".found li")
        return page.locator(".found .name").all_text_contents()

    page.get_by_role("tab", name="Search").click()
    field = page.get_by_label("Tags, the most important first")
    for tag in ("sea", "dog"):
        choose(field, tag)
        page.wait_for_selector(f".found h2:text-is('{'sea' if tag == 'sea' else 'sea, dog'}')")
    assert found() == [match.image for match in index.search(["sea", "dog"])]
    with changes(page, ".found"):
        page.get_by_label("in any order").check()
    assert found() == [match.image for match in index.search(["sea", "dog"], ordered=False)]
    page.locator(".found button").nth(1).click()
    second = index.search(["sea", "dog"], ordered=False)[1].image
    page.wait_for_selector(f".stage .name:text-is('{second}')")
    assert shown(page, "listed") == [tag.tag for tag in annotator.annotate(world / "photos" / second)]
    page.click("[data-do=by_accepted]")
    expect(page.locator(".notices")).to_contain_text("accept the tags that are to be searched for first", timeout=SOON)
    accept(page, "hut")
    page.click("[data-do=by_accepted]")
    page.wait_for_selector(".found h2:text-is('hut')")
    assert found() == [match.image for match in index.search(["hut"])]
    page.get_by_role("tab", name="Tag").click()
    page.click("[data-do=like]")
    page.wait_for_selector(f".found h2:text-is('Like {second}')")
    assert found() == [match.image for match in index.similar(index.gains(second))]


def test_refusals(open_page: Open, world: Path, tmp_path: Path, server: Server) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_001))
    (tmp_path / "cut.jpg").write_bytes((world / "photos" / "a.jpg").read_bytes()[:3000])
    (tmp_path / "empty.jpg").touch()
    page = open_page()
    drop(page, *(tmp_path / name for name in ("notes.txt", "large.jpg", "cut.jpg", "empty.jpg")))
    notices = page.locator(".notices li").all_text_contents()
    assert [notice.split(":")[0] for notice in notices] == ["notes.txt", "large.jpg", "cut.jpg", "empty.jpg"]
    assert "not a JPEG, PNG" in notices[0]
    assert notices[1] == "large.jpg: too large: expected at most 1 MB"
    assert "damaged image" in notices[2]
    assert notices[3] == "empty.jpg: the file is empty"
    assert not page.locator("#right").is_visible()
    # Good ones among them are read; what was wrong before is no longer shown.
    drop(page, tmp_path / "notes.txt", world / "photos" / "b.jpg")
    assert page.locator(".notices li").count() == 1
    assert page.text_content(".stage .name") == "b.jpg"
    page.click(".notices button")
    expect(page.locator(".notices")).to_have_count(0, timeout=SOON)
    # Whoever sends files without the page is told the same.
    for headers, content, status, why in (
        ({"X-Photograph": "a.jpg"}, bytes(1_000_001), 413, b"too large: expected at most 1 MB"),
        ({"X-Photograph": "a.jpg"}, b"", 413, b"the file is empty"),
        ({}, b"x", 400, b"expected the header X-Photograph"),
    ):
        with pytest.raises(HTTPError) as error:
            urlopen(Request(f"{server.url}photographs", content, headers, method="POST"))
        assert (error.value.code, error.value.read()) == (status, why)


def test_telephones(open_page: Open, world: Path) -> None:
    """At 375 pixels nothing is wider than the window, and what a finger has to hit is large enough."""
    page = open_page(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True, device_scale_factor=2)

    def check() -> None:
        assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [375, 375]
        # Gradio has buttons of a pixel, with which it measures.
        small = page.eval_on_selector_all(
            "button, .dropzone label, .downloads label, input[role=listbox]",
            """all => all.filter(one => one.checkVisibility() && one.getBoundingClientRect().width)
                .map(one => [one.outerHTML.slice(0, 200), one.getBoundingClientRect().height])
                .filter(([_, height]) => 1 < height && height < 44)""",
        )
        assert small == []

    check()
    expect(page.locator(".dropzone .call:visible")).to_have_text("Choose photographs")
    drop(page, world / "photos" / "a.jpg", world / "photos" / "b.jpg")
    check()
    page.locator(".tags button[data-tag=moon]").tap()
    page.wait_for_selector(".tags li.accepted")
    check()
    photo, window = page.locator(".stage img").bounding_box(), 375
    assert photo is not None
    assert photo["width"] > 0.9 * window
    page.locator("[data-do=like]").tap()
    page.wait_for_selector(".found li")
    check()
    choose(page.get_by_label("Tags, the most important first"), "sea")
    page.wait_for_selector(".found h2:text-is('sea')")
    tokens = page.eval_on_selector_all("#query .token", "all => all.map(one => one.getBoundingClientRect().height)")
    assert [height >= 44 for height in tokens] == [True]
    check()


def test_each_user_has_their_own(open_page: Open, world: Path, server: Server) -> None:
    """What one sends, another one cannot see, take or fetch; and nothing of it is on the disk."""
    photo = world / "photos" / "a.jpg"
    one, other = open_page(), open_page()
    drop(one, photo)
    drop(other, world / "photos" / "b.jpg")
    first, second = shown(one, "further")[:2]
    accept(one, first)
    assert other.locator(".stage img").get_attribute("alt") == "b.jpg"
    assert "a.jpg" not in other.content()
    assert shown(other, "accepted") == []
    # The same photograph in both pages is not the same for them.
    drop(other, photo)
    assert other.text_content(".stage .name") == "a.jpg"
    assert shown(other, "accepted") == []
    with changes(other, ".stage"):
        other.click(".stage [data-do=remove]")
    accept(one, second)
    assert shown(one, "accepted") == [first, second]

    with urlopen(Request(f"{server.url}photographs", photo.read_bytes(), {"X-Photograph": "a.jpg"})) as answer:
        ticket = answer.read().decode()
    for path in (ticket, f"photographs/{ticket}", f"gradio_api/file={photo}", f"gradio_api/file={ticket}"):
        with pytest.raises(HTTPError) as error:
            urlopen(server.url + path)
        assert error.value.code == 404
    assert [path for path in server.temporary.rglob("*") if path.is_file()] == []


@pytest.mark.exhaustive
def test_a_page_that_was_reloaded_starts_anew(open_page: Open, world: Path) -> None:
    page = open_page()
    drop(page, world / "photos" / "a.jpg")
    page.reload()
    page.wait_for_selector(".dropzone")
    assert page.locator(".stage").count() == 0


def test_nothing_is_asked_of_others(server: Server) -> None:
    """Besides what the other tests look at: the page itself forbids it to the browser."""
    with urlopen(server.url) as answer:
        policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "http" not in policy
    assert "*" not in policy
