"""What every backend of lstm_recurrence must do: numbers, gradients, operators, errors."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from tagrank import lstm_recurrence
from tagrank.recurrence import fused, trace
from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.dtypes import autocasts

pytestmark = pytest.mark.usefixtures("exact_float32")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
NAMES = ("gates_x", "weight_hh", "h0", "c0")


def make_inputs(
    batch: int, hidden: int, steps: int | None, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> list[Tensor]:
    """gates_x (constant if steps is None), weight_hh, h0, c0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 4 * hidden) if steps is None else (steps, batch, 4 * hidden)
    shapes = [shape, (4 * hidden, hidden), (batch, hidden), (batch, hidden)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).mul(0.7).to(device, dtype).requires_grad_()
        for s in shapes
    ]


def cell_loop(gates_x: Tensor, weight_hh: Tensor, h0: Tensor, c0: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The independent reference: an nn.LSTMCell that reads ``gates_x`` through an identity weight."""
    cell = nn.LSTMCell(gates_x.shape[-1], h0.shape[-1], bias=False, dtype=gates_x.dtype, device=gates_x.device)
    identity = torch.eye(gates_x.shape[-1], dtype=gates_x.dtype, device=gates_x.device)
    h, c, outputs = h0, c0, []
    for t in range(steps):
        x = gates_x if gates_x.dim() == 2 else gates_x[t]
        h, c = torch.func.functional_call(cell, {"weight_ih": identity, "weight_hh": weight_hh}, (x, (h, c)))
        outputs.append(h)
    return torch.stack(outputs), c


def gradients(output: Tensor, c_n: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a sum in which each element of both outputs has a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    scalar = sum(
        (t.double() * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)).sum()
        for t in (output, c_n)
    )
    return torch.autograd.grad(scalar, inputs)


@given(
    batch=st.integers(1, 5),
    hidden=st.integers(1, 20),
    steps=st.integers(1, 4),
    constant=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=12)
def test_agrees_with_an_lstm_cell_loop(
    any_backend: str,
    device_of: Callable[[str], str],
    batch: int,
    hidden: int,
    steps: int,
    constant: bool,
    dtype: torch.dtype,
) -> None:
    inputs = make_inputs(batch, hidden, None if constant else steps, device=device_of(any_backend))
    expected = cell_loop(*inputs, steps)
    expected_grads = gradients(*expected, inputs)

    ours = [t.detach().to(dtype).requires_grad_() for t in inputs]
    with trace() as kernels:
        output, c_n = lstm_recurrence(*ours, steps=steps, backend=any_backend)
        grads = gradients(output, c_n, ours)
    assert {kernel.split(".")[0] for kernel in kernels} == {any_backend}
    assert output.dtype == c_n.dtype == dtype
    scale = TOLERANCE[dtype]
    for name, got, want in zip(
        ("output", "c_n", *NAMES), (output, c_n, *grads), (*expected, *expected_grads), strict=True
    ):
        assert got.shape == want.shape, name
        error = (got.double() - want).abs().max().item()
        assert error <= scale * max(1.0, want.abs().max().item()), f"{name}: {error}"


def test_writes_every_element(backend: str, device: str, poisoned: None) -> None:
    inputs = make_inputs(3, 17, None, torch.float32, device)
    output, c_n = lstm_recurrence(*inputs, steps=3, backend=backend)
    for tensor in (output, c_n, *gradients(output, c_n, inputs)):
        assert tensor.isfinite().all()


def test_non_contiguous_inputs(backend: str, device: str) -> None:
    inputs = make_inputs(3, 8, 4, torch.float32, device)
    strided = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in inputs]
    assert not any(t.is_contiguous() for t in strided)
    expected = lstm_recurrence(*inputs, backend=backend)
    got = lstm_recurrence(*strided, backend=backend)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(*got, strided), gradients(*expected, inputs))


def test_states_default_to_zeros(backend: str, device: str) -> None:
    gates_x, weight_hh, h0, c0 = make_inputs(2, 6, None, torch.float32, device)
    got = lstm_recurrence(gates_x, weight_hh, steps=2, backend=backend)
    expected = lstm_recurrence(gates_x, weight_hh, h0.detach() * 0, c0.detach() * 0, steps=2, backend=backend)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("used", ["output", "c_n"])
def test_gradient_through_only_one_output(backend: str, device: str, used: str) -> None:
    inputs = make_inputs(2, 5, None, torch.float64, device)

    def pick(result: tuple[Tensor, Tensor]) -> Tensor:
        return result[0][0].sum() if used == "output" else result[1].pow(2).sum()

    expected = torch.autograd.grad(pick(lstm_recurrence(*inputs, steps=3, backend="eager")), inputs)
    got = torch.autograd.grad(pick(lstm_recurrence(*inputs, steps=3, backend=backend)), inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("constant", [True, False])
def test_gradcheck(backend: str, device: str, constant: bool) -> None:
    inputs = make_inputs(2, 3, None if constant else 3, torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda *args: lstm_recurrence(*args, steps=3, backend=backend), inputs, nondet_tol=0.0, fast_mode=True
    )


def test_second_derivatives_of_eager() -> None:
    inputs = make_inputs(2, 3, None)
    assert torch.autograd.gradgradcheck(
        lambda *args: lstm_recurrence(*args, steps=3, backend="eager"), inputs, fast_mode=True
    )


def test_second_derivative_of_a_fused_backend_raises(backend: str, device: str) -> None:
    inputs = make_inputs(2, 3, None, torch.float64, device)
    output, _ = lstm_recurrence(*inputs, steps=3, backend=backend)
    grads = torch.autograd.grad(output.pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='eager'"):
        grads[0].sum().backward()


def test_called_directly_or_as_an_operator_it_is_the_same(backend: str, device: str) -> None:
    """If nobody looks at the operators, the dispatcher is left out. A dispatch mode sees one operator for each pass."""

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    inputs = make_inputs(3, 5, 2, torch.float32, device)
    names: list[str] = []
    results = []
    for mode in (nullcontext(), Log()):
        with mode:
            output, c_n = lstm_recurrence(*inputs, backend=backend)
            results.append([output, c_n, *torch.autograd.grad(output.sum() + c_n.sum(), inputs)])
    assert [name for name in names if "lstm" in name] == ["tagrank::lstm_forward", "tagrank::lstm_backward"]
    for direct, operator in zip(*results, strict=True):
        assert torch.equal(direct, operator)


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    inputs = make_inputs(2, 7, 3, torch.float32, device)
    output, _ = lstm_recurrence(*inputs, backend=backend)
    first = torch.autograd.grad(output.pow(2).sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(output.pow(2).sum(), inputs)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("constant", [True, False])
def test_recompute_gives_the_same_gradients_and_saves_no_gates(backend: str, device: str, constant: bool) -> None:
    inputs = make_inputs(3, 6, None if constant else 4, torch.float64, device)
    saved: list[list[int]] = []

    def run(recompute: bool) -> tuple[Tensor, ...]:
        saved.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(list(t.shape)) or t, lambda t: t)
        with hooks:
            result = lstm_recurrence(*inputs, steps=4, backend=backend, recompute=recompute)
        return gradients(*result, inputs)

    plain = run(False)
    assert saved.count([4, 3, 24]) == 1  # the activated gates; gates_x may have this shape too, and is not saved
    torch.testing.assert_close(run(True), plain)
    assert saved.count([4, 3, 24]) == (0 if constant else 1)  # gates_x


def record_results(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Tensor | None]]:
    """What a pass of the backend returns in each call from now on, whoever runs it."""
    results: list[Sequence[Tensor | None]] = []
    owner, name = (fused, f"_layer_{name}") if FUSED[backend].by_library() else (FUSED[backend], name)
    original = getattr(owner, name)

    def recording(*args: Any) -> Sequence[Tensor | None]:
        results.append(original(*args))
        return list(results[-1])

    monkeypatch.setattr(owner, name, recording)
    return results


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_only_some_inputs(
    backend: str, device: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mix of trained and frozen inputs. If the weight is frozen, the backend computes no gradient of it."""
    results = record_results(backend, "backward", monkeypatch)
    inputs = make_inputs(3, 6, None, torch.float64, device)
    sum((t * t.detach()).sum() for t in cell_loop(*inputs, 3)).backward()
    for wanted in product([False, True], repeat=4):
        if not any(wanted):
            continue
        ours = [t.detach().requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
        result = lstm_recurrence(*ours, steps=3, backend=backend, recompute=recompute)
        sum((t * t.detach()).sum() for t in result).backward()
        for name, got, want in zip(NAMES, ours, inputs, strict=True):
            assert (got.grad is not None) == got.requires_grad, name
            if got.grad is not None:
                torch.testing.assert_close(got.grad, want.grad)
        of_weight = [d for d in results.pop() if d is not None and d.shape == (24, 6)]
        assert len(of_weight) == wanted[1]


def test_without_grad_nothing_is_saved(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(3, 6, None, torch.float32, device)
    results = record_results(backend, "forward", monkeypatch)
    with torch.no_grad():
        lstm_recurrence(*inputs, steps=2, backend=backend)
    lstm_recurrence(*(t.detach() for t in inputs), steps=2, backend=backend)
    lstm_recurrence(*inputs, steps=2, backend=backend)
    # Beside the hidden states and the last states.
    saved = [[t.numel() for t in some if t.numel() and t.shape not in ((2, 3, 6), (3, 6))] for some in results]
    assert saved == [[], [], [2 * 3 * 24]]
    assert [sum(t.shape == (2, 3, 6) for t in some) for some in results] == [1, 1, 2]


@pytest.mark.parametrize("mode", ["training", "recompute", "inference"])
@pytest.mark.parametrize("constant", [True, False])
def test_opcheck(backend: str, device: str, constant: bool, mode: str) -> None:
    inputs = make_inputs(2, 5, None if constant else 3, torch.float64, device)
    if mode == "inference":
        inputs = [t.detach() for t in inputs]
    saves = (mode == "training", mode != "inference")
    torch.library.opcheck(torch.ops.tagrank.lstm_forward.default, (*inputs, 3, backend, *saves))


@pytest.mark.parametrize("weight_wanted", [True, False])
def test_opcheck_of_backward(backend: str, device: str, weight_wanted: bool) -> None:
    inputs = [t.detach() for t in make_inputs(2, 5, None, torch.float64, device)]
    output, c_n, gates, cells = torch.ops.tagrank.lstm_forward(*inputs, 3, backend, True, True)
    args = (torch.ones_like(output), torch.ones_like(c_n), *inputs, output, gates, cells, True, weight_wanted, backend)
    torch.library.opcheck(torch.ops.tagrank.lstm_backward.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend: str, device: str, dynamic: bool) -> None:
    inputs = make_inputs(3, 6, None, torch.float32, device)

    def step(*args: Any) -> Tensor:
        output, c_n = lstm_recurrence(*args, steps=3, backend=backend)
        return output.sum(0).tanh() + c_n

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with trace() as kernels:
        got = compiled(*inputs)
        grads = torch.autograd.grad(got.sum(), inputs)
    assert {k.split(".")[0] for k in kernels} == {backend}
    if dynamic:
        other = make_inputs(5, 6, None, torch.float32, device, seed=2)
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(*other), step(*other))
    expected = step(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), inputs))


