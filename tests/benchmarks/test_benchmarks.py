"""The benchmark scripts: what they refuse and what they write. A wrong result never has a speed-up."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
# The tests of Triton's kernels run in its interpreter, which the scripts have no use for.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("recurrence")
    sizes = ["-B", "1", "3", "-H", "32", "-T", "3", "--seconds", "0.01", "--no-compile"]
    done = script("benchmarks.recurrence", *sizes, "--json", str(folder / "a.json"), "--plot", str(folder / "a.png"))
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    return folder, record


def test_recurrence_writes_what_it_measured(result: tuple[Path, dict[str, Any]]) -> None:
    folder, record = result
    assert record["rates"]["gflops"] > 1
    assert record["environment"]["threads"] >= 1
    names = {row["name"] for row in record["rows"]}
    assert {"eager loop", "nn.LSTM (oneDNN)", "nn.LSTMCell loop"} <= names
    for row in record["rows"]:
        assert row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1]
        assert (row["speedup"] is not None) == (row["kind"] == "ours")
        assert row["right"] is (None if row["kind"] == "floor" else True)
    assert (folder / "a.png").stat().st_size > 10_000


def test_a_wrong_result_has_no_ratio(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recurrence, machine = load("recurrence"), load("machine")
    real = recurrence.contestants

    def broken(*args: Any) -> Iterator[Any]:
        for one in real(*args):
            wrong = one.kind == "ours" or one.name == "eager loop"
            yield replace(one, forward=lambda c, f=one.forward: f(c) * 1.001) if wrong else one

    monkeypatch.setattr(recurrence, "contestants", lambda *args: list(broken(*args)))
    rows = recurrence.measure(recurrence.Case(2, 16, 3), machine.Rates(100, 10), 0.01, False)
    summary = recurrence.summary(rows)
    ours = [row for row in rows if row["kind"] == "ours"]
    assert ours
    assert all(row["speedup"] is None and row["right"] is False for row in ours)
    assert sum(line.startswith("WRONG") for line in summary) == len(ours) + 2
    assert not any("fastest peer" in line for line in summary)


def test_decoder_measures_the_layer_and_the_cell(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load("decoder")
    case = decoder.Case(2, 5, 3, 4)
    rows = [row for kind in decoder.KINDS for row in decoder.measure(case, kind, 0.0)]
    kinds = [(kind, mode) for kind in ("sequence", "steps") for mode in ("inference", "training")]
    assert [(r["kind"], r["mode"], r["right"], r["speedup"] > 0) for r in rows] == [(*k, True, True) for k in kinds]
    summary = decoder.summary(rows)
    assert [(s["peer"], s["cases"]) for s in summary] == [("nn.LSTM", 1)] * 2 + [("nn.LSTMCell", 1)] * 2
    monkeypatch.setattr(decoder, "ours_whole", lambda lstm: lambda context, input: 1.01 * lstm(context, input=input)[0])
    wrong = decoder.measure(case, "sequence", 0.0)
    assert [(r["right"], r["speedup"]) for r in wrong] == [(False, None)] * 2
    assert decoder.summary(wrong)[0]["median"] is None
    line = decoder.line(wrong[0])
    assert line.startswith("B=2   H=5    I=3    C=4")
    assert line.endswith(": wrong")


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
def test_torch_compile_is_right_too(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    """The graph that torch.compile makes of the loop; and with inductor, which takes half a minute, what is timed."""
    peers = load("contestants")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    case = peers.Case(2, 16, 2)
    lstm, context = case.make()
    (one,) = [c for c in peers.contestants(case, lstm) if c.name == "torch.compile"]
    want = peers.oracle(case, lstm, context)[0]
    with torch.no_grad():
        assert peers.error([one.forward(context)], [want]) <= 1e-5


def test_growth_fits_what_is_there(load: Callable[[str], Any]) -> None:
    fit = load("growth").fit
    line, square = fit("T", (1, 2, 4, 8), (3.0, 5.0, 9.0, 17.0)), fit("H", (1, 2, 4), (2.0, 5.0, 17.0))
    assert (line["fixed_ms"], line["each_ms"], line["largest_error"]) == (1, 2, 0)
    np.testing.assert_allclose(line["exponents"], np.log2([5 / 3, 9 / 5, 17 / 9]), atol=0.006)
    assert (square["fixed_ms"], square["each_ms"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-B 0", "expected positive numbers"),
        ("--dtype int8", "invalid choice"),
        *([] if torch.cuda.is_available() else [("--device cuda", "PyTorch sees no GPU")]),
    ],
)
def test_recurrence_refuses(refuses: Callable[..., str], arguments: str, message: str) -> None:
    assert message in refuses("recurrence", *arguments.split())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc")
def test_a_training_step_takes_less_memory_than_that_of_nn_lstm(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    done = script("benchmarks.memory", "--json", str(path))
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["megabytes"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert rows["tagrank native"] <= rows["nn.LSTM (oneDNN)"] / 2
    assert rows["tagrank native, recompute"] <= rows["nn.LSTM (oneDNN)"] / 4
