"""Calls for which there is no memory raise torch's error, and leave everything in order for the next call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tagrank.recurrence.backends import FUSED

native = FUSED["native"]
pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

SMALL_AFTER_LARGE = """
import resource, torch
from tagrank import ContextLSTM

torch.set_num_threads(1)
large, small = ContextLSTM(8, 1024), ContextLSTM(8, 40)  # the large layer packs 16.8 MB of weight
x = torch.randn(32, 8)
expected = small(x, 20)[0]
limits = resource.getrlimit(resource.RLIMIT_AS)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 20), limits[1]))
try:
    with torch.no_grad():
        large(x, 2)
except RuntimeError as error:
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in str(error), error
else:
    raise AssertionError("there was memory enough")
resource.setrlimit(resource.RLIMIT_AS, limits)
assert torch.equal(small(x, 20)[0], expected)
"""

EACH_IN_TURN = """
import ctypes, gc, os, sys, torch
from tagrank import ContextLSTM, lstm_recurrence

torch.set_num_threads(1)
fail_at = ctypes.CDLL(os.environ["LD_PRELOAD"]).fail_at
MESSAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def fails_everywhere(name, run, stride=1):
    expected = run()
    place, failures = 0, 0
    while True:
        fail_at(place)
        try:
            result = run()
        except RuntimeError as error:
            fail_at(-1)
            assert MESSAGE in str(error), (name, place, error)
            failures += 1
        else:
            assert fail_at(-1) <= place, (name, place, "an allocation failed, and nobody noticed")
            break
        for got, want in zip(run(), expected, strict=True):
            assert torch.equal(got, want), (name, place)
        place += stride
    print(name, failures)
    assert failures > 5, (name, failures)


def layer(dtype, layers, recompute):
    lstm = ContextLSTM(6, 40, input_size=5, num_layers=layers, recompute=recompute, dtype=dtype)
    context, input = torch.randn(33, 6, dtype=dtype), torch.randn(4, 33, 5, dtype=dtype)

    def run():
        with torch.enable_grad():
            output, (h_n, c_n) = lstm(context.requires_grad_(), input=input)
            leaves = [context, *lstm.parameters()]
            return [output.detach(), *torch.autograd.grad(output.sum() + h_n.sum() + c_n.sum(), leaves)]

    return run


def operation(dtype, steps, recompute, batch=33, hidden=40):
    shapes = (batch, 4 * hidden), (4 * hidden, hidden), (batch, hidden), (batch, hidden)
    leaves = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]

    def run():
        output, c_n = lstm_recurrence(*leaves, steps=steps, recompute=recompute)
        grad = torch.ones(batch, hidden, 2 * steps, dtype=dtype).permute(2, 0, 1)[::2]
        return [output.detach(), *torch.autograd.grad([output, c_n], leaves, [grad, torch.ones_like(c_n)])]

    return run


fails_everywhere("layer", layer(torch.float32, 1, False), 1 if "all" in sys.argv else 4)
if "all" in sys.argv:
    fails_everywhere("steps", operation(torch.bfloat16, 3, True))
    fails_everywhere("layers", layer(torch.float32, 2, True))
    fails_everywhere("one step", operation(torch.float64, 1, False))
    # The library keeps up to 64 MB between calls. A batch that needs more has its memory allocated in each call.
    fails_everywhere("large", operation(torch.float32, 1, False, 300000, 1))
"""


def child(code: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])


@pytest.mark.skipif(sys.platform != "linux", reason="it limits the memory as Linux does")
def test_a_call_after_one_that_had_no_memory() -> None:
    child(SMALL_AFTER_LARGE)


@pytest.mark.skipif(sys.platform != "linux", reason="it replaces the allocator as Linux does")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="before 2.13 the C functions of torch, its products for one, do not say that memory was missing",
)
@pytest.mark.parametrize("cases", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_each_allocation_may_fail(cases: str, tmp_path: Path) -> None:
    library = tmp_path / "failing_allocator.so"
    source = Path(__file__).with_name("failing_allocator.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    child(EACH_IN_TURN, cases, LD_PRELOAD=str(library))
