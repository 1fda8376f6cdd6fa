"""ContextLSTM against nn.LSTM on the repeated context, ContextLSTMCell against nn.LSTMCell."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tagrank import ContextLSTM, ContextLSTMCell, lstm_recurrence
from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED

pytestmark = pytest.mark.usefixtures("exact_float32")


def oracle(lstm: ContextLSTM, context: Tensor | None, steps: int, input: Tensor | None, hx: Any) -> Any:
    """nn.LSTM in float64, with the same state dict, on the repeated context, which ContextLSTM never builds."""
    reference = nn.LSTM(
        lstm.input_size + lstm.context_size,
        lstm.hidden_size,
        lstm.num_layers,
        bias=lstm.bias,
        batch_first=lstm.batch_first,
        dtype=torch.float64,
        device=lstm.weight_hh_l0.device,
    )
    reference.load_state_dict(lstm.state_dict())
    parts = [] if input is None else [input.double()]
    if context is not None:
        repeated = context.double().unsqueeze(-2 if lstm.batch_first or context.dim() == 1 else 0)
        lead = (steps,) if context.dim() == 1 else (len(context), steps) if lstm.batch_first else (steps, len(context))
        parts.append(repeated.expand(*lead, -1))
    output, states = reference(torch.cat(parts, dim=-1), hx and tuple(s.double() for s in hx))
    return reference, output, states


@given(data=st.data())
@settings(max_examples=15)
def test_is_nn_lstm_on_the_repeated_context(
    any_backend: str, device_of: Callable[[str], str], data: st.DataObject
) -> None:
    device = device_of(any_backend)
    batched, batch_first, with_hx = (data.draw(st.booleans(), label=n) for n in ("batched", "batch_first", "hx"))
    context_size, input_size = data.draw(st.sampled_from([(3, 0), (4, 2), (0, 3)]), label="sizes")
    hidden, layers = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 2))
    batch, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    lstm = ContextLSTM(
        context_size,
        hidden,
        input_size=input_size,
        num_layers=layers,
        bias=data.draw(st.booleans(), label="bias"),
        batch_first=batch_first,
        backend=any_backend,
        device=device,
    )
    rows = (batch,) if batched else ()
    lead = (batch, steps) if batched and batch_first else (steps, *rows)
    context = torch.randn(*rows, context_size, device=device, requires_grad=True) if context_size else None
    input = torch.randn(*lead, input_size, device=device, requires_grad=True) if input_size else None
    hx = (
        tuple(torch.randn(layers, *rows, hidden, device=device, requires_grad=True) for _ in range(2))
        if with_hx
        else None
    )

    with trace() as kernels:
        output, (h_n, c_n) = lstm(context, steps, input, hx)
    assert [k.split(".")[:2] for k in kernels] == [[any_backend, "forward"]] * layers
    reference, expected, (expected_h, expected_c) = oracle(lstm, context, steps, input, hx)
    for got, want in ((output, expected), (h_n, expected_h), (c_n, expected_c)):
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)

    leaves = [t for t in (context, input, *(hx or ())) if t is not None]
    weights = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    with trace() as kernels:
        ours = torch.autograd.grad((output * weights).sum() + c_n.sum(), [*leaves, *lstm.parameters()])
    if any_backend != "eager":
        assert [k.split(".")[:2] for k in kernels] == [[any_backend, "backward"]] * layers
    theirs = torch.autograd.grad((expected * weights).sum() + expected_c.sum(), [*leaves, *reference.parameters()])
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_loads_both_ways(layers: int, bias: bool) -> None:
    ours = ContextLSTM(3, 5, input_size=2, num_layers=layers, bias=bias)
    theirs = nn.LSTM(5, 5, layers, bias=bias)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict())
    assert [[p.shape for p in layer] for layer in ours.all_weights] == [
        [p.shape for p in layer] for layer in theirs.all_weights
    ]
    assert (ours.bidirectional, ours.proj_size) == (theirs.bidirectional, theirs.proj_size)
    other = ContextLSTM(3, 5, input_size=2, num_layers=layers, bias=bias)
    other.load_state_dict(theirs.state_dict())
    for a, b in zip(ours.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_is_initialised_as_nn_lstm() -> None:
    torch.manual_seed(0)
    ours = ContextLSTM(3, 5, input_size=2, num_layers=2)
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 5, 2)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_between_layers_only_in_training() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        ContextLSTM(3, 5, dropout=0.5)
    lstm = ContextLSTM(3, 64, num_layers=2, dropout=0.5)
    plain = ContextLSTM(3, 64, num_layers=2)
    plain.load_state_dict(lstm.state_dict())
    context = torch.randn(2, 3)
    expected = plain(context, 4)
    assert not torch.equal(lstm(context, 4)[0], expected[0])
    # The first layer comes before any dropout.
    torch.testing.assert_close(lstm(context, 4)[1][0][0], expected[1][0][0])
    torch.testing.assert_close(lstm.eval()(context, 4), expected, rtol=0, atol=0)


def test_modules_that_earlier_versions_pickled() -> None:
    lstm = ContextLSTM(3, 4)
    state = {name: value for name, value in vars(lstm).items() if name not in ("bidirectional", "proj_size")}
    twin = ContextLSTM.__new__(ContextLSTM)
    twin.__setstate__(state)
    context = torch.randn(2, 3)
    torch.testing.assert_close(twin(context, 5), lstm(context, 5))


@pytest.mark.parametrize("module", [ContextLSTM(3, 5, input_size=2), ContextLSTMCell(3, 5, input_size=2)])
def test_deepcopy_pickle_and_repr(module: nn.Module) -> None:
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module)
        for a, b in zip(module.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr()
    assert "(3, 5, input_size=2)" in repr(module)


def test_device_and_dtype() -> None:
    assert {p.dtype for p in ContextLSTM(3, 5, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    lstm = ContextLSTM(3, 5, device="meta")
    assert {p.device.type for p in lstm.parameters()} == {"meta"}
    output, (h_n, c_n) = lstm(torch.empty(2, 3, device="meta"), 4)
    assert output.shape == (4, 2, 5)
    assert h_n.shape == c_n.shape == (1, 2, 5)
    lstm = lstm.to_empty(device="cpu")
    lstm.reset_parameters()
    assert lstm(torch.zeros(2, 3), 4)[0].isfinite().all()


def test_compiles_into_one_graph() -> None:
    lstm = ContextLSTM(3, 5, input_size=2, num_layers=2)
    context, input = torch.randn(2, 3), torch.randn(4, 2, 2)
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    got = compiled(context, input=input)[0]
    expected = lstm(context, input=input)[0]
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got.sum(), lstm.parameters())
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), lstm.parameters()))


def test_compiles_under_autocast() -> None:
    lstm, context = ContextLSTM(3, 5), torch.randn(2, 3)
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for enabled, dtype in ((False, torch.float32), (True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            got, expected = compiled(context, 4)[0], lstm(context, 4)[0]
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected)


def test_trains_under_autocast_as_nn_lstm_does() -> None:
    lstm, theirs, context = ContextLSTM(3, 5), nn.LSTM(3, 5), torch.randn(2, 3)
    theirs.load_state_dict(lstm.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (_, c_n) = lstm(context, 4)
        reference, _ = theirs(context.expand(4, -1, -1))
    assert output.dtype == c_n.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(output, reference, rtol=0.02, atol=0.02)
    ours, want = (
        torch.autograd.grad(out.float().sum(), m.parameters()) for out, m in ((output, lstm), (reference, theirs))
    )
    for a, b in zip(ours, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.03 * b.norm()


def test_functional_call() -> None:
    lstm = ContextLSTM(3, 5)
    zeros = {name: torch.zeros_like(p) for name, p in lstm.named_parameters()}
    output, _ = torch.func.functional_call(lstm, zeros, (torch.randn(2, 3), 4))
    assert torch.equal(output, torch.zeros(4, 2, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"context_size": 3, "hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
        ({"context_size": 3, "hidden_size": "a"}, TypeError, "hidden_size should be of type int, got: str"),
        ({"context_size": 0, "hidden_size": 2}, ValueError, "nor both be zero"),
        ({"context_size": -1, "hidden_size": 2}, ValueError, "got context_size=-1"),
        ({"context_size": 3, "hidden_size": 2, "num_layers": 0}, ValueError, "num_layers must be greater than zero"),
        ({"context_size": 3, "hidden_size": 2, "dropout": 2}, ValueError, r"in range \[0, 1\]"),
        ({"context_size": 3, "hidden_size": 2, "backend": "cudnn"}, ValueError, "got 'cudnn'"),
    ],
)
def test_bad_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTM(**arguments)


STATE = torch.zeros(1, 2, 5)


@pytest.mark.parametrize(
    ("input_size", "arguments", "error", "message"),
    [
        (
            0,
            {"context": torch.zeros(2, 4), "steps": 2},
            RuntimeError,
            "must be equal to context_size. Expected 3, got 4",
        ),
        (0, {"context": torch.zeros(2, 2, 3), "steps": 2}, ValueError, "Expected context to be 1D or 2D, got 3D"),
        (0, {"context": torch.zeros(2, 3)}, TypeError, "steps is required"),
        (0, {"context": None, "steps": 2}, TypeError, "context is required"),
        (0, {"context": torch.zeros(2, 3), "steps": 0}, RuntimeError, "larger than 0"),
        (0, {"context": torch.zeros(2, 3).double(), "steps": 2}, ValueError, "does not match weight dtype"),
        (0, {"context": torch.zeros(2, 3), "input": torch.zeros(2, 2, 2)}, TypeError, "input is not taken"),
        (0, {"context": [1, 2, 3], "steps": 2}, TypeError, "context should be a Tensor, got list"),
        (2, {"context": torch.zeros(2, 3)}, TypeError, "input is required because input_size is 2"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 3, 2)}, RuntimeError, "context batch size 3"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 2)}, RuntimeError, "both be batched"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 2, 2), "steps": 3}, ValueError, "steps: expected 4"),
        (0, {"context": torch.zeros(2, 3), "steps": 2.0}, TypeError, "steps: expected an int, got float"),
        (0, {"context": torch.zeros(2, 3), "steps": (STATE, STATE)}, TypeError, "steps: expected an int, got tuple"),
        (
            0,
            {"context": torch.zeros(2, 3), "steps": 2, "hx": STATE},
            TypeError,
            "expected a pair of Tensors.*got Tensor",
        ),
        (0, {"context": torch.zeros(2, 3), "steps": 2, "hx": (STATE, None)}, TypeError, r"got \(Tensor, NoneType\)"),
        (
            0,
            {"context": torch.zeros(2, 3), "steps": 2, "hx": (STATE, STATE.double())},
            ValueError,
            r"hidden\[1\] dtype \(torch.float64\) does not match weight dtype",
        ),
        (0, {"context": torch.zeros(2, 3), "steps": 2, "hx": (STATE[0], STATE[0])}, RuntimeError, r"got \[2, 5\]"),
        (0, {"context": torch.zeros(3), "steps": 2, "hx": (STATE, STATE)}, RuntimeError, r"size \(1, 5\), got"),
        (
            0,
            {"context": torch.zeros(3, 3), "steps": 2, "hx": (torch.zeros(1, 3, 5), STATE)},
            RuntimeError,
            r"Expected hidden\[1\] size \(1, 3, 5\), got \[1, 2, 5\]",
        ),
    ],
)
def test_bad_calls(input_size: int, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTM(3, 5, input_size=input_size)(**arguments)


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), np.uint8(3)], ids=lambda n: type(n).__name__)
def test_any_integer_is_a_size(number: Any) -> None:
    lstm = ContextLSTM(number, number, input_size=number, num_layers=number)
    assert all(type(size) is int for size in (lstm.context_size, lstm.hidden_size, lstm.input_size, lstm.num_layers))
    context, input = torch.randn(2, 3), torch.randn(3, 2, 3)
    assert torch.equal(lstm(context, number, input)[0], lstm(context, 3, input)[0])
    without = ContextLSTM(3, 3)
    assert torch.equal(without(context, number)[0], without(context, 3)[0])
    gates, weight_hh = torch.randn(2, 12), torch.randn(12, 3)
    output = lstm_recurrence(gates, weight_hh, steps=number)[0]
    assert torch.equal(output, lstm_recurrence(gates, weight_hh, steps=3)[0])
    ContextLSTMCell(number, number, input_size=number)


@pytest.mark.parametrize("steps", [True, np.True_, 3.0, np.float64(3), "3", torch.tensor(3)], ids=repr)
def test_other_numbers_are_no_steps(steps: Any) -> None:
    with pytest.raises(TypeError, match="steps: expected an int, got"):
        ContextLSTM(3, 3)(torch.randn(2, 3), steps)
    with pytest.raises(TypeError, match="steps: expected an int, got"):
        lstm_recurrence(torch.randn(2, 12), torch.randn(12, 3), steps=steps)


@pytest.mark.parametrize("input_size", [0, 2])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_nn_lstm_cell(input_size: int, batched: bool, bias: bool) -> None:
    torch.manual_seed(0)
    cell = ContextLSTMCell(3, 5, input_size=input_size, bias=bias)
    torch.manual_seed(0)
    reference = nn.LSTMCell(input_size + 3, 5, bias=bias)
    for (name, a), (other, b) in zip(cell.named_parameters(), reference.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    rows = (2,) if batched else ()
    context, state = torch.randn(*rows, 3), None
    gates = cell.context_gates(context)
    assert [*cell._parameters] == [*reference._parameters]
    expected = None
    for _ in range(3):
        input = torch.randn(*rows, input_size) if input_size else None
        state = cell(gates, input, state)
        expected = reference(torch.cat([t for t in (input, context) if t is not None], dim=-1), expected)
        torch.testing.assert_close(state, expected)


def test_cell_steps_are_the_layer() -> None:
    lstm, cell = ContextLSTM(3, 5, input_size=2), ContextLSTMCell(3, 5, input_size=2)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    context, input, state = torch.randn(4, 3), torch.randn(6, 4, 2), None
    gates = cell.context_gates(context)
    for x in input:
        state = cell(gates, x, state)
    assert state is not None
    torch.testing.assert_close(state[1], lstm(context, input=input)[1][1][0])


@pytest.mark.parametrize(("context_size", "input_size"), [(3, 2), (3, 0), (0, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_cell_of_a_layer_steps_it(context_size: int, input_size: int, bias: bool) -> None:
    lstm = ContextLSTM(context_size, 5, input_size=input_size, bias=bias)
    cell = lstm.cell()
    assert [p.data_ptr() for p in cell.parameters()] == [p.data_ptr() for p in lstm.parameters()]
    assert "cell" not in "".join(lstm.state_dict())
    context, inputs, state = torch.randn(4, context_size), torch.randn(6, 4, input_size), None
    gates = cell.context_gates(context)
    for x in inputs:
        state = cell(gates, x if input_size else None, state)
    assert state is not None
    whole = lstm(context if context_size else None, 6, inputs if input_size else None)[1]
    torch.testing.assert_close(torch.stack(state), torch.cat(whole))
    ours = torch.autograd.grad(sum(state).square().sum(), lstm.parameters())
    torch.testing.assert_close(ours, torch.autograd.grad(sum(whole).square().sum(), lstm.parameters()))


def test_the_cell_of_a_layer_under_functional_call() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = ContextLSTM(3, 5)

        def forward(self, context: Tensor) -> Tensor:
            cell = self.lstm.cell()
            h: Tensor = cell(cell.context_gates(context))[0]
            return h

    module, context = Stepped(), torch.randn(2, 3)
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert torch.equal(torch.func.functional_call(module, zeros, (context,)), torch.zeros(2, 5))
    assert module(context).abs().min() > 0


def test_a_stack_of_layers_has_no_cell() -> None:
    with pytest.raises(ValueError, match="cell: expected num_layers=1, got 2"):
        ContextLSTM(3, 5, num_layers=2).cell()


@pytest.mark.parametrize("input_size", [0, 2])
def test_cell_trains_as_nn_lstm_cell_does(input_size: int) -> None:
    cell, reference = ContextLSTMCell(3, 5, input_size=input_size), nn.LSTMCell(input_size + 3, 5)
    reference.load_state_dict(cell.state_dict())
    context = torch.randn(4, 3, requires_grad=True)
    input = torch.randn(6, 4, input_size, requires_grad=True)
    gates, state, expected = cell.context_gates(context), None, None
    for x in input:
        state = cell(gates, x if input_size else None, state)
        expected = reference(torch.cat([x, context], dim=-1), expected)
    leaves = [context, *([input] if input_size else [])]
    assert state is not None
    ours = torch.autograd.grad(sum(state).square().sum(), [*leaves, *cell.parameters()])
    theirs = torch.autograd.grad(sum(expected).square().sum(), [*leaves, *reference.parameters()])
    torch.testing.assert_close(ours, theirs)


def test_cell_gates_of_some_rows() -> None:
    cell, context, rows = ContextLSTMCell(3, 5, input_size=2), torch.randn(4, 3), torch.tensor([2, 2, 0])
    input = torch.randn(3, 2)
    got = cell(cell.context_gates(context).take(rows), input)
    torch.testing.assert_close(got, cell(cell.context_gates(context[rows]), input))


def test_cell_under_autocast_keeps_its_state_as_nn_lstm_cell_does() -> None:
    cell, reference, context = ContextLSTMCell(3, 5, input_size=2), nn.LSTMCell(5, 5), torch.randn(4, 3)
    reference.load_state_dict(cell.state_dict())
    with torch.no_grad():  # forget gates near 1: the sum grows until bfloat16 rounds what is added to it away
        for parameters in (cell, reference):
            parameters.bias_ih[5:10] += 20
    exact = copy.deepcopy(reference).double()
    state, expected, wanted = None, None, None
    inputs = torch.randn(200, 4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = cell.context_gates(context)
        for x in inputs:
            state = cell(gates, x, state)
            expected = reference(torch.cat([x, context], dim=-1), expected)
    for x in inputs:
        wanted = exact(torch.cat([x, context], dim=-1).double(), wanted)
    assert state is not None
    for ours, theirs, right in zip(state, expected, wanted, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - right).norm() <= 1.5 * (theirs - right).norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cell(gates, x, tuple(s.bfloat16() for s in state))[1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("input_size", "arguments", "error", "message"),
    [
        (
            0,
            {"context_gates": torch.zeros(2, 20)},
            TypeError,
            r"what context_gates\(context\) returns.*Tensor \[2, 20\]",
        ),
        (0, {"input": torch.zeros(2, 2)}, TypeError, r"input_size=0, got \[2, 2\]"),
        (2, {}, TypeError, "input_size=2, got None"),
        (2, {"input": (torch.zeros(2, 5),) * 2}, TypeError, r"got tuple; the state comes after it"),
        (2, {"input": torch.zeros(1, 2)}, ValueError, r"Expected input of size \[2, 2\].*got \[1, 2\]"),
        (2, {"input": torch.zeros(2, 3)}, RuntimeError, r"input.size\(-1\) must be equal to input_size"),
        (0, {"hx": (torch.zeros(3, 5),) * 2}, RuntimeError, r"Expected hx\[0\] size \(2, 5\), got \[3, 5\]"),
        (0, {"hx": torch.zeros(2, 5)}, TypeError, "expected a pair of Tensors"),
        (0, {"hx": (torch.zeros(2, 5).double(),) * 2}, ValueError, r"hx\[0\] dtype \(torch.float64\)"),
    ],
)
def test_bad_calls_of_the_cell(
    input_size: int, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    cell = ContextLSTMCell(20, 5, input_size=input_size)
    gates = cell.context_gates(torch.zeros(2, 20))
    with pytest.raises(error, match=message):
        cell(**({"context_gates": gates} | arguments))


def test_cell_refuses_gates_of_another_dtype() -> None:
    cell = ContextLSTMCell(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = cell.context_gates(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"context_gates: expected torch.float32 like the weights, got torch.bfloat16"):
        cell(gates)


def test_cell_refuses_a_context_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="context should be a Tensor, got list"):
        ContextLSTMCell(3, 5).context_gates([1.0, 2.0, 3.0])  # type: ignore[arg-type]


def test_recompute_keeps_less_for_backward() -> None:
    context, saved, gradients = torch.randn(2, 3), [], []
    torch.manual_seed(0)
    plain = ContextLSTM(3, 5)
    frugal = ContextLSTM(3, 5, recompute=True)
    frugal.load_state_dict(plain.state_dict())
    for lstm in (plain, frugal):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            output, _ = lstm(context, 50)
        saved.append(sum(sizes))
        gradients.append(torch.autograd.grad(output.square().sum(), lstm.parameters()))
    assert saved[1] < 0.7 * saved[0]
    torch.testing.assert_close(*gradients)
    assert repr(frugal) == "ContextLSTM(3, 5, recompute=True)"


def test_recompute_is_only_for_constant_gates() -> None:
    lstm = ContextLSTM(3, 5, input_size=2, num_layers=2, recompute=True, backend="native")
    sizes: list[list[int]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(list(t.shape)) or t, lambda t: t):
        lstm(torch.randn(2, 3), input=torch.randn(7, 2, 2))
    assert sizes.count([7, 2, 20]) == 2  # the activated gates of each layer


@pytest.mark.parametrize("layers", [1, 2])
def test_output_and_h_n_are_apart(any_backend: str, device_of: Callable[[str], str], layers: int) -> None:
    """As nn.LSTM's are: what is done to one, in place or by a hook, does not reach the other."""
    device = device_of(any_backend)
    lstm = ContextLSTM(3, 4, num_layers=layers, backend=any_backend, device=device)
    context = torch.randn(2, 3, device=device)
    output, (h, _) = lstm(context, 5)
    (gradient,) = torch.autograd.grad(output.sum() + 10 * h.sum(), output)
    assert torch.equal(gradient, torch.ones_like(output))
    with torch.no_grad():
        output, (h, _) = lstm(context, 5)
        last = output[-1].clone()
        h[:, 1] = 0
        assert torch.equal(output[-1], last)


