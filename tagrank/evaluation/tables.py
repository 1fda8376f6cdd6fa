"""Rows of metrics: on a terminal, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagrank.data.files import reason, write_atomically
from tagrank.errors import InputError

if TYPE_CHECKING:
    from tagrank.metrics import FloatArray
    from tagrank.metrics.significance import Comparison

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
    """Print a table on stdout, with a dash for each measure that a row does not have."""
    _print(
        ["", *COLUMNS.values()],
        [[row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in COLUMNS)] for row in rows],
    )


def print_comparison(comparison: Mapping[str, "Comparison"], other: str) -> None:
    """Print for each measure by how much a model is ahead of another model, and whether that may be chance."""
    headings = ["", f"less {other}", "95% interval", "p", ""]
    cells = [
        [
            COLUMNS[key] if key.partition("@")[0] != "ndcg" else f"NDCG@{key.partition('@')[2]}",
            f"{c.difference:+.4f}",
            f"{c.interval[0]:+.4f} to {c.interval[1]:+.4f}",
            f"{c.p_value:.4f}",
            "real" if c.real else "may be chance",
        ]
        for key in COLUMNS
        if (c := comparison.get(key)) is not None
    ]
    _print(headings, cells)


def retrieval_rows(found: Mapping[str, Mapping[str, "FloatArray"]]) -> list[dict[str, Any]]:
    """The result of :func:`tagrank.retrieval.ndcg.evaluate_retrieval` as rows of means over the queries."""
    from tagrank.metrics import summarise

    return [{"name": name, **summarise(values)} for name, values in found.items()]


def print_retrieval(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of :func:`retrieval_rows` on stdout."""
    keys = [key for key in rows[0] if key != "name"]
    _print(
        ["search by", *(key.upper() for key in keys)],
        [[row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in keys)] for row in rows],
    )


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    # Do not cut a table to the default terminal width if the output is a pipe or a file.
    console = Console()
    with (wide := Console(width=None if console.is_terminal else 160)).capture() as text:
        wide.print(table)
    typer.echo(text.get(), nl=False)


def write_rows(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    comparison: Mapping[str, "Comparison"] | None = None,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write ``{"rows": [...]}`` to a JSON file, replacing it as a whole.

    Args:
        path: the file.
        rows: the table.
        comparison: written as ``"comparison"``: for each measure ``difference``, ``interval``, ``p_value``, ``images``
            and ``real``.
        retrieval: rows, written as ``"retrieval"``.

    Raises:
        InputError: the file cannot be written.
    """
    record: dict[str, Any] = {"rows": list(rows)}
    if comparison is not None:
        record["comparison"] = {key: {**asdict(c), "real": c.real} for key, c in comparison.items()}
    if retrieval is not None:
        record["retrieval"] = list(retrieval)
    try:
        write_atomically(path, [json.dumps(record, indent=2, allow_nan=False).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
