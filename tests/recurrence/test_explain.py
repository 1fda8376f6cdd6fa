"""``explain`` says what would run, and on this machine that is what runs."""

from typing import Any

import pytest
import torch

from tagrank import lstm_recurrence
from tagrank.kernels.variants import Gpu
from tagrank.recurrence import explain, trace
from tagrank.recurrence.backends import unavailable

H100 = Gpu((9, 0), 132)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_says_what_runs(dtype: torch.dtype) -> None:
    text = explain(3, 2, 16, dtype)
    with trace() as kernels:
        lstm_recurrence(torch.zeros(3, 64, dtype=dtype), torch.zeros(64, 16, dtype=dtype), steps=2)
    (taken,) = [line.split(":")[0] for line in text.splitlines() if ": taken" in line]
    assert {kernel.split(".")[0] for kernel in kernels} == {taken}
    assert taken == ("native" if unavailable()["native"] is None and dtype != torch.float16 else "eager")


def test_a_gpu_that_is_not_here() -> None:
    lines = explain(16, 20, 512, torch.bfloat16, gpu=Gpu((10, 0), 148)).splitlines()
    assert lines[0] == "B = 16, T = 20, H = 512, bfloat16 on cuda:0"
    assert "cluster: no, it was not verified in bfloat16 on compute capability 10.0" in lines
    assert "triton: taken" in lines
    passed = [line for line in lines if line.startswith("  forward: not ")]
    assert "  forward: not resident 16 x 128, as it is for H up to 128" in passed
    assert "  forward: not grouped 16 x 16, as it was not verified in bfloat16 on compute capability 10.0" in passed
    (forward,) = [line for line in lines if line.startswith("  forward: step ")]
    assert forward.startswith("  forward: step 16 x 16, 20 launches of 1 x 32 programs; few rows: ")
    assert lines[-1].startswith("  backward: step 16 x 16, 20 launches of 1 x 32 programs; ")


def test_a_gpu_on_which_the_kernels_were_verified() -> None:
    assert explain(16, 20, 512, torch.bfloat16, gpu=H100).splitlines()[-1] == "cluster: taken"
    lines = explain(256, 20, 512, torch.bfloat16, gpu=H100).splitlines()
    reason = "it is for B up to 64, as with more rows the grouped variant of triton is ahead"
    assert lines[2:4] == [f"cluster: no, {reason}", "triton: taken"]
    taken = [line.split(",")[0] for line in lines if line.startswith("  ") and ": not " not in line]
    assert taken == ["  forward: grouped 64 x 16", "  backward: grouped 32 x 32"]


def test_a_shape_that_no_fused_kernel_serves_falls_to_the_next() -> None:
    lines = explain(4, 1, 1001, torch.float16, gpu=H100).splitlines()
    assert "  forward: not grouped 16 x 16, as it is for H divisible by 8" in lines
    assert any(line.startswith("  forward: product 4 x 128, 1 launch of 1 x 8 programs; H not div") for line in lines)
    lines = explain(4, 1, 1001, torch.float32, gpu=H100).splitlines()
    assert any(line.startswith("  forward: step 16 x 16, 1 launch of 1 x 63 programs; any H") for line in lines)
    lines = explain(4, 1, 64, gpu=Gpu((7, 5), 40)).splitlines()
    assert lines[-2:] == [
        "triton: no, it needs compute capability 8.0, and cuda:0 has 7.5",
        "eager: taken, as it runs everywhere",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "batch: expected at least 1, got 0"),
        ((1, 0, 1), "steps: expected at least 1, got 0"),
        ((1, 1, 0), "hidden: expected at least 1, got 0"),
        ((1, 1, 1, torch.int8), "dtype: expected one of float16, bfloat16, float32, float64; got int8"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(*arguments)
