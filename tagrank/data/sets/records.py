"""Records of a data set's images, and the manifest that is written from them."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tagrank.data.manifest import Example, RepeatedImageError, merge_lists, write_manifest
from tagrank.data.spellings import find_file
from tagrank.errors import InputError


class SkipError(InputError):
    """Why an image of a data set gets no line in the manifest.

    Args:
        where: the file and the place in it.
        kind: the reason, without details of this image: skipped images are counted by kind.
        detail: the details of this image.
        fault: True if the data is wrong; False if the image is sound but has no tags.
        image: True if the record is an image; False if it is an entry in the files that belongs to no image.
    """

    def __init__(
        self, where: object, kind: str, detail: object = "", *, fault: bool = True, image: bool = True
    ) -> None:
        super().__init__(f"{where}: {kind}" + (f": {detail}" if str(detail) else ""))
        self.kind = kind
        self.fault = fault
        self.image = image


class Found(NamedTuple):
    """An image with tags: the file and the place in it that it was read from, and the example to write."""

    where: object
    example: Example


Record: TypeAlias = Found | SkipError


@dataclass
class Counts:
    """How many of a data set's images were read, written and skipped.

    Attributes:
        read: the number of images read.
        written: the number of images written to the manifest.
        tags: the number of different tags of the written images.
        skipped: the number of records skipped, by :attr:`SkipError.kind`. Entries that belong to no image count too.
        faults: the number of skipped records that have a fault.
    """

    read: int = 0
    written: int = 0
    tags: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: int = 0


class ImageFolder:
    """The folder of a set's images: makes image paths that are relative to the manifest's folder.

    Args:
        folder: the folder of the images.
        manifest: the manifest that will contain the paths.
        check: whether to check that the folder exists, and that each image exists and is not empty.

    Raises:
        InputError: ``folder`` is not inside the manifest's folder; or ``check`` is on and ``folder`` does not exist.
    """

    def __init__(self, folder: Path, manifest: Path, check: bool = True) -> None:
        # Links are not resolved, so that a link beside the manifest can stand for a folder elsewhere.
        relative = Path(os.path.relpath(os.path.abspath(folder), os.path.abspath(manifest.parent)))
        if ".." in relative.parts:
            raise InputError(
                f"{manifest}: expected a manifest in {os.path.abspath(folder)} or in a folder above it, because image "
                "paths are relative to the manifest's folder"
            )
        if check and not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of the images, there is no such folder")
        self._folder = folder
        self._roots = tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))))
        self._prefix = "" if relative == Path() else relative.as_posix() + "/"
        self._check = check

    def name(self, image: str) -> str:
        """The path of an image relative to the manifest's folder.

        Args:
            image: the image's path relative to the folder of the images, or an absolute path below it. If there is no
                such file, another spelling in Unicode is looked for (:func:`~tagrank.data.spellings.find_file`), and
                one with ``/`` for the backslashes of Windows.

        Raises:
            SkipError: the path leads out of the folder; or ``check`` is on and the file is missing or empty.
        """
        image = self._relative(image)
        if image.startswith("/") or ".." in image.replace("\\", "/").split("/"):
            raise SkipError(image, "image outside of its folder", f"expected a path below {self._folder}")
        if self._check:
            image = self._spelling(image)
            path = os.path.join(self._folder, image)
            try:
                size = os.stat(path).st_size
            except (OSError, ValueError) as error:
                raise SkipError(path, "image missing") from error
            if size == 0:
                raise SkipError(path, "image empty")
        return self._prefix + image

    def has(self, image: str) -> bool:
        """Whether there is a file with this path in the folder."""
        image = self._relative(image)
        return not image.startswith("/") and os.path.isfile(os.path.join(self._folder, self._spelling(image)))

    def _relative(self, image: str) -> str:
        for root in self._roots if image.startswith("/") else ():
            image = image.removeprefix(f"{root}/")
        return image

    def _spelling(self, image: str) -> str:
        if "\\" in image and not os.path.exists(os.path.join(self._folder, image)):
            image = image.replace("\\", "/")
        return image if image.isascii() else find_file(self._folder, image).relative_to(self._folder).as_posix()


class ImageFolders:
    """The folders that a set's images may be in: :class:`ImageFolder` for each.

    Args:
        folders: the most likely folder first. Folders that do not exist or are not inside the manifest's folder are
            left out, if there are others.
        manifest: as for :class:`ImageFolder`.
        check: as for :class:`ImageFolder`.

    Raises:
        InputError: none of the folders is fit; the error is the first folder's.
    """

    def __init__(self, folders: Sequence[Path], manifest: Path, check: bool = True) -> None:
        self._folders: list[ImageFolder] = []
        errors: list[InputError] = []
        for folder in folders:
            try:
                self._folders.append(ImageFolder(folder, manifest, check))
            except InputError as error:
                errors.append(error)
        if not self._folders:
            raise errors[0]

    def name(self, image: str) -> str:
        """:meth:`ImageFolder.name` of the first folder that has the image, or else of the first folder."""
        return next((folder for folder in self._folders if folder.has(image)), self._folders[0]).name(image)


def make_record(where: object, image: str, lists: Sequence[Sequence[str]], split: str | None) -> Found:
    """Make the record of an image and its lists. If a list repeats a tag, only the first occurrence is kept.

    Args:
        where: the file and the place in it, for error messages.
        image: the image's path relative to the manifest's folder.
        lists: at least one list; no list is empty.
        split: the part of the data that the image belongs to, or None.
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
    """Write the records of a data set to a manifest, each as soon as it is read.

    Args:
        records: reads the data set. If ``min_count`` is above 1, it is called twice.
        manifest: the file to write. An existing file is replaced only after all records were written.
        skip_faults: True to skip records with a fault; False to raise the first fault.
        min_count: drop tags that fewer images have, then lists and images that have no tags left.
        on_fault: called with the error of each record that is skipped for a fault.

    Returns:
        How many images were read, written and skipped.

    Raises:
        InputError: a record has a fault and ``skip_faults`` is off, or no image is left to write.
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
            if counts.skipped.total() == skipped:  # write_manifest did not refuse the example
                counts.written += 1
                tags.update(*example.lists)
        if counts.read and not counts.written:
            why = ", ".join(f"{count} {kind}" for kind, count in counts.skipped.most_common())
            raise InputError(f"{manifest}: none of the {counts.read} images is left to write; left out: {why}")

    write_manifest(manifest, examples(), on_error=refused, source=lambda: str(where))
    counts.tags = len(tags)
    return counts


def _frequent(records: Iterable[Record], min_count: int, skip_faults: bool) -> set[str]:
    """The tags that at least ``min_count`` images have."""
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