def test_compiles_with_a_frozen_weight(backend: str, device: str) -> None:
    inputs = make_inputs(3, 6, None, torch.float32, device)
    inputs[1].requires_grad_(False)
    trained = [t for t in inputs if t.requires_grad]

    def step(*args: Any) -> Tensor:
        return lstm_recurrence(*args, steps=3, backend=backend)[0]

    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    expected = step(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), trained), torch.autograd.grad(expected.sum(), trained))


def test_autocast_around_backward_changes_nothing(backend: str, device: str) -> None:
    inputs = make_inputs(3, 6, None, torch.float32, device)
    for recompute in (False, True):
        result = lstm_recurrence(*inputs, steps=3, backend=backend, recompute=recompute)
        expected = torch.autograd.grad(result[0].sum(), inputs, retain_graph=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            got = torch.autograd.grad(result[0].sum(), inputs)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_forward_mode_is_exact_or_refused(backend: str, device: str) -> None:
    inputs = [t.detach() for t in make_inputs(2, 5, None, torch.float64, device)]
    tangents = [torch.ones_like(t) for t in inputs]

    def run(*args: Tensor, name: str) -> Tensor:
        return lstm_recurrence(*args, steps=3, backend=name)[0].pow(2).sum()

    _, auto = torch.func.jvp(partial(run, name="auto"), tuple(inputs), tuple(tangents))
    step = 1e-6
    ahead, behind = (
        run(*(t + sign * step * d for t, d in zip(inputs, tangents, strict=True)), name="eager") for sign in (1, -1)
    )
    assert auto.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-6)
    with pytest.raises(RuntimeError, match=r"torch\.func works with backend='eager' only"):
        torch.func.jvp(partial(run, name=backend), tuple(inputs), tuple(tangents))
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="forward-mode derivatives work with backend='eager' only"),
    ):
        run(forward_ad.make_dual(inputs[0], tangents[0]), *inputs[1:], name=backend)


