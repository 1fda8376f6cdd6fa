"""The recurrence over sequences of different lengths, against lstm_recurrence on each sequence by itself in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.backends.eager import lstm_loop
from tagrank.recurrence.packed import packed_recurrence, projected_recurrence
from tagrank.recurrence.padded import Places, padded_recurrence

needs_library = pytest.mark.skipif(FUSED["native"].unavailable() is not None, reason="the library is not built")
pytestmark = pytest.mark.usefixtures("poisoned")

#: Greatest error, relative to the norm.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 3e-2}
#: gates_x, constant, weight_hh, h0, c0
Arguments = list[Tensor | None]
NAMES = ("gates_x", "constant", "weight_hh", "h0", "c0")
#: Sorted lengths: few rows, one row, all the same, steps in which many end, batches for the matrix unit, more rows of
#: the weight's gradient than a chunk has.
LENGTHS = [
    [5, 3, 3, 1],
    [4],
    [3, 3, 3],
    [6, *[1] * 8],
    [*range(37, 0, -2)],
    [9] * 33 + [8] * 30 + [2] * 5 + [1] * 3,
    [17] * 40 + [1] * 27,
]


def batch_sizes_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([sum(length > t for length in lengths) for t in range(lengths[0])])


def arguments(lengths: Sequence[int], hidden: int, given: Sequence[str], seed: int = 0) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    B, N = len(lengths), sum(lengths)
    shapes = [(N, 4 * hidden), (B, 4 * hidden), (4 * hidden, hidden), (B, hidden), (B, hidden)]
    scales = [1.0, 1.0, hidden**-0.5, 1.0, 1.0]
    made = [torch.randn(s, generator=generator, dtype=torch.float64) * k for s, k in zip(shapes, scales, strict=True)]
    return [t if name in (*given, "weight_hh") else None for name, t in zip(NAMES, made, strict=True)]


def oracle(lengths: Sequence[int], args: Arguments, weight_hr: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences of each length by themselves, in the eager loop; with ``weight_hr``, as nn.LSTM defines it."""
    gates_x, constant, weight_hh, h0, c0 = args
    assert weight_hh is not None
    first = [0, *batch_sizes_of(lengths).cumsum(0).tolist()]
    outputs, places, h_n, c_n = [], [], [], []
    for length in sorted(set(lengths), reverse=True):
        rows = [b for b, other in enumerate(lengths) if other == length]
        here = torch.tensor([[first[t] + b for b in rows] for t in range(length)])
        x = weight_hh.new_zeros(length, len(rows), weight_hh.shape[0])
        x = x if gates_x is None else x + gates_x[here]
        x = x if constant is None else x + constant[rows]
        sizes = weight_hh.shape[1], weight_hh.shape[0] // 4
        h, c = (
            weight_hh.new_zeros(len(rows), size) if state is None else state[rows]
            for state, size in zip((h0, c0), sizes, strict=True)
        )
        output, c = (
            lstm_loop(x, weight_hh, h, c, length)
            if weight_hr is None
            else projected_loop(x, weight_hh, h, c, weight_hr)
        )
        outputs.append(output.flatten(0, 1))
        places.append(here.flatten())
        h_n.append(output[-1])
        c_n.append(c)
    return torch.cat(outputs)[torch.cat(places).argsort()], torch.cat(h_n), torch.cat(c_n)


def projected_loop(x: Tensor, weight_hh: Tensor, h: Tensor, c: Tensor, weight_hr: Tensor) -> tuple[Tensor, Tensor]:
    """nn.LSTM's definition, h = W_hr (o tanh c), for gates ``[T, B, 4H]``."""
    output = []
    for gates in x:
        i, f, g, o = (gates + h @ weight_hh.t()).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = (o.sigmoid() * c.tanh()) @ weight_hr.t()
        output.append(h)
    return torch.stack(output), c


def gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a sum in which each element of the results has a weight of its own."""
    weights = [torch.linspace(-1, 1, t.numel(), dtype=torch.float64).view(t.shape).to(t.dtype) for t in results]
    return list(torch.autograd.grad(list(results), list(leaves), weights))


def assert_is_right(
    lengths: Sequence[int], args: Arguments, dtype: torch.dtype, backend: str, kernels: list[str] | None = None
) -> None:
    exact = [None if t is None else t.to(dtype).double().requires_grad_() for t in args]
    given = [None if t is None else t.detach().to(dtype).requires_grad_() for t in exact]
    weight_hh = given[2]
    assert weight_hh is not None
    with trace() as ran:
        got = packed_recurrence(*given[:2], weight_hh, *given[3:], batch_sizes_of(lengths), backend)
        got = (*got, *gradients(got, [t for t in given if t is not None]))
    assert kernels is None or ran == kernels
    want = oracle(lengths, exact)
    want = (*want, *gradients(want, [t for t in exact if t is not None]))
    names = ["output", "h_n", "c_n", *(name for name, t in zip(NAMES, given, strict=True) if t is not None)]
    for name, a, b in zip(names, got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm(), (name, (a.double() - b).norm() / b.norm())


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"{len(n)} sequences")
def test_native_takes_packed_rows(lengths: list[int], dtype: torch.dtype) -> None:
    kernels = ["native.forward", "native.backward"]
    for hidden, names in ((5, ("constant",)), (33, ("gates_x", "h0", "c0")), (16, ("gates_x", "constant", "c0"))):
        assert_is_right(lengths, arguments(lengths, hidden, names), dtype, "native", kernels)


@needs_library
@settings(max_examples=25)
@given(data=st.data())
def test_native_at_any_size(data: st.DataObject) -> None:
    lengths = sorted(data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=70)), reverse=True)
    hidden = data.draw(st.integers(1, 40))
    given = data.draw(st.sampled_from([("gates_x",), ("constant",), ("gates_x", "constant")]))
    states = data.draw(st.sampled_from([(), ("h0",), ("c0",), ("h0", "c0")]))
    args = arguments(lengths, hidden, (*given, *states), data.draw(st.integers(0, 99)))
    threads = torch.get_num_threads()
    torch.set_num_threads(data.draw(st.integers(1, 4)))
    try:
        assert_is_right(lengths, args, data.draw(st.sampled_from([torch.float32, torch.float64])), "native")
    finally:
        torch.set_num_threads(threads)


@needs_library
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("lengths", [sorted([*range(40)] * 3, reverse=True)[:-3], [9] * 70 + [3] * 60])
def test_threads_share_the_rows(lengths: list[int], threads: int) -> None:
    """Enough rows that each thread has rows of its own, of which the last ones have few steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_is_right(lengths, arguments(lengths, 24, ("gates_x", "h0")), torch.float32, "native")
    finally:
        torch.set_num_threads(before)


