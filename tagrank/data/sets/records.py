"""From a data set's records to a manifest: what is skipped, counted and written."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tagrank.data.manifest import Example, RepeatedImageError, merge_lists, write_manifest
from tagrank.errors import InputError


class SkipError(InputError):
    """Why an image of a data set gets no line in the manifest.

    Args:
        where: the file, and the place in it.
        kind: what is wrong, in words that all images of the kind share: they are counted by it.
        detail: what is particular to this one.
        fault: whether something is wrong with it, rather than that there is nothing to say about it.
        image: whether it is an image, rather than something in the files that belongs to none.
    """

    def __init__(
        self, where: object, kind: str, detail: object = "", *, fault: bool = True, image: bool = True
    ) -> None:
        super().__init__(f"{where}: {kind}" + (f": {detail}" if str(detail) else ""))
        self.kind = kind
        self.fault = fault
        self.image = image


class Found(NamedTuple):
    """An image that a data set says something about: the file and the place in it, and what the manifest will have."""

    where: object
    example: Example


Record: TypeAlias = Found | SkipError


@dataclass
class Counts:
    """What became of a data set's images.

    Attributes:
        read: how many there were.
        written: how many have a line in the manifest.
        tags: how many different tags those have.
        skipped: how many were left out, by :attr:`SkipError.kind`; what belongs to no image too.
        faults: how many of these because something was wrong with them.
    """

    read: int = 0
    written: int = 0
    tags: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: int = 0


class ImageFolder:
    """The folder that has a set's images, seen from a manifest.

    Args:
        folder: the images.
        manifest: the file that will name them.
        check: whether an image has to be there.

    Raises:
        InputError: the folder is not below the manifest's, or not there.
    """

    def __init__(self, folder: Path, manifest: Path, check: bool = True) -> None:
        # As the user names them, so that a link beside the manifest serves for a folder elsewhere.
        relative = Path(os.path.relpath(os.path.abspath(folder), os.path.abspath(manifest.parent)))
        if ".." in relative.parts:
            raise InputError(
                f"{manifest}: paths in it are relative to its folder, which has to be {os.path.abspath(folder)} or one "
                "above it"
            )
        if check and not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of the images, it is not there")
        self._folder = str(folder)
        self._prefix = "" if relative == Path() else relative.as_posix() + "/"
        self._check = check

    def name(self, image: str) -> str:
        """The manifest's name of an image.

        Args:
            image: its path below the folder.

        Raises:
            SkipError: there is no such file, it is empty, or the path leads out of the folder.
        """
        if image.startswith("/") or ".." in image.split("/"):
            raise SkipError(image, "image outside of its folder", f"expected a path below {self._folder}")
        if self._check:
            path = os.path.join(self._folder, image)
            try:
                size = os.stat(path).st_size
            except (OSError, ValueError) as error:
                raise SkipError(path, "image missing") from error
            if size == 0:
                raise SkipError(path, "image empty")
        return self._prefix + image


def make_record(where: object, image: str, lists: Sequence[Sequence[str]], split: str | None) -> Found:
    """An image with its lists. Of a tag that a list has more than once the first place counts.

    Args:
        where: the file, and the place in it, for errors.
        image: path relative to the manifest.
        lists: at least one, none of them empty.
        split: the part of the data it belongs to.
    """
    distinct = tuple(tuple(dict.fromkeys(tags)) for tags in lists)
    return Found(where, Example(image, distinct[0] if len(distinct) == 1 else merge_lists(distinct), distinct, split))


def write_records(
    records: Callable[[], Iterable[Record]],
    manifest: Path,
    *,
    skip_faults: bool = False,
    min_count: int = 1,
    on_fault: Callable[[InputError], None] | None = None,
) -> Counts:
    """Write a manifest of a data set's records, as they come.

    Args:
        records: reads the data set. It is called a second time where ``min_count`` is above 1.
        manifest: the file to write; one that is there is replaced once all is well.
        skip_faults: leave images out that something is wrong with; else the first one ends it.
        min_count: leave tags out that fewer images have, then lists and images without a tag.
        on_fault: called with each image that is left out because something is wrong with it.

    Raises:
        InputError: something is wrong with an image and ``skip_faults`` is off, or no image is left to write.
        OSError: the manifest cannot be written.
    """
    counts = Counts()
    kept = None if min_count == 1 else _frequent(records(), min_count, skip_faults)
    tags: set[str] = set()
    where: object = manifest

    def skip(error: InputError, kind: str) -> None:
        fault = not isinstance(error, SkipError) or error.fault
        if fault and not skip_faults:
            raise error
        counts.skipped[kind] += 1
        counts.faults += fault
        if fault and on_fault is not None:
            on_fault(error)

    def refused(example: Example, error: InputError) -> None:
        skip(error, "image there twice" if isinstance(error, RepeatedImageError) else "not fit for a manifest")

    def examples() -> Iterator[Example]:
        nonlocal where
        for record in records():
            counts.read += isinstance(record, Found) or record.image
            if isinstance(record, Found) and kept is not None:
                record = _without_rare(record, kept, min_count)
            if isinstance(record, SkipError):
                skip(record, record.kind)
                continue
            skipped = counts.skipped.total()
            where, example = record
            yield example
            if counts.skipped.total() == skipped:  # the manifest took it
                counts.written += 1
                tags.update(*example.lists)
        if counts.read and not counts.written:
            why = ", ".join(f"{count} {kind}" for kind, count in counts.skipped.most_common())
            raise InputError(f"{manifest}: none of the {counts.read} images is left to write: {why}")

    write_manifest(manifest, examples(), on_error=refused, source=lambda: str(where))
    counts.tags = len(tags)
    return counts


def _frequent(records: Iterable[Record], min_count: int, skip_faults: bool) -> set[str]:
    """The tags that at least so many images have."""
    images: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Found):
            images.update(set().union(*record.example.lists))
        elif record.fault and not skip_faults:
            raise record
    return {tag for tag, count in images.items() if count >= min_count}


def _without_rare(record: Found, kept: set[str], min_count: int) -> Record:
    where, example = record
    lists = [[tag for tag in tags if tag in kept] for tags in example.lists]
    lists = [tags for tags in lists if tags]
    if not lists:
        return SkipError(where, f"no tag that {min_count} images have", fault=False)
    return make_record(where, example.image, lists, example.split)
