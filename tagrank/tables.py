"""Rows of metrics: on a terminal, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagrank.data.files import reason, write_atomically
from tagrank.errors import InputError

COLUMNS = {
    "ndcg@1": "NDCG@1",
    "ndcg@3": "@3",
    "ndcg@5": "@5",
    "ndcg@10": "@10",
    "first_tag": "first tag",
    "precision@5": "P@5",
    "recall@5": "R@5",
    "f1@5": "F1@5",
    "rbo": "RBO",
    "kendall_tau": "tau",
    "overlap": "on tags",
    "nll": "NLL",
}


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table on stdout; what a row does not have is a dash."""
    import typer
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row[key]:.3f}" if key in row else "-" for key in COLUMNS]
        table.add_row(row["name"], *cells)
    # A pipe or a file has no width that a table should be cut to.
    console = Console()
    with (wide := Console(width=None if console.is_terminal else 140)).capture() as text:
        wide.print(table)
    typer.echo(text.get(), nl=False)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``{"rows": [...]}`` to a JSON file, replacing it as a whole.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_atomically(path, [json.dumps({"rows": list(rows)}, indent=2, allow_nan=False).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
