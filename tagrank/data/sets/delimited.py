"""CSV files, read row by row, and the adjacent rows of one image."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tagrank.data.files import reason
from tagrank.data.sets.records import SkipError
from tagrank.errors import InputError


class ImageRows(NamedTuple):
    """Consecutive rows of a CSV file that name the same image.

    Attributes:
        image: the image, as the first column of the rows names it.
        rows: for each row, ``FILE, line N`` and its fields.
    """

    image: str
    rows: list[tuple[str, list[str]]]


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The fields of a file's first row, without white space around them.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    for _, row in _rows(path, delimiter):
        return [name.strip() for name in row]
    raise InputError(f"{path}: expected a first line with the names of the columns, the file is empty")


def read_table(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, list[str] | SkipError]]:
    """Read some columns of a CSV file in UTF-8 (RFC 4180).

    A byte order mark is allowed, and line ends may be ``\\n`` or ``\\r\\n``. Blank lines are skipped.

    Args:
        path: the file; its first row names the columns.
        columns: the names of the columns to read.
        delimiter: the character between fields.

    Yields:
        The number of the row's last line, and the fields of ``columns``. If the row is longer or shorter than the
        header, a :class:`SkipError` takes the place of the fields.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not CSV, or one of ``columns`` is missing or repeated.
    """
    header = read_header(path, delimiter)
    for column in columns:
        if header.count(column) != 1:
            problem = "appears more than once" if column in header else "is missing"
            raise InputError(f"{path}: the column {column!r} {problem}; columns: {', '.join(header)}")
    places = [header.index(column) for column in columns]
    rows = _rows(path, delimiter)
    next(rows)
    for line, row in rows:
        if len(row) == len(header):
            yield line, [row[place] for place in places]
        else:
            detail = f"expected {len(header)} fields, got {len(row)}"
            yield line, SkipError(f"{path}, line {line}", "row with the wrong number of fields", detail)


def read_image_rows(
    path: Path, columns: Sequence[str], delimiter: str = ",", *, name: Callable[[str], str] = str
) -> Iterator[ImageRows | SkipError]:
    """The rows of :func:`read_table`, grouped while consecutive rows name the same image.

    Args:
        path: the file.
        columns: the columns to read; the first one names the image.
        delimiter: the character between two fields.
        name: makes an image's name from its field.

    Yields:
        The rows of one image, or the :class:`SkipError` of a row whose length is wrong.

    Raises:
        InputError: as :func:`read_table`.
    """
    table = read_table(path, columns, delimiter)
    for image, group in groupby(table, key=lambda row: row[1] if isinstance(row[1], SkipError) else name(row[1][0])):
        if isinstance(image, SkipError):
            yield image
        else:
            yield ImageRows(image, [(f"{path}, line {line}", row) for line, row in group if isinstance(row, list)])


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            for row in rows:
                line = rows.line_num
                if row:
                    yield line, row
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8, somewhere after line {line}") from error
    except csv.Error as error:
        raise InputError(f"{path}, after line {line}: not CSV ({error})") from error