def test_states_may_be_reset_in_place_between_steps(any_backend: str, device_of: Callable[[str], str]) -> None:
    """As reinforcement learning does where an episode ends."""
    device = device_of(any_backend)
    torch.manual_seed(0)
    cell = ContextLSTMCell(3, 4, input_size=2, backend=any_backend, device=device)
    reference = nn.LSTMCell(5, 4, device=device)
    reference.load_state_dict(cell.state_dict())
    context, inputs = torch.randn(3, 3, device=device), torch.randn(4, 3, 2, device=device)
    gates, ours, theirs = cell.context_gates(context), None, None
    for input in inputs:
        ours = cell(gates, input, ours)
        theirs = reference(torch.cat([input, context], 1), theirs)
        for states in (ours, theirs):
            for state in states:
                state[1] = 0
    for a, b in zip(
        torch.autograd.grad(sum(s.square().sum() for s in ours), list(cell.parameters())),
        torch.autograd.grad(sum(s.square().sum() for s in theirs), list(reference.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not FUSED["native"].by_library(), reason="the library is not built")
@pytest.mark.parametrize("layers", [1, 3])
def test_all_layers_are_one_node_of_the_graph(layers: int) -> None:
    lstm = ContextLSTM(3, 4, num_layers=layers, backend="native", dropout=0.0)
    output, (h, c) = lstm(torch.randn(2, 3), 5)
    assert output.grad_fn is h.grad_fn is c.grad_fn
    parents = [node for node, _ in output.grad_fn.next_functions if node is not None]
    assert {node.name() for node in parents} == {"torch::autograd::AccumulateGrad"}
    assert len(parents) == 4 * layers


def test_only_an_input() -> None:
    lstm, input = ContextLSTM(0, 5, input_size=2), torch.randn(4, 3, 2)
    assert torch.equal(lstm(input=input)[0], lstm(None, input=input)[0])


def test_weights_that_are_no_parameters() -> None:
    lstm = ContextLSTM(3, 5)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    assert [w.shape for w in lstm.all_weights[0]] == [(20, 3), (20, 5), (20,), (20,)]


class FourSteps(nn.Module):
    """A module with one output, to trace and export."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = ContextLSTM(3, 5, backend="native")

    def forward(self, context: Tensor) -> Tensor:
        output: Tensor = self.lstm(context, 4)[0]
        return output


@pytest.mark.parametrize("train", [False, True])
def test_is_traced(train: bool) -> None:
    model, context, other = FourSteps(), torch.randn(2, 3), torch.randn(2, 3)
    with warnings.catch_warnings(), torch.set_grad_enabled(train):
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(model, (context,))
    torch.testing.assert_close(traced(other), model(other))
    if train:
        ours = torch.autograd.grad(traced(other).sum(), traced.parameters())
        torch.testing.assert_close(ours, torch.autograd.grad(model(other).sum(), model.parameters()))


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("case", ["input", "input and steps", "layers", "no context", "cell", "recurrence"])
def test_gates_that_vary_are_traced(backend: str, case: str) -> None:
    """In a trace, sizes are tensors. A fused recurrence takes any number of steps, the eager loop that of the trace."""
    context, input, weight_hh = torch.randn(2, 3), torch.randn(4, 2, 6), torch.randn(20, 5)
    layer = ContextLSTM(3, 5, input_size=6, backend=backend)
    layers = ContextLSTM(3, 5, num_layers=2, backend=backend)
    without_context = ContextLSTM(0, 5, input_size=6, backend=backend)
    cell = ContextLSTMCell(3, 5, input_size=6, backend=backend)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([layer, layers, without_context, cell])

        def forward(self, context: Tensor, input: Tensor) -> Any:
            if case == "recurrence":
                return lstm_recurrence(F.pad(input, (0, 14)), weight_hh, backend=backend)
            if case == "layers":
                return layers(context, 4)[0]
            if case == "no context":
                return without_context(input=input)[0]
            if case == "cell":
                return cell(cell.context_gates(context), input[0])
            return layer(context, input.shape[0] if case == "input and steps" else None, input)[0]

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the eager loop is unrolled
        traced = torch.jit.trace(module, (context, input))
    longer = torch.randn(7 if backend == "auto" else 4, 2, 6)
    torch.testing.assert_close(traced(context, longer), module(context, longer))


def test_an_exported_program_without_what_backward_needs_says_so() -> None:
    context = torch.randn(2, 3)
    with torch.no_grad():
        program = torch.export.export(FourSteps(), (context,)).module()
    with pytest.raises(RuntimeError, match=r"under torch.no_grad\(\)"):
        program(context.requires_grad_()).sum().backward()


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUSED["native"], "unavailable", lambda: "it was not built")
    with pytest.warns(UserWarning, match="runs eagerly, up to twice as slow as nn.LSTM: it was not built"):
        ContextLSTM(3, 5)(torch.randn(2, 3), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContextLSTM(3, 5, backend="eager")(torch.randn(2, 3), 4)


#: What an empty gradient's strides may be, for which contiguous() changes nothing.
EMPTY = [
    lambda T, H: torch.ones(T, 0, H),
    lambda T, H: torch.ones(0, H, T).permute(2, 0, 1),
    lambda T, H: torch.ones(H, T, 0).permute(1, 2, 0),
    lambda T, H: torch.ones(()).expand(T, 0, H),
    lambda T, H: torch.empty_strided((T, 0, H), (7, 3, 4)),
]


@pytest.mark.parametrize("grad", EMPTY)
@pytest.mark.parametrize("observed", [False, True])
def test_an_empty_batch_of_the_recurrence(
    any_backend: str, device_of: Callable[[str], str], grad: Callable[[int, int], Tensor], observed: bool
) -> None:
    device = device_of(any_backend)
    weight_hh = torch.randn(20, 5, device=device, requires_grad=True)

    def run(gates_x: Tensor, h0: Tensor | None, c0: Tensor | None, recompute: bool) -> None:
        output, c_n = lstm_recurrence(gates_x, weight_hh, h0, c0, steps=3, backend=any_backend, recompute=recompute)
        assert (output.shape, c_n.shape) == ((3, 0, 5), (0, 5))
        leaves = [t for t in (gates_x, weight_hh, h0, c0) if t is not None]
        upstream = [grad(3, 5).to(device), torch.ones(5, 0, device=device).t()]
        gradients = torch.autograd.grad([output, c_n], leaves, upstream)
        assert [g.shape for g in gradients] == [t.shape for t in leaves]
        assert gradients[1].count_nonzero() == 0

    for shape in ((0, 20), (3, 0, 20)):
        for states in (False, True):
            for recompute in (False, True):
                gates_x = torch.randn(shape, device=device, requires_grad=True)
                h0, c0 = (torch.randn(0, 5, device=device, requires_grad=True) if states else None for _ in range(2))
                with FlopCounterMode(display=False) if observed else nullcontext():
                    run(gates_x, h0, c0, recompute)


@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("context_size", "input_size"), [(4, 0), (4, 3), (0, 3)])
def test_an_empty_batch_of_the_layer(
    any_backend: str,
    device_of: Callable[[str], str],
    context_size: int,
    input_size: int,
    layers: int,
    batch_first: bool,
    hx: bool,
) -> None:
    device = device_of(any_backend)
    lstm = ContextLSTM(
        context_size,
        5,
        input_size=input_size,
        num_layers=layers,
        batch_first=batch_first,
        backend=any_backend,
        device=device,
    )
    context = torch.randn(0, context_size, device=device) if context_size else None
    input = torch.randn((0, 3, input_size) if batch_first else (3, 0, input_size), device=device)
    state = torch.randn(layers, 0, 5, device=device, requires_grad=True)
    output, (h_n, c_n) = lstm(context, 3, input if input_size else None, (state, state) if hx else None)
    assert output.shape == ((0, 3, 5) if batch_first else (3, 0, 5))
    assert h_n.shape == c_n.shape == (layers, 0, 5)
    by_step = output.transpose(1, 2) if batch_first else output.permute(1, 2, 0)
    ((by_step * torch.rand(3, device=device)).sum() + c_n.sum()).backward()
    for parameter in lstm.parameters():
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() == 0


@pytest.mark.parametrize("input_size", [0, 3])
def test_an_empty_batch_of_the_cell(any_backend: str, device_of: Callable[[str], str], input_size: int) -> None:
    device = device_of(any_backend)
    cell = ContextLSTMCell(4, 5, input_size=input_size, backend=any_backend, device=device)
    gates = cell.context_gates(torch.randn(0, 4, device=device))
    input = torch.randn(0, input_size, device=device) if input_size else None
    h, c = cell(gates, input, cell(gates, input))
    assert h.shape == c.shape == (0, 5)
    (h.t().sum() + c.sum()).backward()
    assert cell.weight_hh.grad is not None
    assert cell.weight_hh.grad.count_nonzero() == 0


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("context_size", [pytest.param(0, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize("input_size", [0, 4])
def test_compiled_autograd_takes_backward_into_one_graph(input_size: int, context_size: int, layers: int) -> None:
    if input_size == context_size == 0:
        pytest.skip("a layer without anything to read")
    lstm = ContextLSTM(context_size, 5, input_size=input_size, num_layers=layers)
    context = torch.randn(2, context_size, requires_grad=True) if context_size else None
    input = torch.randn(6, 2, input_size, requires_grad=True) if input_size else None
    state = torch.randn(layers, 2, 5, requires_grad=True)
    leaves = [t for t in (context, input, state, *lstm.parameters()) if t is not None]

    def loss() -> Tensor:
        output, (h_n, c_n) = lstm(context, 6, input, (state, state))
        return output.pow(2).sum() + h_n.sum() + c_n.sum()

    expected = torch.autograd.grad(loss(), leaves)
    torch._dynamo.reset()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    result = loss()
    with trace() as kernels, torch._dynamo.compiled_autograd._enable(compiler):
        result.backward()
    assert kernels == ["native.backward"] * layers
    for leaf, want in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, want)


class Varying(nn.Module):
    """The layer and the recurrence on what the layer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = ContextLSTM(3, 5, input_size=2)
        self.weight = nn.Parameter(torch.randn(20, 5))

    def forward(self, context: Tensor, input: Tensor) -> Tensor:
        output, (_, c_n) = self.lstm(context, input=input)
        return lstm_recurrence(output.repeat(1, 1, 4), self.weight, None, c_n[0])[0]


def test_symbolic_trace_takes_the_layer_as_a_leaf() -> None:
    class Indexing(Varying):
        def forward(self, context: Tensor, input: Tensor) -> Tensor:
            results = self.lstm(context, input=input)
            return lstm_recurrence(results[0].repeat(1, 1, 4), self.weight, None, results[1][1][0])[0]

    module, arguments = Indexing(), (torch.randn(2, 3), torch.randn(6, 2, 2))
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(*arguments), module(*arguments))


LOAD = """
import sys
{imports}
assert "triton" not in sys.modules, "triton was imported"
assert not torch.cuda.is_initialized()
program = torch.export.load(sys.argv[1])
program.module()(torch.ones(2, 3), torch.ones(6, 2, 2))
torch.jit.load(sys.argv[2])(torch.ones(2, 3), torch.ones(6, 2, 2))
"""


@pytest.mark.exhaustive
def test_saved_programs_load_after_the_import_of_tagrank(tmp_path: Path) -> None:
    exported, traced = str(tmp_path / "exported.pt2"), str(tmp_path / "traced.pt")
    arguments = torch.randn(2, 3), torch.randn(6, 2, 2)
    torch.export.save(torch.export.export(Varying(), arguments), exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(Varying(), arguments).save(traced)
    for imports in ("import torch, tagrank", "import tagrank.recurrence, torch"):
        command = [sys.executable, "-W", "ignore", "-c", LOAD.format(imports=imports), exported, traced]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (imports, done.stderr[-2000:])


@pytest.mark.exhaustive
def test_a_program_of_aot_inductor_loads_after_the_import_of_tagrank(tmp_path: Path) -> None:
    package, arguments, model = str(tmp_path / "model.pt2"), (torch.randn(2, 3), torch.randn(6, 2, 2)), Varying()
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(torch.export.export(model, arguments), package_path=package)
        torch.save((arguments, model(*arguments)), tmp_path / "expected.pt")
    code = (
        "import sys, torch, tagrank\n"
        "arguments, expected = torch.load(sys.argv[2])\n"
        "got = torch._inductor.aoti_load_package(sys.argv[1])(*arguments)\n"
        "torch.testing.assert_close(got, expected)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, package, str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
