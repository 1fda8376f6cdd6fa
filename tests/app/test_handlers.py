"""What happens when a user does something that the tests in a browser do not get to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'tagrank[app]')")

import gradio as gr

from tagrank import Annotator
from tagrank.app import layout
from tagrank.app.finding import Finder
from tagrank.app.service import Service
from tagrank.app.session import Session
from tagrank.app.uploads import MEGABYTE, Uploads


@pytest.fixture(scope="module")
def page(annotator: Annotator, world: Path) -> "Iterator[layout._Page]":
    service = Service(annotator)
    yield layout._Page(service, Uploads(MEGABYTE), Finder(world / "index", annotator))
    service.close()


def did(**data: str) -> Any:
    """What the script of a part says of an event."""
    return gr.EventData(None, data)


def put(page: layout._Page, session: Session, photo: Path) -> None:
    """A photograph on a session, as if it had come from a browser."""
    page._uploads._files["ticket"] = photo.name, photo.read_bytes()
    page._receive(session, did(name=photo.name, ticket="ticket", first="true"))


def test_a_page_that_was_left_too_long(page: layout._Page) -> None:
    """Its server has a new session, or has itself been started anew."""
    for event in (did(do="accept", key="1", tag="dog"), did(do="csv", which="lists"), did(do="like")):
        session = Session()
        updates = page._click(session, event)
        assert session.notices == ["This page was left too long, and its photographs are gone. Drop them again."]
        # The page shows no photograph any more.
        assert updates[page._stage] == updates[page._strip] == updates[page._tags] == ""
    with pytest.raises(KeyError):
        Session()["1"]


def test_a_button_is_pressed_twice(page: layout._Page, world: Path) -> None:
    session = Session()
    put(page, session, world / "photos" / "a.jpg")
    for _ in range(2):
        page._click(session, did(do="remove", key="1"))
        assert (len(session), session.notices) == (0, [])
    put(page, session, world / "photos" / "a.jpg")
    for _ in range(2):
        page._click(session, did(do="accept", key="2", tag="owl"))
        assert (session["2"].accepted, session.notices) == (["owl"], [])


def test_small_pictures_are_sent_when_they_change(page: layout._Page, world: Path) -> None:
    session = Session()
    for name in "ab":
        put(page, session, world / "photos" / f"{name}.jpg")
    assert page._strip in page._click(session, did(do="accept", key="1", tag="owl"))
    assert page._strip not in page._click(session, did(do="accept", key="1", tag="fox"))
    assert page._stage not in page._click(session, did(do="take_back", key="1", tag="fox"))
    assert page._strip in page._click(session, did(do="choose", key="1"))


def test_too_many_photographs(page: layout._Page, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_PHOTOGRAPHS", 1)
    session = Session()
    for name in "ab":
        put(page, session, world / "photos" / f"{name}.jpg")
    assert session.notices == ["b.jpg: expected at most 1 photographs on the page; remove some"]
    page._search(session, ["owl"], unordered=False)
    page._click(session, did(do="open", rank="1"))
    assert "expected at most 1" in session.notices[0]
    assert len(session) == 1


def test_what_nobody_found(page: layout._Page) -> None:
    session = Session()
    page._search(session, ["dog"], unordered=True)
    assert len(session.found) == 6
    for rank in ("0", "7", "../../etc/passwd"):
        page._click(session, did(do="open", rank=rank))
        assert session.notices == ["this photograph is not among those that were found; search again"]
    page._search(session, [*page._service.tags[:9]], unordered=False)
    assert "expected 1 to 5 tags, got 9" in session.notices[0]


def test_photographs_that_are_gone(
    annotator: Annotator, world: Path, page: layout._Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "_finder", Finder(world / "index", annotator, tmp_path))
    session = Session()
    shown = page._search(session, ["dog"], unordered=False)[page._results]
    assert shown.count("its file cannot be read any more") == 6
    page._click(session, did(do="open", rank="1"))
    assert session.notices == [f"{session.found[0]}: its file cannot be read any more"]
