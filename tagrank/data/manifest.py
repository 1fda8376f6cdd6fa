"""Manifests: which images a data set has, and which tags people gave them.

A manifest is a file with one JSON object a line, one line per image::

    {"image": "a.jpg", "tags": ["dog", "ball"]}
    {"image": "b.jpg", "lists": [["dog", "ball"], ["ball"]], "split": "val"}

``image`` is a path relative to the manifest's folder, or an absolute path below it. ``tags`` is one ordered list, most
important first. ``lists`` has one such list per annotator. A line must have ``tags`` or ``lists``. If it has both, each
of ``tags`` must be on at least one of ``lists``. ``split`` is optional.
"""

import codecs
import json
import math
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from tagrank.data.files import first_repeated, parse_json, reason, write_atomically
from tagrank.data.spellings import find_file, image_key, tag_name
from tagrank.errors import InputError

FIELDS = ("image", "tags", "lists", "split")


class RepeatedImageError(InputError):
    """The manifest already has a line for this image."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image and its ordered lists of tags.

    Attributes:
        image: path relative to the manifest's folder, exactly as the manifest writes it, unless that is absolute.
        tags: one ordered list, most important first.
        lists: one ordered list per annotator; ``(tags,)`` if the manifest has only ``tags``.
        split: the part of the data that the image belongs to; None if the manifest does not say.
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
        """The path of an example's image (:func:`tagrank.data.spellings.find_file`). It need not exist."""
        return find_file(self.root, example.image)

    def select(self, split: str) -> "Manifest":
        """The examples of one split, in the same order.

        Raises:
            InputError: no example belongs to ``split``.
        """
        examples = tuple(example for example in self.examples if example.split == split)
        if not examples:
            names = sorted({example.split for example in self.examples if example.split is not None})
            raise InputError(
                f"{self.path}: no example of split {split!r}; splits in this file: {', '.join(names) or 'none'}"
            )
        return Manifest(self.path, examples)

    def __len__(self) -> int:
        return len(self.examples)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest, strictly: any fault in the file is an error. Nothing is repaired or skipped.

    A byte order mark, Windows line ends and blank lines at the end of the file are allowed. If a line has no ``tags``,
    they are :func:`merge_lists` of ``lists``. If a line has no ``lists``, they are ``(tags,)``. Tags are brought to
    Unicode's normal form NFC, in which equal texts are equal.

    Raises:
        InputError: ``FILE, line N: reason`` if the line is not UTF-8 or not a JSON object; a field is unknown, missing
            or of the wrong type; a list is empty or repeats a tag; a tag is blank, has white space around it or
            contains control characters; one of ``tags`` is on none of ``lists``; an image repeats one of an earlier
            line; or an image's path leaves the manifest's folder.
            ``FILE: reason`` if the file cannot be read or is empty.
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
                example = _read_line(where, line, path.parent)
                first = line_of.setdefault(image_key(example.image), number)
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
    """Write a manifest that :func:`read_manifest` reads back as the same examples. The file is replaced atomically.

    Each example is written as soon as ``examples`` yields it. Only the images' names are kept in memory.

    Args:
        path: the file.
        examples: the examples to write.
        on_error: called with an example that :func:`read_manifest` would refuse, and with the error. The example is
            then left out. If ``on_error`` is None, the error is raised.
        source: returns the place that the last example taken from ``examples`` was read from; error messages begin
            with this place. If None, they begin with ``path`` and the line that the example would have had.

    Raises:
        InputError: :func:`read_manifest` would refuse an example (a :class:`RepeatedImageError` if its image is
            already written), or no example is left to write. The file is then unchanged.
        OSError: the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, _lines(path, examples, on_error, source))


def merge_lists(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Merge ordered lists into one: the tags by their mean reciprocal position.

    The score of a tag is the mean over the lists of 1/p, where p is the tag's 1-based position in the list. A list
    without the tag counts as 0. The highest score comes first, ties are in alphabetical order. Scores are compared
    exactly. In floating point, rounding would break ties by the order of the lists.
    """
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for tags in lists:
        for position, tag in enumerate(tags, 1):
            positions[tag].append(position)
    # Sums in floating point are off by less than this. Tags whose sums are further apart are in their right order.
    margin = 1e-15 * (2 + len(lists))
    scores = {tag: math.fsum(1 / p for p in at) for tag, at in positions.items()}
    order = sorted(scores, key=lambda tag: (-scores[tag], tag))
    merged: list[str] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or scores[order[end - 1]] - scores[order[end]] > margin:
            merged += _sort_exactly(order[start:end], positions)
            start = end
    return tuple(merged)


