"""``sigmoid`` and ``tanh`` against NumPy in higher precision, over their whole range."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tagrank.kernels.arithmetic import sigmoid, tanh

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 1024


# Triton reads annotations, and takes typing.Any for a type it does not know.
@triton.jit  # type: ignore[untyped-decorator]
def evaluate(x, tanh_x, sigmoid_x, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.arange(0, SIZE)
    value = tl.load(x + offsets)
    tl.store(tanh_x + offsets, tanh(value))
    tl.store(sigmoid_x + offsets, sigmoid(value))


def run(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    x = x.to(DEVICE)
    results = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    evaluate[(1,)](x, *results, SIZE=SIZE)
    return results[0].cpu().numpy(), results[1].cpu().numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_relative_error(dtype: torch.dtype, tolerance: float) -> None:
    magnitudes = torch.cat([torch.logspace(-30, 0.6, SIZE // 4), torch.linspace(0.5, 20, SIZE // 4)]).to(dtype)
    x = torch.cat([magnitudes, -magnitudes])
    exact = x.numpy().astype(np.longdouble)
    got_tanh, got_sigmoid = run(x)
    assert np.abs(got_tanh / np.tanh(exact) - 1).max() < tolerance
    assert np.abs(got_sigmoid * (1 + np.exp(-exact)) - 1).max() < 4 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_range(dtype: torch.dtype) -> None:
    x = torch.zeros(SIZE, dtype=dtype)
    x[:5] = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, torch.nan])
    with np.errstate(over="ignore", invalid="ignore"):
        got_tanh, got_sigmoid = run(x)
    np.testing.assert_array_equal(got_tanh[:6], [1, -1, 1, -1, np.nan, 0])
    np.testing.assert_array_equal(got_sigmoid[:6], [1, 0, 1, 0, np.nan, 0.5])
