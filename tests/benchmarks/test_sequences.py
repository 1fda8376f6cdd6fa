"""``python -m benchmarks.packed``, and the figures of docs/sequences.md, which are of its result file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_packed_measures_the_layer_against_nn_lstm(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = load("packed")
    monkeypatch.setitem(packed.KINDS, "projection", {"proj_size": 2})
    rows = [
        row
        for case in (packed.Case(3, 5, 4, 2), packed.Case(3, 5, 4, 0))
        for kind in packed.KINDS
        for row in packed.measure(case, kind, 0.0, processor=True)
    ]
    assert len(rows) == 12
    assert all(row["speedup"] > 0 for row in rows)
    assert all({*row["times"]} == {"nn.LSTM", "ContextLSTM"} for row in rows)
    assert [found["cases"] for found in packed.summary(rows)] == [2] * 6

    def wrong_by_a_percent(layer: Any, batch: Any) -> Any:
        return 1.01 * layer(None, input=packed.PackedSequence(batch.rows, *batch.packing[1:]))[0].data

    monkeypatch.setattr(packed, "ours", wrong_by_a_percent)
    wrong = packed.measure(packed.Case(3, 5, 4, 0), "one direction", 0.0)
    assert [row["speedup"] for row in wrong] == [None, None]
    assert packed.line(wrong[0]).endswith("wrong")


def test_figures() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "packed.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "sequences.md").read_text(encoding="utf-8").split())
    assert record["clock"] == "processor"
    assert all(row["speedup"] is not None for row in record["rows"]), "a wrong result"
    for kind in {found["kind"] for found in record["summary"]}:
        cells = [
            f"{found['median']:.2f}x, worst {found['worst']:.2f}x"
            for found in record["summary"]
            if found["kind"] == kind
        ]
        assert f"| {kind} | {' | '.join(cells)} |" in page
    assert record["environment"]["cpu"].partition(" (")[0] in page


def test_the_pages_code_runs() -> None:
    page = (ROOT / "docs" / "sequences.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["output"].shape == (9, 3, 64)
    assert names["output"][4:, 0].count_nonzero() == 0
    assert names["packed"].data.shape == (15, 64)