def _sort_exactly(tags: list[str], positions: Mapping[str, Sequence[int]]) -> list[str]:
    """Tags by their exact scores, for the few whose scores are too close to be told apart in floating point."""
    if len({tuple(sorted(positions[tag])) for tag in tags}) == 1:
        return sorted(tags)
    exact = {tag: sum(Fraction(1, p) for p in positions[tag]) for tag in tags}
    return sorted(tags, key=lambda tag: (-exact[tag], tag))


def _read_line(where: str, line: bytes, root: Path) -> Example:
    try:
        return _example(parse_json(line.rstrip(b"\r\n").decode("utf-8")), root)
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
            yield _line(where, example, images, path.parent)
        except InputError as error:
            if on_error is None:
                raise
            on_error(example, error)
    if not images:
        raise InputError(f"{path}: expected at least one example to write, got none")


def _line(where: str, example: Example, images: set[str], root: Path) -> bytes:
    """Encode an example as a line and add its image to ``images``."""
    record: dict[str, Any] = {"image": example.image, "tags": example.tags}
    if example.lists != (example.tags,):
        record["lists"] = example.lists
    if example.split is not None:
        record["split"] = example.split
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n"
    if _read_line(where, line, root) != example:
        raise InputError(f"{where}: expected tuples of strings in Unicode's normal form NFC, got {example!r:.200}")
    image = image_key(example.image)
    if image in images:
        raise RepeatedImageError(f"{where}: image {example.image!r} is already in the manifest")
    images.add(image)
    return line


def _example(record: Any, root: Path) -> Example:
    """The example that a decoded line describes. Raises a ValueError if the line is not valid."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {record!r:.60}")
    for field in record:
        if field not in FIELDS:
            raise ValueError(f"unknown field {field!r:.60}; known: {', '.join(FIELDS)}")
    if "image" not in record:
        raise ValueError("the field 'image' is missing")
    image = _image(record["image"], root)
    split = _text("split", record["split"]) if "split" in record else None

    lists: tuple[tuple[str, ...], ...] = ()
    if "lists" in record:
        value = record["lists"]
        if not isinstance(value, list) or not value:
            raise ValueError(f"lists: expected a non-empty list of lists of tags, got {value!r:.60}")
        lists = tuple(_tags(f"lists[{index}]", tags) for index, tags in enumerate(value))
    if "tags" in record:
        tags = _tags("tags", record["tags"])
        lists = lists or (tags,)
        listed = {tag for others in lists for tag in others}
        unlisted = [tag for tag in tags if tag not in listed]
        if unlisted:
            raise ValueError(f"tags: expected each tag on at least one of the lists, {unlisted[0]!r:.60} is on none")
    elif lists:
        tags = merge_lists(lists)
    else:
        raise ValueError("expected 'tags' or 'lists', got neither")
    return Example(image, tags, lists, split)


def _image(value: Any, root: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"image: expected a path, got {value!r:.60}")
    if _control(value):
        raise ValueError(f"image: expected a path without control characters, got {value!r:.200}")
    path = PurePosixPath(value)
    for folder in (root.absolute(), root.resolve()) if path.is_absolute() else ():
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
            value = path.as_posix()
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"image: expected a path to a file inside the manifest's folder, got {value!r:.200}")
    return str(value)


def _tags(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a non-empty list of tags, got {value!r:.60}")
    # Many images have the same tags: interning keeps one string per tag in memory.
    tags = tuple(sys.intern(tag_name(_text(f"{name}[{index}]", tag))) for index, tag in enumerate(value))
    if len(set(tags)) < len(tags):
        twice = first_repeated(tags)
        raise ValueError(f"{name}: expected each tag once, got {twice!r:.60} twice")
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
    """Whether a text has control characters, line separators, or lone surrogates, which UTF-8 cannot encode."""
    if text.isprintable():  # the fast path: printable text has no such character
        return False
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
