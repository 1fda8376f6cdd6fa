"""A user's photographs, and the files that the user takes home."""

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tagrank import Annotator
from tagrank.app import parts
from tagrank.app.downloads import Which, as_csv, as_xmp
from tagrank.app.service import Service
from tagrank.app.session import Session, new_name
from tagrank.app.uploads import clean_name
from tagrank.errors import InputError
from tagrank.metadata.exiv2_image import ImageMetadata
from tagrank.metadata.keyword_lists import List


@pytest.fixture(scope="module")
def service(annotator: Annotator) -> Iterator[Service]:
    service = Service(annotator)
    yield service
    service.close()


@pytest.fixture
def session(service: Service, world: Path) -> Session:
    session = Session()
    for name in ("a.jpg", "b.jpg", "a.jpg"):
        session.add(service.read(name, (world / "photos" / name).read_bytes()))
    return session


def test_names_are_unique_and_order_stays(session: Session) -> None:
    assert [photograph.name for _, photograph in session] == ["a.jpg", "b.jpg", "a (2).jpg"]
    assert new_name("a.jpg", ["a.jpg", "a (2).jpg"]) == "a (3).jpg"
    assert new_name("b", ["a"]) == "b"


def test_choosing_and_removing(session: Session) -> None:
    first, second, third = (key for key, _ in session)
    assert session.chosen == first
    session.choose(third)
    session.choose("nothing")
    assert session.chosen == third
    session.remove(third)
    assert session.chosen == second
    session.remove("nothing")
    session.remove(first)
    assert (session.chosen, len(session)) == (second, 1)
    session.remove(second)
    assert (session.chosen, session.photograph, len(session)) == (None, None, 0)
    assert Session().untouched
    assert not session.untouched


def test_reading_gives_what_annotate_gives(service: Service, session: Session, world: Path) -> None:
    for (_, photograph), name in zip(session, ("a.jpg", "b.jpg"), strict=False):
        assert list(photograph.proposal.listed) == service.annotator.annotate(world / "photos" / name)
        assert (photograph.picture.width, photograph.picture.height) == (320, 240)
        assert (photograph.small.width, photograph.small.height) == (160, 120)


def test_accepting_and_taking_back(service: Service, session: Session, world: Path) -> None:
    photograph = session.photograph
    assert photograph is not None
    before = photograph.proposal
    service.accept(photograph, "cat")
    service.accept(photograph, "owl")
    service.accept(photograph, "cat")
    assert photograph.accepted == ["cat", "owl"]
    assert list(photograph.proposal.listed) == list(
        service.annotator.suggest(world / "photos" / "a.jpg", ["cat", "owl"])
    )
    with pytest.raises(InputError, match="unicorn"):
        service.accept(photograph, "unicorn")
    assert photograph.accepted == ["cat", "owl"], "an error changes nothing"
    service.take_back(photograph, "cat")
    assert photograph.accepted == ["owl"]
    service.clear(photograph)
    assert (photograph.accepted, photograph.proposal) == ([], before)


@pytest.mark.parametrize(
    ("name", "kept", "why"),
    [("notes.txt", 0, "the file is empty"), ("notes.txt", 99, "not a JPEG"), ("a.jpg", 3000, "damaged image")],
)
def test_no_photograph(service: Service, world: Path, name: str, kept: int, why: str) -> None:
    content = (world / "photos" / "a.jpg").read_bytes() if name == "a.jpg" else b"no picture" * 10
    with pytest.raises(InputError, match=f"^{name}: .*{why}") as error:
        service.read(f"../../{name}", content[:kept])
    assert "tagrank-" not in str(error.value), "where the file was on the disk concerns nobody"


