"""Writes tags into photographs or their sidecars, and takes them out again, one photograph at a time."""

import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path

from tagrank.data.files import leftovers, reason, write_atomically
from tagrank.errors import InputError
from tagrank.features.folders import SUFFIXES
from tagrank.metadata.exiv2_image import ImageMetadata, library
from tagrank.metadata.image_data import KINDS, checked
from tagrank.metadata.keyword_lists import List, Ranked, same_lists, with_tags, without_tags
from tagrank.metadata.sidecars import Naming, Sidecars

STALE = 3600.0
"""How old, in seconds, a temporary file beside a photograph is before it is taken for what a killed process left."""


class Place(str, Enum):
    """Where tags are written."""

    sidecar = "sidecar"
    """Into an XMP file beside the photograph, which is not touched."""
    embed = "embed"
    """Into the photograph's file."""


class Outcome(str, Enum):
    """What became of a photograph's tags."""

    written = "written"
    removed = "removed"
    unchanged = "unchanged"


class TagWriter:
    """Writes tags as keywords of photographs. Not safe for threads: the library that it uses is not.

    Keywords that are there stay, and are not doubled. A file is replaced as a whole or not at all; one that would not
    change is not touched. It keeps its permissions, owner and extended attributes, and a photograph keeps the time of
    its last change too. A sidecar does not: programs see by that time that it changed. Links are followed.

    Args:
        place: into the photographs, or beside them.
        naming: of new sidecars.

    Raises:
        InputError: the library exiv2 is not installed.
    """

    def __init__(self, place: Place, naming: Naming = Naming.full) -> None:
        library()
        self.place = place
        self._sidecars = Sidecars(naming)
        self._swept: set[Path] = set()

    def write(self, photograph: str | Path, ranked: Ranked) -> Outcome:
        """Write tags, in the place of those that tagrank wrote before.

        Raises:
            InputError: the file cannot be read or written, is read-only, or is of a format that cannot have XMP; or a
                tag is blank or has characters that XML cannot have.
        """
        _check_tags(photograph, ranked)
        return self._each(Path(photograph), lambda file: self._write(file, ranked))

    def remove(self, photograph: str | Path) -> Outcome:
        """Take out what tagrank wrote, and nothing else. A sidecar that has nothing else is deleted.

        Raises:
            InputError: as for :meth:`write`.
        """
        return self._each(Path(photograph), self._remove)

    def _each(self, given: Path, change: "Callable[[_File], Outcome]") -> Outcome:
        try:
            photograph = Path(os.path.realpath(given))
            if not photograph.is_file():
                raise InputError(f"{given}: expected a photograph, got {_what_is(photograph)}")
            self._sweep(photograph.parent)
            if self.place is Place.embed:
                return change(_File(given, photograph, photograph))
            sidecar = self._sidecars.of(photograph)
            return change(_File(given.with_name(sidecar.name), Path(os.path.realpath(sidecar)), photograph))
        except OSError as error:
            raise InputError(f"{given}: {reason(error)}") from error

    def _write(self, file: "_File", ranked: Ranked) -> Outcome:
        if not ranked.tags:
            return self._remove(file)
        metadata, there = file.metadata(), file.data is not None
        lists, record = metadata.keywords(), metadata.record()
        new, noted = with_tags(
            lists, record, ranked, () if self.place is Place.embed else embedded_keywords(file.photograph)
        )
        if there and record and record.ranked.says(ranked) and same_lists(new, lists) and noted.adds_as(record):
            return Outcome.unchanged
        metadata.set(new, noted)
        file.replace(metadata)
        return Outcome.written

    def _remove(self, file: "_File") -> Outcome:
        if file.data is None:
            return Outcome.unchanged
        metadata = file.metadata()
        record = metadata.record()
        if record is None:
            return Outcome.unchanged
        metadata.set(without_tags(metadata.keywords(), record), None)
        if self.place is Place.sidecar and not metadata.has_xmp:
            file.delete()
        else:
            file.replace(metadata)
        return Outcome.removed

    def _sweep(self, folder: Path) -> None:
        """Delete what killed processes left beside photographs."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        ours = "|".join(map(re.escape, (*SUFFIXES, ".xmp")))
        for path in leftovers(folder, rf".+(?i:{ours})"):
            with suppress(OSError):
                # Its time of the last change may be the photograph's; the time when its status changed is its own.
                if path.stat().st_ctime < time.time() - STALE:
                    path.unlink()


def embedded_keywords(photograph: Path) -> tuple[str, ...]:
    """The keywords in a photograph's own file, which a sidecar hides. None if exiv2 cannot read it, or is not there.

    Those that tagrank wrote are not among them.
    """
    try:
        metadata = ImageMetadata(photograph, photograph)
    except (InputError, UnicodeEncodeError):
        return ()
    lists, record = metadata.keywords(), metadata.record()
    theirs = without_tags(lists, record) if record else lists
    return (*theirs[List.subject], *theirs.get(List.iptc, ()))


def new_sidecar(name: str, ranked: Ranked, keywords: tuple[str, ...] = ()) -> bytes:
    """The content of a new sidecar, for a photograph that is elsewhere: what :class:`TagWriter` would write beside it.

    Args:
        name: of the photograph, for messages.
        ranked: the tags.
        keywords: that the photograph's own file has (:func:`embedded_keywords`).

    Raises:
        InputError: the library exiv2 is not installed, or a tag is blank or has characters that XML cannot have.
    """
    _check_tags(name, ranked)
    metadata = ImageMetadata(Path(name))
    metadata.set(*with_tags(metadata.keywords(), None, ranked, keywords))
    return metadata.write()


def _check_tags(photograph: str | Path, ranked: Ranked) -> None:
    for tag in ranked.tags:
        if not tag.strip() or any(unicodedata.category(c) in ("Cc", "Cs") or c in "\ufffe\uffff" for c in tag):
            raise InputError(f"{photograph}: expected tags of letters and other signs, got {tag!r:.60}")


class _File:
    """A photograph or a sidecar that is to change.

    Args:
        name: its path for messages.
        path: its path without links.
        photograph: the photograph, which may be the same file.

    Attributes:
        data: its content; None if there is no such file.
        photograph: the photograph.
    """

    def __init__(self, name: Path, path: Path, photograph: Path) -> None:
        self._name, self._path, self.photograph = name, path, photograph
        self._status = path.stat() if path.exists() else None
        self.data = path.read_bytes() if self._status else None

    def metadata(self) -> ImageMetadata:
        """What exiv2 reads in the file; a new sidecar if there is none."""
        metadata = ImageMetadata(self._name, self.data)
        if self._path != self.photograph:
            if metadata.kind != "XMP":
                raise InputError(f"{self._name}: expected a sidecar, got {metadata.kind}")
        elif metadata.kind not in KINDS or not self._is_plain(metadata):
            raise InputError(
                f"{self._name}: tags can be embedded in {', '.join(KINDS[:-1])} and {KINDS[-1]} files, "
                "not in this one; use --write sidecar"
            )
        return metadata

    def _is_plain(self, metadata: ImageMetadata) -> bool:
        """Most raw files are TIFF files inside. What exiv2 would lose of them nobody knows."""
        return metadata.kind != "TIFF" or self._path.suffix.lower() in (".tif", ".tiff")

    def replace(self, metadata: ImageMetadata) -> None:
        """Write the file with changed metadata, if nothing else of it changes."""
        self._check_writable()
        content = metadata.write()
        if self._path == self.photograph:
            assert self.data is not None
            try:
                content = checked(metadata.kind, self.data, content, metadata.has_xmp)
            except InputError as error:
                raise InputError(f"{self._name}: {error}") from error
        write_atomically(self._path, [content], finish=self._finish)

    def delete(self) -> None:
        """Delete the file."""
        self._check_writable()
        self._path.unlink()

    def _check_writable(self) -> None:
        # root may write to everything; a file that nobody may write to is meant to stay as it is.
        if self._status and not (self._status.st_mode & 0o222 and os.access(self._path, os.W_OK)):
            raise InputError(f"{self._name}: is read-only")

    def _finish(self, temporary: Path) -> None:
        """Give the new file what the old one had besides its content."""
        before, now, times = self._status, self._path.stat() if self._path.exists() else None, temporary.stat()
        if _state(before) != _state(now):
            raise InputError(f"{self._name}: another program changed it meanwhile; it is left as it is")
        if now is None:
            return
        if (now.st_uid, now.st_gid) != (times.st_uid, times.st_gid):
            with suppress(PermissionError):
                os.chown(temporary, now.st_uid, now.st_gid)
        shutil.copystat(self._path, temporary)
        if self._path != self.photograph:
            os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))


def _state(status: os.stat_result | None) -> tuple[int, int, int] | None:
    return status and (status.st_size, status.st_mtime_ns, status.st_ino)


def _what_is(path: Path) -> str:
    return "a folder" if path.is_dir() else "a special file" if path.exists() else "no file"