def assert_projection_is_right(
    lengths: Sequence[int], hidden: int, projected: int, given: Sequence[str], dtype: torch.dtype, backend: str
) -> None:
    args = arguments(lengths, hidden, given)
    generator = torch.Generator().manual_seed(1)
    args[2] = torch.randn(4 * hidden, projected, generator=generator, dtype=torch.float64) * projected**-0.5
    if args[3] is not None:
        args[3] = torch.randn(len(lengths), projected, generator=generator, dtype=torch.float64)
    weight_hr = torch.randn(projected, hidden, generator=generator, dtype=torch.float64) * hidden**-0.5
    exact: list[Any] = [None if t is None else t.to(dtype).double().requires_grad_() for t in (*args, weight_hr)]
    rounded: list[Any] = [None if t is None else t.detach().to(dtype).requires_grad_() for t in exact]
    sizes = batch_sizes_of(lengths).tolist()
    with torch.no_grad():
        inferred = projected_recurrence(*rounded, sizes, backend)
    with trace() as ran:
        got = projected_recurrence(*rounded, sizes, backend)
        assert all(torch.equal(a, b) for a, b in zip(inferred, got, strict=True))
        got = (*got, *gradients(got, [t for t in rounded if t is not None]))
    assert ran == (["eager.forward"] if backend == "eager" else [f"{backend}.forward", f"{backend}.backward"])
    want = oracle(lengths, exact[:-1], exact[-1])
    want = (*want, *gradients(want, [t for t in exact if t is not None]))
    given = [name for name, t in zip((*NAMES, "weight_hr"), rounded, strict=True) if t is not None]
    for name, a, b in zip(("output", "h_n", "c_n", *given), got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm(), (name, (a.double() - b).norm() / b.norm())


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"{len(n)} sequences")
def test_native_projects_packed_rows(lengths: list[int], dtype: torch.dtype) -> None:
    """To more columns than a panel has, to less than a vector has, and to as many as there are hidden units."""
    for hidden, projected, names in (
        (150, 140, ("gates_x", "h0")),
        (33, 3, ("constant", "c0")),
        (16, 16, ("gates_x", "constant", "h0", "c0")),
        (5, 1, ("constant",)),
    ):
        assert_projection_is_right(lengths, hidden, projected, names, dtype, "native")
    assert_projection_is_right(lengths, 33, 3, ("gates_x", "constant", "h0"), dtype, "eager")


