"""``python -m benchmarks.overhead``, and what a call may cost besides arithmetic."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

#: The most operators and Python calls of a pass at B = 1, H = 64, T = 1 in float32 on a CPU, by the native backend.
#: A change that lowers a count lowers its bound here.
BOUNDS = {
    ("ContextLSTM", "inference"): (1, 26),
    ("ContextLSTM", "training"): (7, 72),
    ("ContextLSTMCell", "inference"): (1, 20),
    ("ContextLSTMCell", "training"): (7, 69),
}


@pytest.mark.parametrize(("module", "mode"), BOUNDS)
def test_a_call_costs_no_more_than_this(load: Callable[[str], Any], module: str, mode: str) -> None:
    overhead = load("overhead")
    run = overhead.subjects(1, 64, 1, "cpu")[module].run(mode)
    with torch.set_grad_enabled(mode == "training"):
        for _ in range(3):
            run()
        counts = overhead.count(run, "cpu")
    operators, python_calls = BOUNDS[module, mode]
    assert counts["operators"] <= operators
    assert counts["python_calls"] <= python_calls


def test_counts_are_right(load: Callable[[str], Any]) -> None:
    overhead = load("overhead")
    x = torch.ones(2, 2)

    def python() -> None:
        pass

    def run() -> None:
        python()
        python()
        len("")
        torch.t(x)  # calls aten::transpose, and that aten::as_strided

    counts = overhead.count(run, "cpu")
    assert counts == {"operators": 3, "python_calls": 2, "builtin_calls": 2, "kernels": None}


@pytest.mark.exhaustive
def test_rows_compare_each_with_its_peer(
    load: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    overhead, timing = load("overhead"), load("timing")
    milliseconds = {"nn.LSTM": 0.4, "ContextLSTM": 0.1, "nn.LSTMCell": 0.1, "ContextLSTMCell": 0.03}

    def times(runs: Iterable[str], device: str, seconds: float, before: Callable[[], Any] | None = None) -> Any:
        """A cold call takes twice as long, and ContextLSTM's four times."""
        calls = overhead.IN_A_ROW if before is None else 2
        longer = {"ContextLSTM": 1 if before is None else 2}
        return {name: timing.Times(*[milliseconds[name] * calls * longer.get(name, 1)] * 3, 5) for name in runs}

    monkeypatch.setattr(overhead, "interleave", times)
    monkeypatch.setattr(overhead, "SIZES", ((2, 8, 1), (2, 8, 3)))
    path = tmp_path / "a.json"
    monkeypatch.setattr(sys, "argv", ["overhead", "--device", "cpu", "--json", str(path)])
    overhead.main()
    rows = json.loads(path.read_text())["rows"]
    assert [(row["T"], row["mode"], row["module"], row["us"], row["ratio"]) for row in rows] == [
        (1, mode, name, 1e3 * milliseconds[name], ratio)
        for mode in ("inference", "training")
        for name, ratio in (("nn.LSTM", None), ("ContextLSTM", 0.25), ("nn.LSTMCell", None), ("ContextLSTMCell", 0.3))
    ] + [
        (3, mode, name, 1e3 * milliseconds[name], ratio)
        for mode in ("inference", "training")
        for name, ratio in (("nn.LSTM", None), ("ContextLSTM", 0.25))
    ]
    assert all(row["error"] <= 1e-6 and row["operators"] > 0 for row in rows)
    cold = {row["module"]: (row["cold_us"], row["cold_ratio"]) for row in rows}
    assert cold["nn.LSTM"] == (800.0, None)
    assert cold["ContextLSTM"] == (400.0, 0.5)
    assert capsys.readouterr().out.count("0.30") == 4


def test_calls_in_a_row_and_after_something_else(load: Callable[[str], Any]) -> None:
    overhead, timing = load("overhead"), load("timing")
    ran: list[str] = []
    overhead.in_a_row(lambda: ran.append("run"))()
    assert ran == ["run"] * overhead.IN_A_ROW
    ran.clear()
    runs = {"one": lambda: ran.append("one"), "other": lambda: ran.append("other")}
    timing.interleave(runs, "cpu", 0.0, before=lambda: ran.append("before"))
    assert ran == ["one", "other"] + ["before", "one", "before", "other"] * 5


@pytest.mark.exhaustive
def test_a_wrong_result_has_no_ratio_in_overhead(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    overhead = load("overhead")
    real = overhead.subjects

    def wrong(*args: Any) -> dict[str, Any]:
        found = real(*args)
        for parameter in found["ContextLSTM"].module.parameters():
            parameter.data *= 1.001
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(overhead, "subjects", wrong)
    rows = {row["module"]: row for row in overhead.measure(2, 8, 3, "cpu", 0.0)}
    assert rows["nn.LSTM"]["error"] <= 1e-6
    assert rows["ContextLSTM"]["error"] > 1e-4
    assert rows["ContextLSTM"]["ratio"] is None
    assert overhead._line(rows["ContextLSTM"]).endswith("WRONG")
