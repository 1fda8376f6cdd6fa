"""The C++ backend against the eager loop in float64."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagrank.recurrence import library as _lib
from tagrank.recurrence import lstm_recurrence, trace
from tagrank.recurrence.backends import FUSED, BackwardInputs

native = FUSED["native"]
pytestmark = [
    pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable())),
    pytest.mark.usefixtures("poisoned"),
]

#: Greatest error, relative to the greatest value of the oracle's result, or to 1 if that is greater.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 3e-2}
CAPABILITIES = ("portable", "avx2", "avx512", "amx")


def arguments(B: int, H: int, T: int, constant: bool, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """``gates_x, weight_hh, h0, c0``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, 4 * H) if constant else (T, B, 4 * H), (4 * H, H), (B, H), (B, H)]
    scales = [1.0, H**-0.5, 1.0, 1.0]
    pairs = zip(shapes, scales, strict=True)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * s).to(dtype) for shape, s in pairs]


def run(args: Sequence[Tensor | None], T: int, backend: str, recompute: bool = False) -> list[Tensor]:
    """``output``, ``c_n`` and the gradients of all arguments that are given, with a weight for each element of both."""
    leaves = [None if arg is None else arg.clone().requires_grad_() for arg in args]
    output, c_n = lstm_recurrence(*leaves, steps=T, backend=backend, recompute=recompute)
    weights = [torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(torch.bfloat16) for out in (output, c_n)]
    inputs = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad([output, c_n], inputs, [w.to(output.dtype) for w in weights])
    return [output.detach(), c_n.detach(), *grads]


def assert_matches_oracle(args: Sequence[Tensor | None], T: int, recompute: bool = False) -> None:
    with trace() as kernels:
        actual = run(args, T, "native", recompute)
    assert kernels == ["native.forward", "native.backward"]
    expected = run([None if arg is None else arg.double() for arg in args], T, "eager")
    given = zip(("gates_x", "weight_hh", "h0", "c0"), args, strict=True)
    names = ["output", "c_n", *(name for name, arg in given if arg is not None)]
    for name, a, e in zip(names, actual, expected, strict=True):
        assert a.dtype == actual[0].dtype
        assert a.shape == e.shape
        error = (a.double() - e).abs().max() / e.abs().max().clamp(min=1)
        assert error <= TOLERANCES[a.dtype], f"{name}: {error:.2e}"


@settings(max_examples=150, deadline=None)
@given(
    B=st.integers(1, 40),
    H=st.integers(1, 150),
    T=st.integers(1, 9),
    constant=st.booleans(),
    h0=st.booleans(),
    c0=st.booleans(),
    recompute=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 2**31),
)
def test_matches_oracle(
    B: int, H: int, T: int, constant: bool, h0: bool, c0: bool, recompute: bool, dtype: torch.dtype, seed: int
) -> None:
    gates_x, weight_hh, h, c = arguments(B, H, T, constant, dtype, seed)
    assert_matches_oracle([gates_x, weight_hh, h if h0 else None, c if c0 else None], T, recompute)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("B", "H", "T"), [(300, 33, 3), (600, 20, 2), (64, 300, 9), (1, 40, 300)])
def test_several_chunks_and_depths(B: int, H: int, T: int, recompute: bool) -> None:
    """Several chunks of rows, also in the weight's gradient, and products too deep for one pass over K."""
    assert_matches_oracle(arguments(B, H, T, False, torch.float32), T, recompute)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("B", "H", "T"), [(16, 701, 2), (90, 301, 5)])
