"""CSV files, read row by row."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from tagrank.data.files import reason
from tagrank.data.sets.records import SkipError
from tagrank.errors import InputError


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