@needs_library
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("lengths", [[9] * 70 + [3] * 60, [30] * 3, [40]])
def test_threads_share_projected_rows(lengths: list[int], threads: int) -> None:
    """Rows of their own, and parts of the same rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_projection_is_right(lengths, 130, 70, ("gates_x", "h0"), torch.float32, "native")
    finally:
        torch.set_num_threads(before)


@needs_library
@pytest.mark.parametrize("wanted", ["weight_hr", "weight_hh", "h0", "c0", "gates_x"])
def test_only_the_gradients_that_are_wanted_of_a_projection(wanted: str) -> None:
    lengths, generator = [4, 2, 2, 1], torch.Generator().manual_seed(2)
    shapes = {"gates_x": (9, 20), "weight_hh": (20, 3), "h0": (4, 3), "c0": (4, 5), "weight_hr": (3, 5)}
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    sizes, found = batch_sizes_of(lengths).tolist(), []
    for backend in ("native", "eager"):
        leaves = {name: t.clone().requires_grad_(name == wanted) for name, t in values.items()}
        gates_x, weight_hh, h0, c0, weight_hr = leaves.values()
        # Only the last states have a gradient.
        _, h_n, c_n = projected_recurrence(gates_x, None, weight_hh, h0, c0, weight_hr, sizes, backend)
        (h_n.square().sum() + c_n.sum()).backward()
        found.append(leaves[wanted].grad)
        assert [name for name, t in leaves.items() if t.grad is not None] == [wanted]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("given", [("gates_x",), ("constant",), ("gates_x", "constant", "h0", "c0")], ids=" ".join)
@pytest.mark.parametrize("lengths", LENGTHS[:4], ids=lambda n: f"{len(n)} sequences")
def test_every_backend(any_backend: str, lengths: list[int], given: tuple[str, ...]) -> None:
    if any_backend != "eager" and FUSED[any_backend].device != "cpu" and not FUSED[any_backend].interpreted():
        pytest.skip("on GPUs: test_on_a_gpu")
    assert_is_right(lengths, arguments(lengths, 6, given), torch.float64, any_backend)


@pytest.mark.gpu
@pytest.mark.parametrize("given", [("gates_x",), ("constant",), ("gates_x", "constant", "h0", "c0")], ids=" ".join)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: f"{len(n)} sequences")
def test_on_a_gpu(lengths: list[int], given: tuple[str, ...]) -> None:
    """What runs there is right on CPUs by the tests above, so here both are compared."""
    args = arguments(lengths, 32, given)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [None if t is None else t.to(device).requires_grad_() for t in args]
        weight_hh = leaves[2]
        assert weight_hh is not None
        got = packed_recurrence(*leaves[:2], weight_hh, *leaves[3:], batch_sizes_of(lengths))
        weights = [torch.linspace(-1, 1, t.numel(), dtype=torch.float64).view(t.shape).to(device) for t in got]
        grads = torch.autograd.grad(list(got), [t for t in leaves if t is not None], weights)
        results.append([t.cpu() for t in (*got, *grads)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_as_operators_it_is_padded() -> None:
    """Where PyTorch intercepts operators, the recurrence is one of them; and it takes the same values."""
    lengths = [5, 3, 3, 1]
    args = arguments(lengths, 6, ("gates_x", "constant", "h0", "c0"))
    with FlopCounterMode(display=False):
        assert_is_right(lengths, args, torch.float64, "auto")


def test_padding_is_not_read(any_backend: str) -> None:
    if any_backend != "eager" and FUSED[any_backend].device != "cpu" and not FUSED[any_backend].interpreted():
        pytest.skip("it is not for CPU tensors")
    torch.manual_seed(0)
    lengths, weight = torch.tensor([2, 4, 1]), torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(4, 3, 20, dtype=torch.float64)
    for fill in (0.0, torch.nan, torch.inf):
        for b, length in enumerate(lengths):
            gates[length:, b] = fill
        leaf = gates.clone().requires_grad_()
        output, h_n, c_n = padded_recurrence(leaf, weight, None, None, lengths, 4, any_backend)
        grads = torch.autograd.grad(output.sum() + h_n.sum() + c_n.square().sum(), [leaf, weight])
        for b, length in enumerate(lengths):
            assert output[length:, b].count_nonzero() == 0
            assert torch.equal(output[length - 1, b], h_n[b])
            assert grads[0][length:, b].count_nonzero() == 0
        assert all(t.isfinite().all() for t in (output, h_n, c_n, *grads))


def test_places() -> None:
    """Against PackedSequence's own numbering."""
    lengths = [4, 4, 2, 1]
    sequences = [torch.tensor([[10.0 * b + t] for t in range(length)]) for b, length in enumerate(lengths)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences)
    places = Places.of(packed.batch_sizes, 11, 4)
    assert places.lengths.tolist() == lengths
    assert torch.equal(10 * places.sequence + places.step, packed.data[:, 0].long())
    turned = torch.nn.utils.rnn.pack_sequence([sequence.flip(0) for sequence in sequences])
    assert torch.equal(packed.data[places.opposite()], turned.data)


@needs_library
def test_second_derivatives_are_refused() -> None:
    gates, weight = torch.randn(4, 20, requires_grad=True), torch.randn(20, 5, requires_grad=True)
    output, _, _ = packed_recurrence(gates, None, weight, None, None, torch.tensor([3, 1]))
    (first,) = torch.autograd.grad(output.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@needs_library
@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ([3, 4], 7, "expected none above the one before"),
        ([3, 0], 3, "none below 1"),
        ([], 3, "at least one"),
        ([3, 2], 6, r"gates_x: expected float32 on cpu with shape \[5, 20\]"),
    ],
)
def test_the_operator_names_what_is_wrong(sizes: list[int], rows: int, message: str) -> None:
    gates, weight = torch.zeros(rows, 20), torch.zeros(20, 5)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tagrank.packed_forward(gates, weight, None, None, None, sizes, False, False, [1])


