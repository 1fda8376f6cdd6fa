"""Time against batch, hidden size and steps, a line for each contestant."""

from pathlib import Path
from typing import Any

AXES = {"B": "batch B", "H": "hidden size H", "T": "steps T"}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the rows of ``benchmarks.recurrence`` into ``path``: a row of panels for each mode, a panel for each axis.

    In each panel one of B, H and T varies, and the others have the middle one of the values that were measured. Axes
    with a single value have no panel. Both scales are logarithmic; bars are quartiles.
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
    for i, mode in enumerate(modes):
        for j, axis in enumerate(axes):
            fixed = {other: values[other][len(values[other]) // 2] for other in AXES if other != axis}
            panel = panels[i][j]
            for name in names:
                chosen = [
                    row
                    for row in rows
                    if row["name"] == name and row["mode"] == mode and all(row[a] == v for a, v in fixed.items())
                ]
                if not chosen:
                    continue
                chosen.sort(key=lambda row: row[axis])
                times = [row["ms"] for row in chosen]
                spread = [
                    [row["ms"] - row["ms_quartiles"][0] for row in chosen],
                    [row["ms_quartiles"][1] - row["ms"] for row in chosen],
                ]
                style = {"ours": "-", "peer": "--", "floor": ":"}[chosen[0]["kind"]]
                panel.errorbar(
                    [row[axis] for row in chosen],
                    times,
                    yerr=spread,
                    label=name,
                    color=colors.get(name),
                    linestyle=style,
                    linewidth=2.5 if chosen[0]["kind"] == "ours" else 1.2,
                    marker="o",
                    markersize=3,
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values[axis], [str(value) for value in values[axis]])
            panel.set_xlabel(AXES[axis])
            panel.set_title(f"{mode}, " + ", ".join(f"{a} = {v}" for a, v in fixed.items()), fontsize=10)
            panel.grid(alpha=0.3)
        panels[i][0].set_ylabel("milliseconds")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
