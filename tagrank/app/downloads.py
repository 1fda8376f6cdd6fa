"""The files that a user takes home: the tags of all photographs as CSV, or as XMP sidecars. Nothing is on the disk."""

import csv
import io
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

from tagrank.app.session import Photograph
from tagrank.errors import InputError
from tagrank.metadata import new_sidecar
from tagrank.metadata.keyword_lists import Ranked


class Which(str, Enum):
    """Which tags of a photograph are in the files."""

    lists = "lists"
    """The accepted tags, and how the model goes on."""
    accepted = "accepted"
    """The accepted tags alone."""


class Download(NamedTuple):
    """A file: its name, its type on the web, and its content."""

    name: str
    type: str
    content: bytes


class _Tag(NamedTuple):
    tag: str
    score: float | None
    accepted: bool


def _tags(photograph: Photograph, which: Which) -> list[_Tag]:
    chosen = [_Tag(tag, None, True) for tag in photograph.accepted]
    if which is Which.accepted:
        return chosen
    return [*chosen, *(_Tag(tag.tag, tag.score, False) for tag in photograph.proposal.listed)]


def as_csv(photographs: Iterable[Photograph], which: Which) -> Download:
    """A table with a row for each tag: the columns of ``annotate --format csv``, and whether the tag was accepted.

    An accepted tag has no score: it was a person who chose it.

    Raises:
        InputError: there is no tag.
    """
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score", "unlike", "accepted"])
    count = 0
    for photograph in photographs:
        unlike = photograph.proposal.unlike
        for rank, tag in enumerate(_tags(photograph, which), 1):
            score = None if tag.score is None else round(tag.score, 6)
            of_photograph = None if unlike is None else round(unlike, 6)
            rows.writerow([photograph.name, rank, tag.tag, score, of_photograph, "yes" if tag.accepted else "no"])
            count += 1
    _check_some(count, which)
    return Download("tags.csv", "text/csv", stream.getvalue().encode())


def as_xmp(photographs: Iterable[Photograph], which: Which, model: str) -> Download:
    """A sidecar for each photograph that has tags, named ``a.jpg.xmp``; several are in a ZIP file.

    A sidecar starts with the keywords that the photograph's own file has. Scores are in it if no tag was accepted.

    Args:
        photographs: all of them.
        which: of their tags.
        model: digest of the model.

    Raises:
        InputError: there is no tag, or exiv2 is not installed.
    """
    sidecars = []
    for photograph in photographs:
        tags = _tags(photograph, which)
        if not tags:
            continue
        scores = tuple(tag.score for tag in tags if tag.score is not None)
        ranked = Ranked(
            tuple(tag.tag for tag in tags),
            scores if len(scores) == len(tags) else (),
            "" if which is Which.accepted else model,
            photograph.proposal.unlike,
        )
        sidecars.append((f"{photograph.name}.xmp", new_sidecar(photograph.name, ranked, photograph.keywords)))
    _check_some(len(sidecars), which)
    if len(sidecars) == 1:
        ((name, content),) = sidecars
        return Download(name, "application/rdf+xml", content)
    stream = io.BytesIO()
    with ZipFile(stream, "w", ZIP_DEFLATED) as archive:
        for name, content in sidecars:
            archive.writestr(name, content)
    return Download("tags.zip", "application/zip", stream.getvalue())


def _check_some(count: int, which: Which) -> None:
    if not count:
        raise InputError("no tag was accepted yet" if which is Which.accepted else "there are no tags yet")
