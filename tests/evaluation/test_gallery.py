"""A page of photographs with their tags, read by a parser of HTML."""

import io
import math
import os
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tagrank.decode import RankedTag, TagList
from tagrank.errors import InputError
from tagrank.evaluation.gallery import MOST_BYTES, SIDE, Gallery

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """A page, with every element closed.

    Attributes:
        images: the attributes of each image.
        links: where links lead to.
        tags: the elements that there are.
        text: what one reads.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def photograph(path: Path, size: tuple[int, int] = (800, 600)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def written(*photographs: tuple[Path, TagList], failed: int = 0) -> str:
    stream = io.StringIO()
    page = Gallery(stream, "<Holidays>", "Tagged by a & b")
    for path, tags in photographs:
        page.add(path, tags)
    page.close(failed)
    return stream.getvalue()


TAGS = TagList([RankedTag("dog", 1, 0.62), RankedTag("<b>ball</b>", 2, 0.914), RankedTag("sky", 3, 0.001)], 0.25)


def test_photographs_with_their_tags(tmp_path: Path) -> None:
    page = Page(
        written(
            (photograph(tmp_path / "a.jpg"), TAGS),
            (photograph(tmp_path / "b.png"), TagList(TAGS[:1], math.nan)),
            failed=3,
        )
    )
    assert re.findall(r"(\d)(\D+?)(<?\d+%)", page.text.split("b.png")[0]) == [
        ("1", "dog", "62%"),
        ("2", "<b>ball</b>", "91%"),
        ("3", "sky", "<1%"),
    ]
    assert "2 photographs; 3 could not be read." in page.text
    assert "<Holidays>" in page.text
    assert "Tagged by a & b." in page.text
    assert "Unknown" not in page.text
    assert [image["alt"] for image in page.images] == ["dog, <b>ball</b>, sky", "dog"]


def test_pictures_are_small_and_wait_until_they_are_seen(tmp_path: Path) -> None:
    html = written((photograph(tmp_path / "noise.png", (1200, 900)), TAGS))
    (image,) = Page(html).images
    assert (image["loading"], image["width"], image["height"]) == ("lazy", str(SIDE), str(SIDE * 3 // 4))
    picture = b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
    assert len(picture) <= 2 * MOST_BYTES  # noise, at the lowest quality
    assert Image.open(io.BytesIO(picture)).size == (SIDE, SIDE * 3 // 4)


def test_nothing_is_loaded_or_run(tmp_path: Path) -> None:
    name = "x' onerror=alert(1) \"><script>alert(1)</script>.png".replace("/", "")
    page = Page(written((photograph(tmp_path / name), TAGS)))
    assert page.tags.isdisjoint({"script", "b", "iframe", "object"})
    assert set(page.images[0]) == {"src", "width", "height", "loading", "decoding", "alt"}
    assert name in page.text


def test_a_photograph_leads_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a b#1?.png", "javascript:alert(1).png", os.fsdecode(b"caf\xe9.png"), "\N{SNOWMAN}.png"]
    page = Page(written(*((photograph(Path(name)), TAGS) for name in names)))
    for link, name in zip(page.links, names, strict=True):
        assert ":" not in link
        assert unquote(link, errors="surrogateescape") == name
    assert "caf?.png" in page.text
    (link,) = Page(written((photograph(tmp_path / "c.png"), TAGS))).links
    assert link == (tmp_path / "c.png").as_uri()


def test_unknown_photographs_are_marked(tmp_path: Path) -> None:
    page = Page(written((photograph(tmp_path / "a.png"), TagList(TAGS, 0.997)), (tmp_path / "a.png", TAGS)))
    assert page.text.count("Unknown: 99% unlike") == 1
    assert "2 photographs, 1 unknown." in page.text


def test_a_photograph_that_is_gone(tmp_path: Path) -> None:
    stream = io.StringIO()
    page = Gallery(stream, "t", "s")
    before = stream.getvalue()
    with pytest.raises(InputError, match="no such file"):
        page.add(tmp_path / "gone.jpg", TAGS)
    assert stream.getvalue() == before
    page.close()
    assert "0 photographs." in Page(stream.getvalue()).text


def test_any_encoding_of_the_stream_will_do(tmp_path: Path) -> None:
    assert written((photograph(tmp_path / "\N{SNOWMAN}.png"), TAGS)).isascii()
