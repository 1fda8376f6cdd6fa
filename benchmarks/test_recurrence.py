"""The contestants under pytest-benchmark, which can store and compare runs: ``pytest benchmarks``.

A wrong result fails. Here each contestant is timed separately. For ratios, use ``python -m benchmarks.recurrence``,
which runs the contestants in turn.
"""

from typing import Any

import pytest

from benchmarks.contestants import Case, Mode, contestants, error, oracle
from benchmarks.recurrence import MODES, prepare

CASES = (Case(1, 512, 20), Case(64, 512, 20))
NAMES = [contestant.name for contestant in contestants(CASES[0], CASES[0].make()[0])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"B{case.batch}-H{case.hidden}-T{case.steps}")
def test_recurrence(benchmark: Any, case: Case, mode: Mode, name: str) -> None:
    lstm, context = case.make()
    (contestant,) = [one for one in contestants(case, lstm) if one.name == name]
    if contestant.kind == "floor" and mode == "training":
        pytest.skip("only the matrix products of the forward pass")
    benchmark.group = f"{mode} B={case.batch} H={case.hidden} T={case.steps}"
    with contestant.within():
        result = benchmark(prepare(contestant, context, mode))
    if contestant.kind != "floor":
        output, gradients = oracle(case, lstm, context)
        assert error(result, [output] if mode == "inference" else gradients) <= contestant.tolerance(case.dtype)
