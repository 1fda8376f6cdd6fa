"""Tables on a terminal of any width: names can be read, and no number is cut."""

import os
import pty
import re
import subprocess
import sys
from itertools import product

import pytest

from tagrank.evaluation.narrow import BETWEEN, BORDER, fit
from tagrank.evaluation.tables import COLUMNS, CONTEST_COLUMNS

NAMES = ["tagrank, headline", "captioning LSTM, expected gain", "models/" + "x" * 90 + ", headline"]


@pytest.mark.parametrize(("names", "available"), [*product([5, 30, 100], [20, 40, 60, 80, 100, 120, 200])])
def test_fit(names: int, available: int) -> None:
    widths = [6, 6, 6, 7, 9, 5, 5, 5, 5, 5, 7, 6]
    importance = [2, 4, 0, 3, 1, *range(5, 12)]
    width, tables = fit(names, widths, importance, available)
    assert sorted(column for table in tables for column in table) == list(range(12))
    assert all(table == sorted(table) for table in tables)
    assert set(importance[: len(tables[0])]) == set(tables[0])
    assert min(names, 12) <= width <= names
    for table in tables:
        assert BORDER + sum(w + BETWEEN for w in (width, *(widths[c] for c in table))) <= available or len(table) == 1
    if len(tables) == 1:
        assert width == names


def on_a_terminal(code: str, columns: int) -> str:
    leader, follower = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, env=environment)
    os.close(follower)
    output = b""
    try:
        while piece := os.read(leader, 65536):
            output += piece
    except OSError:  # how Linux says that the other side was closed
        pass
    os.close(leader)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).replace("\r\n", "\n")


def printed(columns: int, **options: object) -> str:
    code = f"""
from tagrank.evaluation.tables import COLUMNS, print_rows
rows = [{{"name": name, **dict.fromkeys(COLUMNS, 0.5)}} for name in {NAMES!r}]
print_rows(rows, title="Judged by 3 images", **{options!r})
"""
    return on_a_terminal(code, columns)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│" if "│" in line else "┃")[1:-1]]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_rows_on_a_narrow_terminal(columns: int) -> None:
    text = printed(columns)
    title, *table, hint = text.strip().splitlines()
    assert title == "Judged by 3 images"
    assert hint == "--all shows all 12 measures"
    assert all(len(line) <= columns for line in table)
    headings, *rows = [cells(line) for line in table if "│" in line or "┃" in line]
    assert "NDCG@5" in headings
    assert set(headings[1:]) <= set(COLUMNS.values())
    # A long name takes several lines, of which the first has the numbers.
    names = "".join(row[0] + (" " if row[0].endswith(",") else "") for row in rows).replace(" ", "")
    assert names == "".join(NAMES).replace(" ", "")
    assert [row[1:] for row in rows if row[1]] == [["0.500"] * (len(headings) - 1)] * 3


def test_all_measures_on_a_narrow_terminal() -> None:
    text = printed(60, all_measures=True)
    assert "--all" not in text
    assert all(len(line) <= 60 for line in text.splitlines())
    headings = [cells(line)[1:] for line in text.splitlines() if "┃" in line]
    assert len(headings) > 1
    assert sorted(heading for some in headings for heading in some) == sorted(COLUMNS.values())


def test_other_columns() -> None:
    code = "from tagrank.evaluation.tables import *; "
    code += "print_rows([{'name': 'a', 'list_f1': 0.25, 'nll': 1.0}], columns=CONTEST_COLUMNS)"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    headings, row = (cells(line) for line in text.splitlines() if "┃" in line or "│" in line)
    assert headings == ["", *CONTEST_COLUMNS.values()]
    assert row == ["a", *("0.250" if heading == "list F1" else "-" for heading in headings[1:])]


def test_a_wide_terminal_and_a_pipe_have_one_table() -> None:
    code = "import sys; from tagrank.evaluation.tables import *; "
    code += "print_rows([{'name': 'a' * 300, **dict.fromkeys(COLUMNS, 0.25)}])"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for text, name in ((printed(250), NAMES[0]), (piped, "a" * 300)):
        (headings,) = [cells(line) for line in text.splitlines() if "┃" in line]
        assert headings == ["", *COLUMNS.values()]
        assert name in text


def test_a_comparison_on_a_narrow_terminal() -> None:
    code = f"""
from tagrank.evaluation.tables import COLUMNS, print_comparison
from tagrank.metrics import Comparison
difference = Comparison(0.01, (0.0, 0.02), 0.04, 9)
print_comparison(dict.fromkeys(COLUMNS, difference), {"models/" + "x" * 60!r})
"""
    for columns in (40, 80):
        text = on_a_terminal(code, columns)
        title, *table = text.splitlines()
        assert title == "tagrank less models/" + "x" * 60
        assert all(len(line) <= columns for line in table)
        for word in (*COLUMNS.values(), "+0.0100", "+0.0000 to +0.0200", "0.0400", "real"):
            assert word in text
