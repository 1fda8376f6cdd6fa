"""Which columns of a table fit a narrow terminal. The first column, of names, always does."""

from collections.abc import Sequence

BORDER = 1
BETWEEN = 3
"""A space on both sides of a column, and a line."""
NARROWEST = 12
"""Names have at least this many characters in a line, unless they are shorter."""


def fit(names: int, widths: Sequence[int], importance: Sequence[int], available: int) -> tuple[int, list[list[int]]]:
    """Divide a table into tables that fit.

    Args:
        names: the length of the longest name.
        widths: of the other columns.
        importance: the other columns by number, the most important first.
        available: the width of the terminal.

    Returns:
        The width of the names, which then take several lines, and the columns of each table in ascending order. The
        most important columns are in the first table. Each has at least one column, even if that does not fit.
    """
    if BORDER + sum(width + BETWEEN for width in (names, *widths)) <= available:
        return names, [list(range(len(widths)))]
    names = min(names, max(available // 2, NARROWEST))
    room = available - BORDER - names - BETWEEN
    tables: list[list[int]] = []
    first = _take(importance, widths, room)
    tables.append(sorted(first))
    rest = [column for column in range(len(widths)) if column not in first]
    while rest:
        tables.append(_take(rest, widths, room))
        rest = rest[len(tables[-1]) :]
    return names, tables


def _take(columns: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    """The first columns that fit together, at least one."""
    taken = [columns[0]]
    for column in columns[1:]:
        if sum(widths[c] + BETWEEN for c in (*taken, column)) > room:
            break
        taken.append(column)
    return taken
