"""``write``, and what ``annotate --write`` does: put tags into photographs, or beside them, and take them out again."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.cli.app import ImagesOption, check_inputs, command
from tagrank.cli.terminal import Complaints
from tagrank.errors import InputError
from tagrank.metadata import Naming, Outcome, Place, TagWriter
from tagrank.options import option

if TYPE_CHECKING:
    from tagrank.decode import TagList
    from tagrank.metadata.keyword_lists import Ranked

_NAMING = "Name of a new sidecar of a.jpg: full is a.jpg.xmp, stem is a.xmp, as Adobe's programs name it."
_REMOVE = "Take out what was written by earlier runs, and nothing else."


@dataclass(frozen=True)
class WriteTags:
    """Whether tags are written into photographs.

    Attributes:
        write: where; None writes nothing.
        sidecar_name: how new sidecars are named; None is ``full``.
        remove: take out what was written before instead.
    """

    write: Place | None = option(
        None, "Write the tags as keywords (XMP): into a sidecar beside each photograph, or embed them in its file."
    )
    sidecar_name: Naming | None = option(None, _NAMING + " Default: full.")
    remove: bool = option(False, f"With --write: {_REMOVE[0].lower()}{_REMOVE[1:]}", flag="--remove")

    def tagger(self) -> "Tagger | None":
        """What writes, or None.

        Raises:
            InputError: options contradict each other, or the library that writes is not installed.
        """
        if self.write is None:
            if self.remove or self.sidecar_name:
                raise InputError(f"{'--remove' if self.remove else '--sidecar-name'} goes with --write")
            return None
        if self.write is Place.embed and self.sidecar_name:
            raise InputError("--sidecar-name goes with sidecars, not with embed")
        return Tagger(TagWriter(self.write, self.sidecar_name or Naming.full))


WRITE_NOTHING = WriteTags()


class Tagger:
    """Writes tags to one photograph after another, reports what fails, and counts.

    Args:
        writer: to the files.
    """

    def __init__(self, writer: TagWriter) -> None:
        self._writer = writer
        self._outcomes: Counter[str] = Counter()
        self._seen: set[str] = set()

    def write(self, photograph: Path, ranked: "Ranked", on_error: Complaints) -> None:
        """Write tags, unless it is a photograph that has been there before, under any name."""
        self._do(photograph, lambda: self._writer.write(photograph, ranked), on_error)

    def remove(self, photograph: Path, on_error: Complaints) -> None:
        """Take out tags."""
        self._do(photograph, lambda: self._writer.remove(photograph), on_error)

    def _do(self, photograph: Path, change: Any, on_error: Complaints) -> None:
        path = os.path.realpath(photograph)
        if path in self._seen:
            return
        self._seen.add(path)
        try:
            self._outcomes[change().value] += 1
        except InputError as error:
            self._outcomes["failed"] += 1
            on_error(error)

    def close(self) -> None:
        """Say on stderr what became of the photographs, also of those before an interruption."""
        names = [*(outcome.value for outcome in Outcome), "failed"]
        counts = [f"{self._outcomes[name]} {name}" for name in names if self._outcomes[name]]
        typer.echo(f"tagrank: tags of photographs: {', '.join(counts) or 'none written'}", err=True)


def ranked(tags: "TagList", model: str) -> "Ranked":
    """A model's list as it is written."""
    from tagrank.metadata.keyword_lists import Ranked

    unlike = None if math.isnan(tags.unlike) else tags.unlike
    return Ranked(tuple(tag.tag for tag in tags), tuple(tag.score for tag in tags), model, unlike, tags.members)


@command("tagrank write photos.jsonl --to sidecar")
def write(
    lists: Annotated[
        list[Path],
        typer.Argument(help="Manifests, or what annotate --format jsonl writes.", show_default=False),
    ],
    to: Annotated[Place, typer.Option(help="Into a sidecar beside each photograph, or embed them in its file.")],
    sidecar_name: Annotated[Naming | None, typer.Option(help=_NAMING + " Default: full.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help=_REMOVE)] = False,
    images: ImagesOption = None,
) -> None:
    """Write the tags of lists as keywords of photographs, which need not be readable here: sidecars take any format.

    What cannot be written is reported on stderr; the others are written, and the exit code is 1.
    """
    check_inputs(*lists, images)
    tagger = WriteTags(to, sidecar_name, remove).tagger()
    assert tagger is not None
    failed = Complaints()
    given = [each for path in lists for each in _read(path, images)]
    try:
        for photograph, tags in given:
            if remove:
                tagger.remove(photograph, failed)
            else:
                tagger.write(photograph, tags, failed)
    finally:
        tagger.close()
    failed.exit()


@dataclass(frozen=True)
class _Tag:
    tag: str
    rank: int
    score: float


@dataclass(frozen=True)
class _Line:
    image: str
    unlike: float | None
    tags: tuple[_Tag, ...]


def _read(path: Path, images: Path | None) -> "Iterator[tuple[Path, Ranked]]":
    """Photographs with their tags. A manifest's paths begin in its folder, those of ``annotate`` in the current one."""
    from tagrank.data.files import parse_json, read_text
    from tagrank.data.manifest import read_manifest
    from tagrank.data.schema import decode
    from tagrank.data.spellings import find_file
    from tagrank.metadata.keyword_lists import Ranked

    # Both say "image" and "tags"; only annotate says "unlike".
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    try:
        annotated = bool(lines) and "unlike" in parse_json(lines[0])
    except (ValueError, TypeError):
        annotated = False
    if not annotated:
        manifest = read_manifest(path)
        for example in manifest.examples:
            yield find_file(images or manifest.root, example.image), Ranked(example.tags)
        return
    for number, line in enumerate(lines, 1):
        try:
            one: _Line = decode(_Line, parse_json(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: expected what annotate --format jsonl writes: {error}") from error
        tags, scores = tuple(tag.tag for tag in one.tags), tuple(tag.score for tag in one.tags)
        yield Path(images or ".", one.image), Ranked(tags, scores, unlike=one.unlike)
