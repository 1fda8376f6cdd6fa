"""The grouped variant's barrier without a GPU: in the interpreter, with a process for each program of the grid.

The interpreter runs one program after another, and the first to wait would wait forever. Here all run at the same time
on shared memory, and atomics are atomic. This checks the protocol. ``test_gpu.py`` checks the memory model of a GPU.
"""

import inspect
import itertools
import multiprocessing
import time
from typing import Any

import pytest
import torch
from problems import errors, make_inputs, results
from torch import Tensor
from triton.runtime import interpreter

from tagrank import lstm_recurrence
from tagrank.kernels.variants import Variant
from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted"),
    pytest.mark.usefixtures("poisoned"),
]

BATCH, HIDDEN, STEPS = 21, 40, 3
VARIANT = Variant("grouped", 16, 16, 16, 4)
GRID = (2, 3)
#: This program starts late, so that a program that does not wait for it reads what is not written yet.
LATE = (1, 1)


def run_program(executor: Any, index: tuple[int, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What ``GridExecutor.__call__`` does for each index of the grid in turn, for one index."""
    if index == LATE:
        time.sleep(0.5)
    names = inspect.getfullargspec(executor.fn).args
    interpreter._patch_lang(executor.fn)
    values = inspect.getcallargs(executor.fn, *args, **{k: v for k, v in kwargs.items() if k in names})
    values = {n: v if n in executor.constexprs else interpreter._implicit_cvt(v) for n, v in values.items()}
    interpreter.interpreter_builder.set_grid_dim(*executor.grid, 1)
    interpreter.interpreter_builder.set_grid_idx(*index, 0)
    executor.fn(**values)


class Launches:
    """Replaces ``GridExecutor.__call__``: records the launches, and runs a process for each program."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, int]] = []
        self.counters: list[Tensor] = []

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> None:
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.numel():
                tensor.untyped_storage().share_memory_()
        context = multiprocessing.get_context("fork")
        programs = [
            context.Process(target=run_program, args=(executor, index, args, kwargs))
            for index in itertools.product(*map(range, executor.grid))
        ]
        for program in programs:
            program.start()
        end = time.monotonic() + 120
        for program in programs:
            program.join(max(0.0, end - time.monotonic()))
        hung = [program.pid for program in programs if program.is_alive()]
        for program in programs:
            program.kill()
        assert not hung, "a program waits for arrivals that never come"
        assert all(program.exitcode == 0 for program in programs)
        self.grids.append(executor.grid)
        self.counters += [tensor for tensor in args if isinstance(tensor, Tensor) and tensor.dtype == torch.int32]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Runs all programs of a launch at once."""
    found = Launches()
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *args, **kwargs: found(*args, **kwargs))
    return found


def run(constant: bool, dtype: torch.dtype, recompute: bool = False) -> dict[str, float]:
    """The relative errors of both passes on the grouped kernels; NaN if a result has a NaN."""
    inputs = make_inputs(BATCH, HIDDEN, None if constant else STEPS, dtype)
    with FUSED["triton"].forced(forward=VARIANT, backward=VARIANT), trace() as kernels:
        output = lstm_recurrence(*inputs, steps=STEPS, backend="triton", recompute=recompute)
        got = results(*output, inputs)
    assert kernels == ["triton.forward.grouped", "triton.backward.grouped"]
    return errors(got, inputs, STEPS)


@pytest.mark.parametrize(
    ("constant", "dtype", "recompute"),
    [
        (False, torch.float32, True),
        pytest.param(True, torch.float32, False, marks=pytest.mark.exhaustive),
        pytest.param(True, torch.float16, False, marks=pytest.mark.exhaustive),
    ],
)
def test_all_programs_at_once(launches: Launches, constant: bool, dtype: torch.dtype, recompute: bool) -> None:
    found = run(constant, dtype, recompute)
    assert max(found.values()) <= (1e-6 if dtype == torch.float32 else 2e-3)
    assert launches.grids == [GRID, GRID], "one launch a pass"
    assert [counter.tolist() for counter in launches.counters] == [[0, 0], [0, 0]], "set back for the next launch"


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_without_the_barrier_the_result_is_wrong(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    monkeypatch.setattr(f"tagrank.kernels.{kernel}.wait", lambda counter, arrivals: None)
    output, _, *gradients = run(True, torch.float32).values()
    broken = [output] if kernel == "forward" else gradients
    assert not any(error <= 1e-3 for error in broken)
    if kernel == "backward":
        assert output <= 1e-6