def test_threads_share_a_pass_at_any_column(B: int, H: int, T: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_matches_oracle(arguments(B, H, T, True, torch.float32), T)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_batch_of_any_magnitude_has_the_accuracy_of_float32(scale: float) -> None:
    """With a batch this large, a product may be computed in parts. Their sum must have all bits of a float."""
    gates_x, weight_hh, h0, c0 = arguments(64, 96, 3, True, torch.float32)
    args = [gates_x, weight_hh / scale, h0 * scale, c0]
    first = lstm_recurrence(*args, steps=1, backend="native")[0]
    exact = lstm_recurrence(*(arg.double() for arg in args), steps=1, backend="eager")[0]
    assert (first.double() - exact).norm() / exact.norm() <= 3e-7


def test_sum_over_many_steps_is_not_rounded_at_each() -> None:
    args = arguments(2, 8, 400, True, torch.bfloat16)
    gates_x, weight_hh, h0, c0 = args
    weight_hh.zero_()
    output, _, gates, cells = native.forward(gates_x, weight_hh, h0, c0, 400, True, True)
    ones, zeros = torch.ones(400, 2, 8, dtype=torch.bfloat16), torch.zeros(2, 8, dtype=torch.bfloat16)
    saved = weight_hh, h0, c0, output, gates, cells
    d_gates = native.backward(
        BackwardInputs(ones, zeros, gates_x.expand(400, 2, 32).contiguous(), *saved, False, True)
    )[0]
    d_gates_x = native.backward(BackwardInputs(ones, zeros, gates_x, *saved, True, True))[0]
    torch.testing.assert_close(d_gates_x.double(), d_gates.double().sum(0), rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gradients_of_the_output_are_read_as_they_lie(dtype: torch.dtype) -> None:
    args = arguments(5, 37, 4, True, dtype)
    output, c_n, gates, cells = native.forward(*args, 4, True, True)
    saved = [torch.zeros_like(c_n), *args, output, gates, cells, True, True]
    batch_first = torch.randn(5, 4, 37).to(dtype).transpose(0, 1)
    last_step = torch.randn(1, 5, 37).to(dtype).expand(4, -1, -1)
    one_element = torch.tensor(0.7, dtype=dtype).expand(4, 5, 37)
    every_other = torch.randn(4, 5, 74).to(dtype)[..., ::2]
    for grad_output in (batch_first, last_step, one_element, every_other):
        strided = native.backward(BackwardInputs(grad_output, *saved))
        contiguous = native.backward(BackwardInputs(grad_output.contiguous(), *saved))
        for a, b in zip(strided, contiguous, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("B", "H", "T"), [(3, 20, 4), (300, 33, 3), (64, 96, 9)])
def test_without_the_weights_gradient_the_others_are_the_same(
    B: int, H: int, T: int, dtype: torch.dtype, constant: bool, recompute: bool
) -> None:
    args = arguments(B, H, T, constant, dtype)
    output, c_n, gates, cells = native.forward(*args, T, True, True)
    saved = [output, c_n, *args, output, gates[:0] if recompute else gates, cells, constant]
    with_weight, without = (native.backward(BackwardInputs(*saved, wanted)) for wanted in (True, False))
    assert with_weight[1].shape == (4 * H, H)
    assert without[1].shape == (0,)
    for index in (0, 2, 3):
        assert torch.equal(with_weight[index], without[index])


def test_calls_from_several_threads_at_once() -> None:
    """Each call has memory and a team of threads of its own."""
    cases = [arguments(20, 40 + n, 6, True, torch.float32, seed=n) for n in range(8)]
    expected = [run(args, 6, "native") for args in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for actual, e in zip(pool.map(lambda args: run(args, 6, "native"), cases), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(actual, e, strict=True))


def test_without_concurrent_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(20, 40, 6, True, torch.float32)
    expected = run(args, 6, "native")
    monkeypatch.setattr(native, "fixed_launch", [0])
    for a, b in zip(run(args, 6, "native"), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_states_left_out_are_zeros() -> None:
    gates_x, weight_hh, *_ = arguments(7, 24, 5, True, torch.float32)
    zeros = torch.zeros(7, 24)
    with_zeros = run([gates_x, weight_hh, zeros, zeros], 5, "native")
    for a, b in zip(run([gates_x, weight_hh, None, None], 5, "native"), with_zeros, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_empty_batch() -> None:
    output, c_n, *grads = run(arguments(0, 5, 3, True, torch.float32), 3, "native")
    assert output.shape == (3, 0, 5)
    assert c_n.shape == (0, 5)
    assert [list(grad.shape) for grad in grads] == [[0, 20], [20, 5], [0, 5], [0, 5]]
    assert grads[1].count_nonzero() == 0


def activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """``sigmoid(x)`` and ``tanh(x)`` of each element of ``x``, computed by the cell."""
    H = 64
    padded = torch.nn.functional.pad(x, (0, -len(x) % H)).view(-1, H)
    zeros = padded.new_zeros(padded.shape)
    gates = native.forward(padded.repeat(1, 4), x.new_zeros(4 * H, H), zeros, zeros, 1, True, False)[2]
    i, f, g, o = (gate.flatten()[: len(x)] for gate in gates[0].chunk(4, dim=-1))
    for other in (f, o):
        torch.testing.assert_close(i, other, rtol=0, atol=0, equal_nan=True)
    return i, g


def test_activations_are_accurate_over_all_float32() -> None:
    every = torch.arange(-(2**31), 2**31, 20011).to(torch.int32).view(torch.float32)  # all exponents, both signs, NaN
    x = torch.cat([every, torch.linspace(-105, 105, 200_001), torch.linspace(-2, 2, 200_001)])
    tiny = torch.finfo(torch.float32).tiny
    for actual, exact in zip(activations(x), (x.double().sigmoid(), x.double().tanh()), strict=True):
        assert torch.equal(actual.isnan(), x.isnan())
        # Errors are in units in the last place; below the smallest normal number, where results may be flushed to zero,
        # in that number.
        unit = torch.exp2(exact.abs().clamp(min=tiny).log2().floor()) * torch.where(exact.abs() < tiny, 1, 2**-23)
        assert ((actual.double() - exact).abs() / unit).nan_to_num(0).max() <= 3


def test_activations_at_special_values() -> None:
    inf, nan = float("inf"), float("nan")
    sigmoid, tanh = activations(torch.tensor([inf, -inf, 3e38, -3e38, 0.0, 1e-45, nan]))
    assert sigmoid[:-1].tolist() == [1.0, 0.0, 1.0, 0.0, 0.5, 0.5]
    assert tanh[:-1].tolist() == [1.0, -1.0, 1.0, -1.0, 0.0, torch.tensor(1e-45).item()]
    assert sigmoid[-1].isnan()
    assert tanh[-1].isnan()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_nan_stays_where_it_is(dtype: torch.dtype) -> None:
    gates_x, weight_hh, h0, c0 = arguments(3, 40, 1, True, dtype)
    gates_x[1, 7] = float("nan")
    output, c_n, _, _ = native.forward(gates_x, weight_hh, h0, c0, 1, False, False)
    expected = torch.zeros(3, 40, dtype=torch.bool)
    expected[1, 7] = True
    assert torch.equal(output[0].isnan(), expected)
    assert torch.equal(c_n.isnan(), expected)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    gates_x, weight_hh, h0, c0 = arguments(50, 64, 1, True, torch.bfloat16)
    weight_hh.zero_()
    rounded = native.forward(gates_x, weight_hh, h0, c0, 1, True, True)
    exact = native.forward(gates_x.float(), weight_hh.float(), h0.float(), c0.float(), 1, True, True)
    assert rounded[3].dtype == torch.float32
    assert torch.equal(rounded[3], exact[3])
    for r, e in zip(rounded[:3], exact[:3], strict=True):
        assert torch.equal(r, e.to(torch.bfloat16))


def test_bfloat16_ties_and_nan_payloads() -> None:
    """With i = 1/2 and f = o = 0 the gradient of i is that of c times g / 4: 16 significant bits, 1 in 256 a tie."""
    generator = torch.Generator().manual_seed(0)
    g, grad_c_n = torch.randn(2, 64, 512, generator=generator).to(torch.bfloat16)
    zeros, cells = torch.zeros_like(g), torch.zeros(1, 64, 512)
    gates = torch.cat([zeros + 0.5, zeros, g, zeros], dim=-1).unsqueeze(0)
    weight_hh, state = zeros.new_zeros(2048, 512), zeros.unsqueeze(0)
    inputs = state, grad_c_n, gates, weight_hh, zeros, zeros, state, gates, cells
    exact = grad_c_n.float() * g.float() / 4
    assert (exact.view(torch.int32) & 0xFFFF == 0x8000).sum() > 50
    assert torch.equal(native.backward(BackwardInputs(*inputs, False, True))[0][0, :, :512], exact.to(torch.bfloat16))
    cells.view(torch.int32)[0, 3, 7] = 0x7FFFFFFF
    d_gates = native.backward(BackwardInputs(*inputs, False, True))[0][0]
    assert d_gates[3, 7::512].isnan().all()
    assert d_gates.isnan().sum() == 4


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_saves_what_is_requested(dtype: torch.dtype) -> None:
    args = arguments(3, 20, 4, False, dtype)
    everything = native.forward(*args, 4, True, True)
    for save_gates in (False, True):
        for save_cells in (False, True):
            output, c_n, gates, cells = native.forward(*args, 4, save_gates, save_cells)
            assert gates.shape == ((4, 3, 80) if save_gates else (0,))
            assert cells.shape == ((4, 3, 20) if save_cells else (0,))
            assert torch.equal(output, everything[0])
            assert torch.equal(c_n, everything[1])


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_inputs_are_never_written_to(constant: bool, recompute: bool) -> None:
    args = arguments(3, 20, 4, constant, torch.float32)
    copies = [arg.clone() for arg in args]
    output, c_n, gates, cells = native.forward(*args, 4, True, True)
    inputs = [output, c_n, *args, output, gates[:0] if recompute else gates, cells]
    copies += [tensor.clone() for tensor in inputs]
    first = native.backward(BackwardInputs(*inputs, constant, True))
    second = native.backward(BackwardInputs(*inputs, constant, True))
    for before, after in zip(copies, [*args, *inputs], strict=True):
        assert torch.equal(before, after)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_backward_twice_gives_the_same() -> None:
    leaves = [arg.requires_grad_() for arg in arguments(3, 20, 4, True, torch.float32)]
    output, c_n = lstm_recurrence(*leaves, steps=4, backend="native")
    loss = output.square().sum() + c_n.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(a, b)


def test_unsupported_says_why() -> None:
    assert native.unsupported(torch.empty(1, 4)) is None
    assert "float16" in str(native.unsupported(torch.empty(1, 4, dtype=torch.float16)))
    assert "meta" in str(native.unsupported(torch.empty(1, 4, device="meta")))


#: The arguments of the operators, with T = 4, B = 3, H = 20 and an input of 4H gates.
FORWARD = {
    "context": torch.zeros(3, 80),
    "input": None,
    "weight_ih": None,
    "weight_hh": torch.zeros(80, 20),
    "bias_ih": None,
    "bias_hh": None,
    "h0": None,
    "c0": None,
    "steps": 4,
    "state_dimensions": 2,
    "save_gates": False,
    "save_cells": False,
    "launch": [1],
}
BACKWARD = {
    "grad_output": torch.zeros(4, 3, 20),
    "grad_h_n": None,
    "grad_c_n": torch.zeros(3, 20),
    "context": None,
    "input": None,
    "weight_ih": None,
    "weight_hh": torch.zeros(80, 20),
    "h0": None,
    "c0": None,
    "output": torch.zeros(4, 3, 20),
    "saved": torch.zeros(4, 3, 80),
    "cells": torch.zeros(4, 3, 20),
    "constant": True,
    "summed": True,
    "recompute": False,
    "wanted": 1,
    "launch": [1],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context": torch.zeros(80)}, r"context: expected float32 on cpu with shape \[any, 80\]; got .* \[80\]"),
        ({"context": torch.zeros(3, 79)}, r"context: expected .* with shape \[any, 80\]; got .* with shape \[3, 79\]"),
        ({"context": None}, "expected a context or an input"),
        ({"input": torch.zeros(4, 3, 80)}, "not both without weight_ih"),
        (
            {"context": None, "input": torch.zeros(5, 3, 80)},
            r"input: .* with shape \[4, any, 80\]; got .* with shape \[5, 3, 80\]",
        ),
        ({"weight_ih": torch.zeros(80, 79)}, r"weight_ih: expected .* with shape \[80, 80\]; got .* \[80, 79\]"),
        (
            {"weight_ih": torch.zeros(80, 83), "input": torch.zeros(4, 2, 3)},
            r"context: expected .* with shape \[2, any\]; got .* with shape \[3, 80\]",
        ),
        ({"weight_hh": torch.zeros(0, 0)}, r"weight_hh: expected shape \[4H, H\] with H >= 1; got \[0, 0\]"),
        ({"weight_hh": torch.zeros(80, 19)}, r"weight_hh: expected shape \[4H, H\] with H >= 1; got \[80, 19\]"),
        ({"bias_ih": torch.zeros(79)}, r"bias_ih: expected .* with shape \[80\]; got .* with shape \[79\]"),
        ({"bias_hh": torch.zeros(80).double()}, "bias_hh: expected float32 .*; got float64 on cpu"),
        ({"h0": torch.zeros(3, 20).double()}, r"h0: expected float32 on cpu .*; got float64 on cpu"),
        ({"h0": torch.zeros(3, 19)}, r"h0: expected float32 on cpu with shape \[3, 20\]; got .* with shape \[3, 19\]"),
        ({"c0": torch.zeros(2, 3, 20)}, r"c0: .* with shape \[1, 3, 20\]; got .* with shape \[2, 3, 20\]"),
        ({"steps": 0}, r"steps: expected at least 1; got 0"),
        ({"launch": []}, "launch: expected one number on CPUs; got 0"),
    ],
)
def test_forward_operator_names_the_argument(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tagrank.layer_forward(**(FORWARD | changed))


def test_operators_name_the_dtypes() -> None:
    halves = {"context": torch.zeros(3, 80).half(), "weight_hh": torch.zeros(80, 20).half()}
    with pytest.raises(RuntimeError, match="weight_hh: expected float32, float64 or bfloat16; got float16"):
        torch.ops.tagrank.layer_forward(**(FORWARD | halves))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output": torch.zeros(3, 20)}, r"output: expected .* with shape \[4, 3, 20\]; got .* with shape \[3, 20\]"),
        ({"output": torch.zeros(4, 3, 20).half()}, "output: expected float32 .*; got float16"),
        ({"output": None}, "output: expected a tensor if there are several steps; got none"),
        ({"grad_output": torch.zeros(3, 20)}, r"grad_output: expected float32 .*\[4, 3, 20\]; got .*\[3, 20\]"),
        ({"grad_h_n": torch.zeros(3, 19)}, r"grad_h_n: expected .* with shape \[3, 20\]; got .* with shape \[3, 19\]"),
        ({"cells": torch.zeros(4, 3, 20).double()}, "cells: expected float32 on cpu .*; got float64 on cpu"),
        ({"cells": torch.zeros(3, 20)}, r"cells: expected shape \[T, B, H\]; got \[3, 20\]"),
        ({"saved": torch.zeros(4, 3, 79)}, r"saved: expected .* with shape \[4, 3, 80\]; got .*\[4, 3, 79\]"),
        ({"recompute": True}, r"saved: expected .* with shape \[3, 80\]; got .*\[4, 3, 80\]"),
    ],
)
def test_backward_operator_names_the_argument(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tagrank.layer_backward(**(BACKWARD | changed))


def test_operators_take_tensors_as_they_lie() -> None:
    """Neither the weight, the states nor the gradient of the output need be contiguous."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    given = {"context": normal(80, 3).t(), "weight_hh": normal(20, 80).t(), "h0": normal(20, 3).t()}
    straight = {name: tensor.contiguous() for name, tensor in given.items()}
    results = [torch.ops.tagrank.layer_forward(**(FORWARD | some)) for some in (given, straight)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    given = {
        "grad_output": normal(20, 3, 4).permute(2, 1, 0),
        "weight_hh": given["weight_hh"],
        "cells": normal(4, 3, 20),
    }
    straight = {name: tensor.contiguous() for name, tensor in given.items()}
    results = [torch.ops.tagrank.layer_backward(**(BACKWARD | some | {"wanted": 9})) for some in (given, straight)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_reason_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_lib, "LIBRARY", tmp_path / "_C.so")
    assert "pip install --no-build-isolation ." in str(_lib.load())
    (tmp_path / "_C.so").write_bytes(b"no library")
    assert "cannot load" in str(_lib.load())
    assert "pip install --no-build-isolation ." in str(_lib.load())


@pytest.mark.exhaustive
def test_wrong_capability_is_an_error_and_not_another_backend() -> None:
    """An error of each call that would come to this backend. The package can be imported, and says what is wrong."""
    code = """
import os, sys, torch, torch._dynamo
for value in sys.argv[1:]:
    # The library reads the variable once in a process. Each value has a copy of this process, which has imported torch.
    if os.fork() == 0:
        os.environ["TAGRANK_CPU_CAPABILITY"] = value
        break
    assert os.wait()[1] == 0
else:
    sys.exit()

import tagrank
from tagrank.errors import InputError
from tagrank.recurrence import explain
gates, weight = torch.zeros(2, 12), torch.zeros(12, 3)
print(tagrank.env()["backends"]["native"])
calls = [lambda backend=backend: tagrank.lstm_recurrence(gates, weight, steps=2, backend=backend)
         for backend in ("auto", "native")]
for call in (*calls, lambda: explain(2, 2, 3)):
    try:
        call()
    except InputError as error:
        print(error)
print(tagrank.lstm_recurrence(gates, weight, steps=2, backend="eager")[0].shape[0])
"""
    values = ["sse9", "AVX2", ""]
    done = subprocess.run([sys.executable, "-c", code, *values], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 * len(values)
    for i, value in enumerate(values):
        *messages, steps = lines[5 * i : 5 * i + 5]
        assert steps == "2"
        for message in messages:
            assert message.startswith("TAGRANK_CPU_CAPABILITY: expected portable, avx2, avx512 or amx, and at most ")
            assert message.endswith(f"on this CPU; got '{value}'")


@pytest.mark.skipif("TAGRANK_CPU_CAPABILITY" in os.environ, reason="already limited to one instruction set")
@pytest.mark.parametrize(
    "capability", ["portable", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("avx2", "avx512"))]
)
def test_narrower_instruction_sets(capability: str) -> None:
    """The tests that check numbers, once more, in a process that is limited to ``capability``."""
    best = torch.ops.tagrank.cpu_capability()
    if CAPABILITIES.index(capability) >= CAPABILITIES.index(best):
        pytest.skip(f"the other tests ran on {best}, which is no wider than {capability}")
    packed = Path(__file__).with_name("test_packed.py")
    numbers = "matches_oracle or packed_rows or activations or nan_stays or bfloat16 or capability_is_the_one"
    done = subprocess.run(
        [Path(sys.executable).parent / "pytest", __file__, packed, "-q", "-k", numbers, "-p", "no:cacheprovider"],
        env=os.environ | {"TAGRANK_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_capability_is_the_one_of_the_variable() -> None:
    limit = os.environ.get("TAGRANK_CPU_CAPABILITY")
    assert torch.ops.tagrank.cpu_capability() in ((limit,) if limit else CAPABILITIES)
