"""CSV files, read row by row, and the adjacent rows of one image."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from tagrank.data.files import reason
from tagrank.data.sets.records import SkipError
from tagrank.errors import InputError

SEPARATOR = re.compile(r'"?sep=([^"])"?')
"""The first line of a file for Excel, where the character between fields depends on the country."""


class ImageRows(NamedTuple):
    """Consecutive rows of a CSV file that name the same image.

    Attributes:
        image: the image, as the first column of the rows names it.
        rows: for each row, ``FILE, line N`` and its fields.
    """

    image: str
    rows: list[tuple[str, list[str]]]


Columns = Sequence[str] | Callable[[list[str]], Sequence[str]]


def read_table(path: Path, columns: Columns, delimiter: str = ",") -> Iterator[tuple[int, list[str] | SkipError]]:
    """Read some columns of a CSV file in UTF-8 (RFC 4180). The file is read once, so that it may be a pipe.

    A byte order mark is allowed, and line ends may be ``\\n`` or ``\\r\\n``. Blank lines are skipped. A first line
    ``sep=;``, which Excel understands, names the character between fields.

    Args:
        path: the file; its first row names the columns.
        columns: the names of the columns to read, or a function that chooses them from the names of all columns.
        delimiter: the character between fields.

    Yields:
        The number of the row's last line, and the fields of ``columns``. If the row is longer or shorter than the
        header, a :class:`SkipError` takes the place of the fields.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not CSV, or one of ``columns`` is missing or repeated.
    """
    rows = read_rows(path, delimiter)
    header = next((row for _, row in rows), None)
    if header is None:
        raise InputError(f"{path}: expected a first line with the names of the columns, the file is empty")
    header = [name.strip() for name in header]
    wanted = columns(header) if callable(columns) else columns
    for column in wanted:
        if header.count(column) != 1:
            problem = "appears more than once" if column in header else "is missing"
            raise InputError(f"{path}: the column {column!r} {problem}; columns: {', '.join(header)}")
    places = [header.index(column) for column in wanted]
    for line, row in rows:
        if len(row) == len(header):
            yield line, [row[place] for place in places]
        else:
            detail = f"expected {len(header)} fields, got {len(row)}"
            yield line, SkipError(f"{path}, line {line}", "row with the wrong number of fields", detail)


def read_image_rows(
    path: Path, columns: Columns, delimiter: str = ",", *, name: Callable[[str], str] = str
) -> Iterator[ImageRows | SkipError]:
    """The rows of :func:`read_table`, grouped while consecutive rows name the same image.

    Args:
        path: the file.
        columns: as for :func:`read_table`; the first one names the image.
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


def read_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, as :func:`read_table` reads them, with the number of each row's last line.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not CSV.
    """
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            named = SEPARATOR.fullmatch(first.rstrip("\r\n"))
            lines = chain(["\n" if named else first], file)
            rows = csv.reader(lines, delimiter=named[1] if named else delimiter, strict=True)
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