def test_torch_func_takes_the_eager_loop() -> None:
    inputs = [t.detach() for t in make_inputs(2, 5, None)]
    gradient = torch.func.grad(lambda gates_x: lstm_recurrence(gates_x, *inputs[1:], steps=3)[0].pow(2).sum())(
        inputs[0]
    )
    leaf = inputs[0].clone().requires_grad_()
    expected = torch.autograd.grad(lstm_recurrence(leaf, *inputs[1:], steps=3)[0].pow(2).sum(), leaf)[0]
    torch.testing.assert_close(gradient, expected)


def test_an_empty_batch(backend: str, device: str) -> None:
    inputs = make_inputs(0, 4, None, torch.float32, device)
    output, c_n = lstm_recurrence(*inputs, steps=3, backend=backend)
    assert (output.shape, c_n.shape) == ((3, 0, 4), (0, 4))
    grads = gradients(output, c_n, inputs)
    assert torch.equal(grads[1], torch.zeros_like(inputs[1]))


def test_autocast(backend: str, device: str) -> None:
    inputs = make_inputs(3, 6, None, torch.float32, device)
    halves = [torch.empty(1, 4, dtype=dtype, device=device) for dtype in (torch.float16, torch.bfloat16)]
    dtype = next(half.dtype for half in halves if FUSED[backend].unsupported(half) is None)
    with torch.autocast(device, dtype=dtype):
        output, c_n = lstm_recurrence(*inputs, steps=3, backend=backend)
    assert output.dtype == c_n.dtype == dtype
    expected = cell_loop(*inputs, 3)
    torch.testing.assert_close(output.float(), expected[0].float(), rtol=0.02, atol=0.02)
    grads = gradients(output, c_n, inputs)
    assert [g.dtype for g in grads] == [torch.float32] * 4
    for got, want in zip(grads, gradients(*expected, inputs), strict=True):
        assert (got - want).norm() <= 0.03 * want.norm()


