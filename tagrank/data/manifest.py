"""Manifests: which images there are, and what people said about them.

A manifest is a file of JSON lines, one image a line::

    {"image": "a.jpg", "tags": ["dog", "ball"]}
    {"image": "b.jpg", "lists": [["dog", "ball"], ["ball"]], "split": "val"}

``image`` is a path relative to the manifest's folder. ``tags`` is one ordered list, most important first; ``lists`` has
one such list per annotator. One of the two is required, and where both are there, each of ``tags`` is on one of
``lists``. ``split`` is optional.
"""

import codecs
import json
import math
import posixpath
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tagrank.data.files import parse_json, reason, write_atomically
from tagrank.errors import InputError

FIELDS = ("image", "tags", "lists", "split")


class RepeatedImageError(InputError):
    """An image that a manifest has already."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image and the ordered lists of tags that go with it.

    Attributes:
        image: path relative to the manifest's folder, as written there.
        tags: one ordered list, most important first.
        lists: one ordered list per annotator; ``(tags,)`` where the manifest has ``tags`` alone.
        split: the part of the data it belongs to, where the manifest says so.
    """

    image: str
    tags: tuple[str, ...]
    lists: tuple[tuple[str, ...], ...]
    split: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The examples of a manifest file, in the order of its lines."""

    path: Path
    examples: tuple[Example, ...]

    @property
    def root(self) -> Path:
        """The folder that image paths are relative to."""
        return self.path.parent

    def image_path(self, example: Example) -> Path:
        """Where the image of ``example`` lies. Whether it is there is not checked."""
        return self.root / example.image

    def select(self, split: str) -> "Manifest":
        """The examples of one split, in the same order.

        Raises:
            InputError: no example belongs to ``split``.
        """
        examples = tuple(example for example in self.examples if example.split == split)
        if not examples:
            names = sorted({example.split for example in self.examples if example.split is not None})
            raise InputError(f"{self.path}: no example of split {split!r}; splits there: {', '.join(names) or 'none'}")
        return Manifest(self.path, examples)

    def __len__(self) -> int:
        return len(self.examples)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest, strictly: what is not understood is an error, and nothing is repaired or skipped.

    A byte order mark, Windows line ends and blank lines at the end of the file are fine. Where ``tags`` is absent it is
    :func:`merge_lists` of ``lists``; where ``lists`` is absent it is ``(tags,)``.

    Raises:
        InputError: ``FILE, line N: reason``. The line is not UTF-8 or not a JSON object, a field is unknown, missing
            or of the wrong type, a list is empty or has a tag twice, a tag is blank, has white space around it or
            control characters in it, one of ``tags`` is on none of ``lists``, an image is there twice or its path
            leaves the manifest's folder.
            ``FILE: reason`` where the file cannot be read or is empty.
    """
    path = Path(path)
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    blank = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise InputError(f"{path}, line {blank}: expected a JSON object, got a blank line")
                where = f"{path}, line {number}"
                example = _read_line(where, line)
                first = line_of.setdefault(posixpath.normpath(example.image), number)
                if first != number:
                    raise InputError(f"{where}: image {example.image!r} is already on line {first}")
                examples.append(example)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    if not examples:
        raise InputError(f"{path}: expected one JSON object a line, the file is empty")
    return Manifest(path, tuple(examples))


def write_manifest(
    path: str | Path,
    examples: Iterable[Example],
    *,
    on_error: Callable[[Example, InputError], None] | None = None,
    source: Callable[[], str] | None = None,
) -> None:
    """Write a manifest that :func:`read_manifest` reads back as the same examples, replacing the file as a whole.

    Examples are written as they come: beside the images' names nothing is kept in memory.

    Args:
        path: the file.
        examples: what to write.
        on_error: called with an example that :func:`read_manifest` would refuse, and why; it is then left out. Where
            there is no ``on_error``, the error is raised.
        source: says where the example that was last taken comes from, for errors to name; else they name the line that
            it would have had.

    Raises:
        InputError: an example is one that :func:`read_manifest` would refuse (a :class:`RepeatedImageError` where its
            image is there already), or there is none to write. The file is then left as it was.
        OSError: the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, _lines(path, examples, on_error, source))


def merge_lists(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One ordered list out of several: the tags by their mean reciprocal position.

    The score of a tag is the sum over the lists of 1/(its 1-based position), 0 where a list does not have it, divided
    by the number of lists. Highest first, ties in alphabetical order. Scores are compared exactly: a floating point sum
    would leave it to rounding, and so to the order of the lists, which of two tied tags comes first.
    """
    # 1/p as an integer over the common denominator of all positions.
    denominator = math.lcm(*range(1, 1 + max((len(tags) for tags in lists), default=0)))
    scores: defaultdict[str, int] = defaultdict(int)
    for tags in lists:
        for position, tag in enumerate(tags, 1):
            scores[tag] += denominator // position
    return tuple(sorted(scores, key=lambda tag: (-scores[tag], tag)))


