"""Any CSV file with a column of images and a column of ordered tags."""

from collections.abc import Iterator
from pathlib import Path

from tagrank.data.sets.delimited import read_image_rows
from tagrank.data.sets.records import ImageFolder, Record, SkipError, make_record

SPLITS = ("train", "val", "validation", "test", "")


def read_csv(
    path: Path,
    images: ImageFolder,
    *,
    image_column: str = "image",
    tags_column: str = "tags",
    split_column: str | None = None,
    separator: str = ",",
    delimiter: str = ",",
) -> Iterator[Record]:
    """Read the images of a CSV file. Each row is one person's list; adjacent rows with the same image are one example.

    Args:
        path: the file, in the format of :func:`~tagrank.data.sets.delimited.read_image_rows`.
        images: the folder that the image paths are relative to.
        image_column: the column of image paths.
        tags_column: the column of lists, the most important tag first. White space around tags is removed.
        split_column: the column of splits: ``train``, ``val``, ``validation``, ``test`` or blank. None if the file has
            no such column.
        separator: the text between the tags of a list.
        delimiter: the character between columns.

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
            yield _record(where, group.image, [row for _, row in group.rows], images, separator)
        except SkipError as skip:
            yield skip


def _record(where: str, image: str, rows: list[list[str]], images: ImageFolder, separator: str) -> Record:
    if not image:
        raise SkipError(where, "no image named")
    splits = {row[2].strip() for row in rows if len(row) > 2}
    if len(splits) > 1:
        raise SkipError(where, "image in several splits", ", ".join(sorted(splits)))
    for split in splits.difference(SPLITS):
        raise SkipError(where, "unknown split", f"expected train, val, validation or test, got {split!r:.60}")
    lists = [[tag for part in row[1].split(separator) if (tag := part.strip())] for row in rows]
    lists = [tags for tags in lists if tags]
    if not lists:
        raise SkipError(where, "no tags", fault=False)
    return make_record(where, images.name(image), lists, splits.pop() or None if splits else None)