def test_nothing_stays_on_the_disk(
    service: Service, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    service.read("a.jpg", (world / "photos" / "a.jpg").read_bytes())
    with pytest.raises(InputError):
        service.read("a.nef", b"no picture")
    assert list(tmp_path.iterdir()) == []


def test_csv(service: Service, session: Session) -> None:
    _, (_, second), (_, third) = session
    service.accept(second, "salt, pepper")
    file = as_csv((photograph for _, photograph in session), Which.lists)
    assert (file.name, file.type) == ("tags.csv", "text/csv")
    rows = list(csv.DictReader(io.StringIO(file.content.decode())))
    of_second = [row for row in rows if row["image"] == "b.jpg"]
    assert of_second[0] | {"unlike": ""} == {
        "image": "b.jpg", "rank": "1", "tag": "salt, pepper", "score": "", "accepted": "yes", "unlike": ""
    }  # fmt: skip
    assert [(row["tag"], row["accepted"]) for row in of_second[1:]] == [(t.tag, "no") for t in second.proposal.listed]
    scores = [float(row["score"]) for row in rows if row["image"] == "a (2).jpg"]
    assert scores == pytest.approx([tag.score for tag in third.proposal.listed], abs=1e-6)
    assert second.proposal.unlike is not None
    assert {float(row["unlike"]) for row in of_second} == {round(second.proposal.unlike, 6)}
    alone = as_csv((photograph for _, photograph in session), Which.accepted)
    assert [row["tag"] for row in csv.DictReader(io.StringIO(alone.content.decode()))] == ["salt, pepper"]


def test_xmp(service: Service, session: Session) -> None:
    pytest.importorskip("exiv2", reason="exiv2 is not installed (pip install 'tagrank[xmp]')")
    (_, first), (_, second), (_, third) = session
    second.keywords = ("holiday",)
    service.accept(second, "owl")
    photographs = [first, second, third]
    file = service.run(lambda: as_xmp(photographs, Which.lists, service.digest))
    assert (file.name, file.type) == ("tags.zip", "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(file.content))
    assert archive.namelist() == ["a.jpg.xmp", "b.jpg.xmp", "a (2).jpg.xmp"]

    def read(content: bytes) -> tuple[Any, Any]:
        metadata = ImageMetadata(Path("a.xmp"), content)
        return metadata.keywords(), metadata.record()

    keywords, record = service.run(lambda: read(archive.read("a.jpg.xmp")))
    tags = tuple(tag.tag for tag in first.proposal.listed)
    assert keywords[List.subject] == record.ranked.tags == tags
    assert record.ranked.scores == pytest.approx([tag.score for tag in first.proposal.listed], abs=1e-4)
    assert record.ranked.model == service.digest
    keywords, record = service.run(lambda: read(archive.read("b.jpg.xmp")))
    tags = ("owl", *(tag.tag for tag in second.proposal.listed))
    assert keywords[List.subject] == ("holiday", *tags)
    assert (record.ranked.tags, record.ranked.scores) == (tags, ())
    alone = service.run(lambda: as_xmp(photographs, Which.accepted, service.digest))
    assert alone.name == "b.jpg.xmp"
    assert service.run(lambda: read(alone.content))[1].ranked.tags == ("owl",)


def test_keywords_of_the_photograph_are_in_the_sidecar(service: Service, world: Path, tmp_path: Path) -> None:
    pytest.importorskip("exiv2", reason="exiv2 is not installed (pip install 'tagrank[xmp]')")
    from tagrank.metadata import Place, TagWriter
    from tagrank.metadata.keyword_lists import Ranked

    path = tmp_path / "a.jpg"
    path.write_bytes((world / "photos" / "a.jpg").read_bytes())
    service.run(lambda: TagWriter(Place.embed).write(path, Ranked(("of tagrank",))))
    assert service.read("a.jpg", path.read_bytes()).keywords == (), "what tagrank wrote is not a person's"
    metadata = service.run(lambda: ImageMetadata(path, path.read_bytes()))
    service.run(
        lambda: metadata.set({**metadata.keywords(), List.subject: ("mine",), List.iptc: ("mine", "too")}, None)
    )
    assert service.read("a.jpg", service.run(metadata.write)).keywords == ("mine", "mine", "too")


@pytest.mark.parametrize("make", [as_csv, lambda photographs, which: as_xmp(photographs, which, "")])
def test_nothing_to_take_home(session: Session, make: Any) -> None:
    photographs = [photograph for _, photograph in session]
    with pytest.raises(InputError, match="no tag was accepted yet"):
        make(photographs, Which.accepted)
    with pytest.raises(InputError, match="there are no tags yet"):
        make([], Which.lists)


def test_names_of_files() -> None:
    assert clean_name("C:\\photos\\a.jpg") == clean_name("/etc/../a.jpg") == clean_name("a\0.jpg") == "a.jpg"
    assert clean_name("") == clean_name("..") == clean_name("/") == "photograph"
    assert clean_name("b" * 500 + ".jpeg") == "b" * 115 + ".jpeg"
    assert clean_name("\u202egpj.exe") == "gpj.exe"


def test_what_is_shown_is_escaped(service: Service, session: Session, world: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'{{7}}${7}`.jpg"
    session.choose(session.add(service.read(evil, (world / "photos" / "c.jpg").read_bytes())))
    for part in (parts.stage, parts.strip):
        assert "<img src=x" not in part(session)
        assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;{{7}}${7}`.jpg" in part(session)
    photograph = session.photograph
    assert photograph is not None
    service.accept(photograph, "<b>grass</b>")
    assert "<b>" not in parts.tags(session) + parts.positions(session)
    assert 'data-tag="&lt;b&gt;grass&lt;/b&gt;"' in parts.tags(session)
    assert "<script>" not in parts.notices(["<script>"])


def test_unknown_photographs_are_marked(session: Session) -> None:
    photograph = session.photograph
    assert photograph is not None
    assert "unlike" not in parts.tags(session)
    photograph.proposal = replace(photograph.proposal, unlike=0.9951, unknown=True)
    assert "unlike the training photographs (99% unlike)" in parts.tags(session)


@pytest.mark.parametrize(
    ("probability", "words"), [(0, "0%"), (0.004, "<1%"), (0.5, "50%"), (0.996, ">99%"), (1, "100%"), (1.0001, "100%")]
)
def test_percentages(probability: float, words: str) -> None:
    assert parts.percent(probability) == words


@pytest.mark.parametrize(("probability", "words"), [(0, "0%"), (1.23e-4, "0.012%"), (0.0567, "5.7%"), (1, "100%")])
def test_percentages_of_several_tags(probability: float, words: str) -> None:
    assert parts.digits(probability) == words