def _read_line(where: str, line: bytes) -> Example:
    try:
        return _example(parse_json(line.rstrip(b"\r\n").decode("utf-8")))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at {error.start + 1}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _lines(
    path: Path,
    examples: Iterable[Example],
    on_error: Callable[[Example, InputError], None] | None,
    source: Callable[[], str] | None,
) -> Iterator[bytes]:
    images: set[str] = set()
    for example in examples:
        where = f"{path}, line {len(images) + 1}" if source is None else source()
        try:
            yield _line(where, example, images)
        except InputError as error:
            if on_error is None:
                raise
            on_error(example, error)
    if not images:
        raise InputError(f"{path}: expected at least one example to write, got none")


def _line(where: str, example: Example, images: set[str]) -> bytes:
    """The line of an example, whose image is then among ``images``."""
    record: dict[str, Any] = {"image": example.image, "tags": example.tags}
    if example.lists != (example.tags,):
        record["lists"] = example.lists
    if example.split is not None:
        record["split"] = example.split
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n"
    if _read_line(where, line) != example:
        raise InputError(f"{where}: expected tuples of strings, got {example!r:.200}")
    image = posixpath.normpath(example.image)
    if image in images:
        raise RepeatedImageError(f"{where}: image {example.image!r} is there already")
    images.add(image)
    return line


def _example(record: Any) -> Example:
    """The example that a decoded line describes; a ValueError with the reason where it describes none."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {record!r:.60}")
    for field in record:
        if field not in FIELDS:
            raise ValueError(f"unknown field {field!r:.60}; known: {', '.join(FIELDS)}")
    if "image" not in record:
        raise ValueError("the field 'image' is missing")
    image = _image(record["image"])
    split = _text("split", record["split"]) if "split" in record else None

    lists: tuple[tuple[str, ...], ...] = ()
    if "lists" in record:
        value = record["lists"]
        if not isinstance(value, list) or not value:
            raise ValueError(f"lists: expected a list of lists of tags, at least one; got {value!r:.60}")
        lists = tuple(_tags(f"lists[{index}]", tags) for index, tags in enumerate(value))
    if "tags" in record:
        tags = _tags("tags", record["tags"])
        lists = lists or (tags,)
        unlisted = [tag for tag in tags if not any(tag in others for others in lists)]
        if unlisted:
            raise ValueError(f"tags: expected tags that are on one of the lists, {unlisted[0]!r:.60} is on none")
    elif lists:
        tags = merge_lists(lists)
    else:
        raise ValueError("expected 'tags' or 'lists', got neither")
    return Example(image, tags, lists, split)


def _image(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"image: expected a path, got {value!r:.60}")
    if _control(value):
        raise ValueError(f"image: expected a path without control characters, got {value!r:.200}")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"image: expected a path to a file inside the manifest's folder, got {value!r:.200}")
    return value


def _tags(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list of tags, at least one; got {value!r:.60}")
    # Interned, as many images have the same tags.
    tags = tuple(sys.intern(_text(f"{name}[{index}]", tag)) for index, tag in enumerate(value))
    if len(set(tags)) < len(tags):
        twice = next(tag for tag in tags if tags.count(tag) > 1)
        raise ValueError(f"{name}: the tag {twice!r:.60} is there twice")
    return tags


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string, got {value!r:.60}")
    if not value or value != value.strip() or _control(value):
        raise ValueError(
            f"{name}: expected text without white space around it or control characters in it, got {value!r:.60}"
        )
    return value


def _control(text: str) -> bool:
    """Whether there are control characters, line separators, or halves of surrogate pairs, which no file can hold."""
    if text.isprintable():  # no character of these kinds, nor of some others
        return False
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
