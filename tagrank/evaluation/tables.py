"""Rows of metrics: on a terminal, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagrank.data.files import reason, write_atomically
from tagrank.errors import InputError
from tagrank.evaluation.narrow import BETWEEN, BORDER, fit

if TYPE_CHECKING:
    from rich.table import Table

    from tagrank.metrics import Comparison, FloatArray, Reliability
    from tagrank.model_card import JudgedBy

COLUMNS = {
    "ndcg@1": "NDCG@1",
    "ndcg@3": "NDCG@3",
    "ndcg@5": "NDCG@5",
    "ndcg@10": "NDCG@10",
    "first_tag": "first tag",
    "precision@5": "P@5",
    "recall@5": "R@5",
    "f1@5": "F1@5",
    "rbo": "RBO",
    "kendall_tau": "tau",
    "overlap": "on tags",
    "nll": "NLL",
}
CONTEST_COLUMNS = {
    **{key: COLUMNS[key] for key in ("ndcg@1", "ndcg@3", "ndcg@5", "first_tag")},
    "list_f1": "list F1",
    "length_error": "length off",
    "next_tag@2": "tag 2",
    "next_tag@3": "tag 3",
    "next_tag@4": "tag 4",
}
"""The columns of :func:`tagrank.evaluation.contest.contest`."""

_IMPORTANT = ("ndcg@5", "first_tag", "ndcg@1", "ndcg@10", "ndcg@3", "rbo")
"""What a narrow terminal shows first."""


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    all_measures: bool = False,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Print a table on stdout. A measure that a row does not have is a dash.

    Args:
        rows: the rows.
        title: what the rows say, in a line above the table.
        all_measures: if a terminal is too narrow for all measures, print several tables, and not only the first.
        columns: the headings of the measures to show.
    """
    keys = list(columns)
    ordered = [key for key in dict.fromkeys((*_IMPORTANT, *keys)) if key in columns]
    _print(
        ["", *columns.values()],
        [[row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in keys)] for row in rows],
        title=title,
        importance=[keys.index(key) for key in ordered],
        whole=all_measures,
        hint="--all shows all {} measures",
    )


def print_comparison(comparison: Mapping[str, "Comparison"], other: str) -> None:
    """Print for each measure how far a model is ahead of another model, and whether that may be chance.

    Args:
        comparison: as :func:`tagrank.metrics.compare` returns it.
        other: the name of the other model.
    """
    headings = ["", "difference", "95% interval", "p", ""]
    cells = [
        [
            COLUMNS[key],
            f"{c.difference:+.4f}",
            f"{c.interval[0]:+.4f} to {c.interval[1]:+.4f}",
            f"{c.p_value:.4f}",
            "real" if c.real else "may be chance",
        ]
        for key in COLUMNS
        if (c := comparison.get(key)) is not None
    ]
    _print(headings, cells, title=f"tagrank less {other}")


def retrieval_rows(found: Mapping[str, Mapping[str, "FloatArray"]]) -> list[dict[str, Any]]:
    """One row for each way to search: means over the queries.

    Args:
        found: as :func:`tagrank.retrieval.ndcg.evaluate_retrieval` returns it.
    """
    from tagrank.metrics import summarise

    return [{"name": name, **summarise(values)} for name, values in found.items()]


def print_retrieval(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of :func:`retrieval_rows` on stdout."""
    keys = [key for key in rows[0] if key != "name"]
    _print(
        ["search by", *(key.upper() for key in keys)],
        [[row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in keys)] for row in rows],
    )


def print_completion(rows: Sequence[Mapping[str, Any]], *, all_measures: bool = False) -> None:
    """Print the rows of :func:`tagrank.evaluation.next_tag_judgement.completion_rows` on stdout.

    Args:
        rows: the rows.
        all_measures: as for :func:`print_rows`.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("name", "intervals")))
    if not keys:
        return
    headings = ["tag", *("{1}: {0}".format(*key.replace("nll", "NLL").split("/")) for key in keys)]
    _print(
        headings,
        [[row["name"], *(f"{row[key]:.3f}" if key in row else "-" for key in keys)] for row in rows],
        title="Lists that people began: tags 2, 3 and 4, given those before them",
        whole=all_measures,
        hint="--all shows all {} measures",
    )


def _print(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    importance: Sequence[int] = (),
    whole: bool = True,
    hint: str = "",
) -> None:
    """Print a table on stdout, or several if it is wider than the terminal. A pipe or a file has no width.

    Args:
        headings: of the columns; the first column has names.
        rows: the cells.
        title: a line above the table.
        importance: the columns after the first, by number, the most important first. Default: from left to right.
        whole: whether to print further tables, with the columns that the first has no room for.
        hint: says how to see what is not printed; ``{}`` stands for the number of columns.
    """
    import typer
    from rich.cells import cell_len
    from rich.console import Console

    columns = list(zip(headings, *rows, strict=True))
    names, *widths = (max(map(cell_len, column)) for column in columns)
    needed = BORDER + sum(width + BETWEEN for width in (names, *widths))
    here = Console()
    available = here.width if here.is_terminal else needed
    names, tables = fit(names, widths, importance or range(len(widths)), available)
    with (console := Console(width=max(available, needed))).capture() as text:
        for chosen in tables if whole else tables[:1]:
            console.print(_table([columns[0], *(columns[1 + c] for c in chosen)], names))
    if title:
        typer.echo(title)
    typer.echo(text.get(), nl=False)
    if len(tables) > 1 and not whole:
        typer.echo(hint.format(len(widths)))


def _table(columns: Sequence[Sequence[str]], names: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, (heading, *_) in enumerate(columns):
        if place:
            table.add_column(Text(heading), justify="right", no_wrap=True)
        else:
            table.add_column(Text(heading), width=names, overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def write_rows(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    comparison: Mapping[str, "Comparison"] | None = None,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    completion: Sequence[Mapping[str, Any]] | None = None,
    seen: int = 0,
    calibration: "Reliability | None" = None,
    model: "JudgedBy | None" = None,
) -> None:
    """Write ``{"rows": [...], "seen": 0}`` to a JSON file. An existing file is replaced as a whole, or stays as it was.

    Args:
        path: the file.
        rows: the table.
        comparison: written as ``"comparison"``: for each measure ``difference``, ``interval``, ``p_value``, ``images``
            and ``real``.
        retrieval: rows, written as ``"retrieval"``.
        completion: rows, written as ``"completion"``.
        seen: how many of the images that judge the model was trained or validated on.
        calibration: of the model's scores, written as ``"calibration"``: ``error`` and the bins of the diagram.
        model: which model it is and which images judged it, written as ``"model"``.

    Raises:
        InputError: the file cannot be written.
    """
    record: dict[str, Any] = {"rows": list(rows), "seen": seen}
    if model is not None:
        record["model"] = asdict(model)
    if calibration is not None:
        bins = {name: values.tolist() for name, values in vars(calibration).items()}
        record["calibration"] = {"error": calibration.error if len(calibration.counts) else None, **bins}
    if comparison is not None:
        record["comparison"] = {key: {**asdict(c), "real": c.real} for key, c in comparison.items()}
    if retrieval is not None:
        record["retrieval"] = list(retrieval)
    if completion is not None:
        record["completion"] = list(completion)
    try:
        write_atomically(path, [json.dumps(record, indent=2, allow_nan=False).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
