"""ContextLSTM against nn.LSTM on the repeated context, ContextLSTMCell against nn.LSTMCell."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tagrank import ContextLSTM, ContextLSTMCell
from tagrank.recurrence import trace


def oracle(lstm: ContextLSTM, context: Tensor | None, steps: int, input: Tensor | None, hx: Any) -> Any:
    """nn.LSTM, in float64 and with the same state dict, over what ContextLSTM never builds."""
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


def test_dropout_between_layers_in_training_alone() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        ContextLSTM(3, 5, dropout=0.5)
    lstm = ContextLSTM(3, 64, num_layers=2, dropout=0.5)
    plain = ContextLSTM(3, 64, num_layers=2)
    plain.load_state_dict(lstm.state_dict())
    context = torch.randn(2, 3)
    expected = plain(context, 4)
    assert not torch.equal(lstm(context, 4)[0], expected[0])
    # The first layer comes before any dropout.
    torch.testing.assert_close(lstm(context, 4)[1][0][0], expected[1][0][0], rtol=0, atol=0)
    torch.testing.assert_close(lstm.eval()(context, 4), expected, rtol=0, atol=0)


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
        ({"context_size": 3, "hidden_size": 2, "bidirectional": True}, NotImplementedError, "bidirectional"),
        ({"context_size": 3, "hidden_size": 2, "proj_size": 1}, NotImplementedError, "proj_size"),
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
        (2, {"context": torch.zeros(2, 3)}, TypeError, "input is required, as input_size is 2"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 3, 2)}, RuntimeError, "context batch size 3"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 2)}, RuntimeError, "both be batched"),
        (2, {"context": torch.zeros(2, 3), "input": torch.zeros(4, 2, 2), "steps": 3}, ValueError, "steps: expected 4"),
        (0, {"context": torch.zeros(2, 3), "steps": 2, "hx": (STATE[0], STATE[0])}, RuntimeError, "should also be 3-D"),
        (0, {"context": torch.zeros(3), "steps": 2, "hx": (STATE, STATE)}, RuntimeError, "should also be 2-D"),
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


def test_packed_sequences_are_refused() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2, 2)])
    with pytest.raises(TypeError, match="PackedSequence"):
        ContextLSTM(3, 5, input_size=2)(torch.zeros(1, 3), input=packed)


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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"context_gates": torch.zeros(2, 19)}, ValueError, r"context_gates: expected \[B, 4H\]"),
        ({"context_gates": torch.zeros(2, 20), "input": torch.zeros(2, 2)}, TypeError, "input_size=0"),
        ({"context_gates": torch.zeros(2, 20), "hx": (torch.zeros(3, 5),) * 2}, RuntimeError, r"Expected hx\[0\]"),
    ],
)
def test_bad_calls_of_the_cell(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTMCell(3, 5)(**arguments)