def test_autocasts_takes_every_type_of_device() -> None:
    with pytest.raises(RuntimeError, match="Expected one of") as error:
        torch.device("nonesuch")
    types = str(error.value).split("Expected one of ")[1].split(" device type")[0].split(", ")
    assert {"cpu", "cuda", "meta"} <= {*types}
    assert not any(autocasts(device) for device in types)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [device for device in types if autocasts(device)] == ["cpu"]


def bad(**changes: Any) -> dict[str, Any]:
    gates_x, weight_hh, h0, c0 = (t.detach() for t in make_inputs(2, 3, None, torch.float32))
    return {"gates_x": gates_x, "weight_hh": weight_hh, "h0": h0, "c0": c0, "steps": 2} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            bad(gates_x=torch.zeros(2, 13)),
            r"gates_x: expected shape \[B, 4H\] or \[T, B, 4H\] with 4H = 12, got \[2, 13\]",
        ),
        (bad(gates_x=torch.zeros(12)), "gates_x: expected shape"),
        (bad(gates_x=torch.zeros(2, 12, dtype=torch.int64)), "gates_x: expected one of float16"),
        (bad(weight_hh=torch.zeros(12, 4)), r"weight_hh: expected shape \[4H, H\]"),
        (bad(weight_hh=torch.zeros(12, 3, dtype=torch.float64)), "weight_hh: expected torch.float32 on cpu"),
        (bad(h0=torch.zeros(1, 3)), r"h0: expected shape \[B, H\] = \[2, 3\], got \[1, 3\]"),
        (bad(c0=torch.zeros(2, 3, device="meta")), "c0: expected torch.float32 on cpu like gates_x, got .* on meta"),
        (bad(steps=None), "steps: expected a number of steps"),
        (bad(steps=0), "steps: expected at least 1, got 0"),
        (bad(gates_x=torch.zeros(4, 2, 12)), "steps: expected 4, the length of gates_x, or None; got 2"),
        (bad(backend="cudnn"), "backend: expected one of 'auto', 'eager', 'native', 'cluster', 'triton'; got 'cudnn'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstm_recurrence(**arguments)


def test_a_named_backend_runs_or_raises() -> None:
    arguments = bad()
    arguments = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match="backend='native' cannot run this"):
        lstm_recurrence(**arguments, backend="native")


def test_auto_takes_the_native_backend_on_cpus() -> None:
    with trace() as kernels:
        lstm_recurrence(**bad())
    assert kernels == ["native.forward"]
