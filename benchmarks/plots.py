"""Plots of time against batch size, hidden size and time steps, with a line for each contestant."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]

AXES = {"B": "batch B", "H": "hidden size H", "T": "steps T"}
STYLES = {"ours": "-", "peer": "--", "floor": ":"}


def plot(rows: list[Row], path: Path) -> None:
    """Draw the rows of ``benchmarks.recurrence`` into ``path``.

    There is a panel for each mode and each of B, H and T that has more than one value. In it that size varies, and the
    other two have the middle one of their values. Both scales are logarithmic. Error bars are quartiles.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = {axis: sorted({row[axis] for row in rows}) for axis in AXES}
    axes = [axis for axis in AXES if len(values[axis]) > 1] or ["T"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    colors = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    figure, panels = plt.subplots(
        len(modes), len(axes), figsize=(4.2 * len(axes), 3.6 * len(modes)), squeeze=False, layout="constrained"
    )
    for j, axis in enumerate(axes):
        fixed = {other: values[other][len(values[other]) // 2] for other in AXES if other != axis}
        for i, mode in enumerate(modes):
            shown = [row for row in rows if row["mode"] == mode and all(row[a] == v for a, v in fixed.items())]
            for name in names:
                line = sorted((row for row in shown if row["name"] == name), key=lambda row: row[axis])
                if line:
                    _draw_line(panels[i][j], line, axis, colors.get(name))
            panels[i][j].set_xscale("log", base=2)
            panels[i][j].set_yscale("log")
            panels[i][j].set_xticks(values[axis], [str(value) for value in values[axis]])
            panels[i][j].set_xlabel(AXES[axis])
            panels[i][j].set_title(f"{mode}, " + ", ".join(f"{a} = {v}" for a, v in fixed.items()), fontsize=10)
            panels[i][j].grid(alpha=0.3)
    for first in panels[:, 0]:
        first.set_ylabel("milliseconds")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_line(panel: Any, rows: list[Row], axis: str, color: Any) -> None:
    """Draw the times of one contestant, whose rows are sorted along ``axis``, into a panel."""
    panel.errorbar(
        [row[axis] for row in rows],
        [row["ms"] for row in rows],
        yerr=[
            [row["ms"] - row["ms_quartiles"][0] for row in rows],
            [row["ms_quartiles"][1] - row["ms"] for row in rows],
        ],
        label=rows[0]["name"],
        color=color,
        linestyle=STYLES[rows[0]["kind"]],
        linewidth=2.5 if rows[0]["kind"] == "ours" else 1.2,
        marker="o",
        markersize=3,
    )