@needs_library
@pytest.mark.parametrize(
    ("weight_hh", "weight_hr", "message"),
    [
        ([20, 3], None, r"weight_hh: expected shape \[4H, H\], or \[4H, P\] beside weight_hr"),
        ([20, 3], [5, 3], r"weight_hr: expected float32 on cpu with shape \[3, 5\]"),
    ],
)
def test_the_operator_names_what_is_wrong_with_a_projection(
    weight_hh: list[int], weight_hr: list[int] | None, message: str
) -> None:
    projection = None if weight_hr is None else torch.zeros(weight_hr)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tagrank.packed_forward(
            torch.zeros(4, 20), torch.zeros(weight_hh), None, None, projection, [3, 1], False, False, [1]
        )


@needs_library
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight_hr": None}, r"weight_hh: expected float32 on cpu with shape \[20, 5\]; got .* \[20, 3\]"),
        ({"weight_hr": torch.zeros(5, 3)}, r"weight_hr: expected float32 on cpu with shape \[3, 5\]; got .* \[5, 3\]"),
        ({"output": torch.zeros(4, 5)}, r"output: expected float32 on cpu with shape \[4, 3\]; got .* \[4, 5\]"),
        ({"h0": torch.zeros(3, 5)}, r"h0: expected float32 on cpu with shape \[3, 3\]; got .* \[3, 5\]"),
        ({"grad_output": torch.zeros(4, 5)}, r"grad_output: .* with shape \[4, 3\]; got .* \[4, 5\]"),
        ({"grad_h_n": torch.zeros(3, 5)}, r"grad_h_n: .* with shape \[3, 3\]; got .* \[3, 5\]"),
    ],
)
def test_the_backward_operator_names_what_is_wrong_with_a_projection(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = dict.fromkeys(("grad_output", "grad_h_n", "grad_c_n", "h0", "c0"))
    arguments |= {"weight_hh": torch.zeros(20, 3), "weight_hr": torch.zeros(3, 5), "batch_sizes": [3, 1]}
    arguments |= {"output": torch.zeros(4, 3), "gates": torch.zeros(4, 20), "cells": torch.zeros(4, 5)}
    arguments |= {"constant": False, "wanted": 8 + 128, "launch": [1]}
    d_gates, d_weight_hh, d_weight_hr = torch.ops.tagrank.packed_backward(**arguments)
    assert (d_gates.shape, d_weight_hh.shape, d_weight_hr.shape) == ((4, 20), (20, 3), (3, 5))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tagrank.packed_backward(**(arguments | changed))


@needs_library
def test_gradients_of_a_constant_in_16_bit_are_summed_in_float32() -> None:
    """Over 200 steps of different numbers of rows; sums in bfloat16 would be wrong by 0.0065."""
    generator = torch.Generator().manual_seed(3)
    lengths = sorted(torch.randint(1, 201, (64,), generator=generator).tolist(), reverse=True)
    rounded = [None if t is None else t.bfloat16() for t in arguments(lengths, 64, ("gates_x", "constant"))]
    found = []
    for dtype, backend in ((torch.bfloat16, "native"), (torch.float64, "eager")):
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in rounded]
        output, _, _ = packed_recurrence(*leaves, batch_sizes_of(lengths), backend)  # type: ignore[arg-type]
        weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output).to(dtype)
        found.append(torch.autograd.grad((output * weights).sum(), leaves[1])[0].double())  # type: ignore[arg-type]
    assert (found[0] - found[1]).norm() <= 0.005 * found[1].norm()


@needs_library
def test_an_activation_checkpoint_with_a_graph_of_its_gradients() -> None:
    lengths = [6, 5, 3, 2, 1]
    leaves = [None if t is None else t.requires_grad_() for t in arguments(lengths, 8, NAMES)]

    def run(*given: Tensor | None) -> Tensor:
        return packed_recurrence(*given, batch_sizes_of(lengths), "native")[0]  # type: ignore[arg-type]

    want = torch.autograd.grad(run(*leaves).sum(), leaves)  # type: ignore[arg-type]
    output = checkpoint(run, *leaves, use_reentrant=False)
    got = torch.autograd.grad(output.sum(), leaves, create_graph=True)  # type: ignore[arg-type]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
