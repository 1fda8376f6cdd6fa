"""Any CSV file with a column of images and a column of ordered tags."""

import json
import re
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tagrank.data.sets.delimited import read_image_rows
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record
from tagrank.data.spellings import tag_name

SPLITS = ("train", "val", "validation", "test", "")
TEXT = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
"""A text in quotes, as Python and JSON write it."""
LIST = re.compile(rf"\s*(?:(?:{TEXT.pattern})(?:\s*,\s*|\s+|\s*$))*")

Rows = Sequence[tuple[str, list[str]]]


def read_csv(
    path: Path,
    images: ImageFolder,
    *,
    image_column: str = "image",
    tags_column: str = "tags",
    split_column: str | None = None,
    separator: str = ",",
    delimiter: str = ",",
    tag: Callable[[str], str] = tag_name,
) -> Iterator[Record]:
    """Read the images of a CSV file. Each row is one person's list; adjacent rows with the same image are one example.

    A cell in brackets is a list as programs print it: ``['dog', "cat's paw"]`` in Python, JSON or NumPy.

    Args:
        path: the file, in the format of :func:`~tagrank.data.sets.delimited.read_image_rows`.
        images: the folder that the image paths are relative to.
        image_column: the column of image paths.
        tags_column: the column of lists, the most important tag first. White space around tags is removed.
        split_column: the column of splits: ``train``, ``val``, ``validation``, ``test`` or blank. None if the file has
            no such column.
        separator: the text between the tags of a list.
        delimiter: the character between columns.
        tag: makes a tag from a name.

    Raises:
        InputError: the file cannot be read or lacks a column.
    """
    columns = [image_column, tags_column, *([split_column] if split_column else [])]
    for group in read_image_rows(path, columns, delimiter, name=str.strip):
        if isinstance(group, SkipError):
            yield group
            continue
        where = group.rows[0][0]
        try:
            yield _record(where, group.image, group.rows, images, separator, tag)
        except SkipError as skip:
            yield skip


def _record(
    where: str, image: str, lines: Rows, images: ImageFolder, separator: str, tag: Callable[[str], str]
) -> Record:
    if not image:
        raise SkipError(where, "no image named")
    splits = {row[2].strip() for _, row in lines if len(row) > 2}
    if len(splits) > 1:
        raise SkipError(where, "image in several splits", ", ".join(sorted(splits)))
    for split in splits.difference(SPLITS):
        raise SkipError(where, "unknown split", f"expected train, val, validation or test, got {split!r:.60}")
    cells = [_names(line, row[1].strip(), separator) for line, row in lines]
    lists = [tags for names in cells if (tags := [name for name in map(tag, names) if name])]
    if not lists:
        raise SkipError(where, "no tags", fault=False)
    return make_record(where, images.name(image), lists, splits.pop() or None if splits else None)


def _names(where: str, cell: str, separator: str) -> list[str]:
    """The names in a cell of tags."""
    if cell[:1] + cell[-1:] not in ("[]", "()", "{}"):
        return cell.split(separator)
    if cell[0] == "{" or not LIST.fullmatch(cell[1:-1]):
        raise SkipError(where, "tags in brackets", f"expected a list such as ['dog', 'ball'], got {cell!r:.60}")
    return [_unquoted(where, text) for text in TEXT.findall(cell)]


def _unquoted(where: str, text: str) -> str:
    """What a text in quotes stands for, in JSON or else in Python."""
    try:
        return str(json.loads(text))
    except ValueError:
        pass
    try:
        return str(literal_eval(text))
    except (SyntaxError, ValueError) as error:
        raise SkipError(where, "tags in brackets", f"expected texts in quotes, got {text!r:.60}") from error
