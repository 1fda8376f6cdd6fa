"""A backend is a class and a registration: here a toy, written as anyone would, runs wherever backends run."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from problems import TOLERANCE, assert_matches_the_oracle, make_inputs, results
from torch import Tensor, nn

import tagrank
from tagrank import ContextLSTM, lstm_recurrence
from tagrank.recurrence import explain, trace
from tagrank.recurrence.backends import FUSED, Backend, BackwardInputs, names, register, unregister
from tagrank.recurrence.backends.base import Gradients, Outputs
from tagrank.recurrence.backends.eager import activate
from tagrank.recurrence.backends.products import gates_and_place_for_gradients, weight_and_state_gradients
from tagrank.recurrence.tracing import record


class Toy(Backend):
    """Loops in plain PyTorch, with a backward pass of their own."""

    name = "toy"
    device = "cpu"
    dtypes = (torch.float32, torch.float64)

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, gates_x: Tensor, gpu: object = None) -> str | None:
        return None if gates_x.dtype in self.dtypes else "it takes float32 and float64"

    def forward(self, gates_x, weight_hh, h0, c0, steps, save_gates, save_cells) -> Outputs:  # type: ignore[no-untyped-def]
        record("toy.forward")
        zeros, none = gates_x.new_zeros(gates_x.shape[-2], weight_hh.shape[1]), gates_x.new_empty(0)
        h, c = (zeros if state is None else state for state in (h0, c0))
        output, gates, cells = [], [], []
        for x in gates_x.expand(steps, *gates_x.shape[-2:]):
            gates.append(activate(x + h @ weight_hh.t()))
            i, f, g, o = gates[-1].chunk(4, dim=-1)
            cells.append(c := f * c + i * g)
            output.append(h := o * c.tanh())
        saved = torch.stack(gates) if save_gates else none, torch.stack(cells) if save_cells else none
        return torch.stack(output), c, *saved

    def backward(self, inputs: BackwardInputs) -> Gradients:
        record("toy.backward")
        gates, d_gates = gates_and_place_for_gradients(inputs)
        if inputs.recompute:
            gates = activate(gates + inputs.gates_x)
        d_h, d_c = torch.zeros_like(inputs.grad_c_n), inputs.grad_c_n
        before = torch.cat([(d_h if inputs.c0 is None else inputs.c0).unsqueeze(0), inputs.cells[:-1]])
        for t in reversed(range(len(gates))):
            (i, f, g, o), tanh = gates[t].chunk(4, dim=-1), inputs.cells[t].tanh()
            d_h = d_h + inputs.grad_output[t]
            d_c = d_c + d_h * o * (1 - tanh**2)
            parts = d_c * g * i * (1 - i), d_c * before[t] * f * (1 - f), d_c * i * (1 - g**2), d_h * tanh * o * (1 - o)
            d_gates[t] = torch.cat(parts, dim=-1)
            d_h, d_c = d_gates[t] @ inputs.weight_hh, d_c * f
        d_weight_hh, d_h0 = weight_and_state_gradients(d_gates, inputs)
        d_c0 = d_c.new_empty(0) if inputs.c0 is None else d_c
        return d_gates.sum(0) if inputs.constant else d_gates, d_weight_hh, d_h0, d_c0


@pytest.fixture
def toy() -> Iterator[Toy]:
    backend = Toy()
    register(backend)
    yield backend
    unregister("toy")


def test_it_is_gone_again() -> None:
    assert names() == ("eager", "native", "cluster", "triton")


def test_the_layer_runs_on_it(toy: Toy) -> None:
    lstm, reference, context = ContextLSTM(3, 5, input_size=2, backend="toy"), nn.LSTM(5, 5), torch.randn(4, 3)
    reference.load_state_dict(lstm.state_dict())
    input = torch.randn(6, 4, 2)
    with trace() as kernels:
        output, states = lstm(context, input=input)
        gradients = torch.autograd.grad(output.square().sum() + states[1].sum(), lstm.parameters())
    assert kernels == ["toy.forward", "toy.backward"]
    expected, expected_states = reference(torch.cat([input, context.expand(6, -1, -1)], dim=-1))
    torch.testing.assert_close((output, states), (expected, expected_states))
    loss = expected.square().sum() + expected_states[1].sum()
    torch.testing.assert_close(gradients, torch.autograd.grad(loss, reference.parameters()))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_its_numbers_are_right(toy: Toy, constant: bool, recompute: bool) -> None:
    inputs = make_inputs(3, 6, None if constant else 4, torch.float64)
    got = results(*lstm_recurrence(*inputs, steps=4, backend="toy", recompute=recompute), inputs)
    assert_matches_the_oracle(got, inputs, 4, TOLERANCE[torch.float64])


@pytest.mark.parametrize("states", [False, True])
def test_opcheck(toy: Toy, states: bool) -> None:
    gates_x, weight_hh, *given = make_inputs(2, 5, None, torch.float64)
    h0, c0 = given if states else (None, None)
    torch.library.opcheck(torch.ops.tagrank.lstm_forward.default, (gates_x, weight_hh, h0, c0, 3, "toy", True, True))


def test_compiles_into_one_graph(toy: Toy) -> None:
    inputs = make_inputs(3, 6, None, torch.float32)
    step: Callable[..., tuple[Tensor, Tensor]] = partial(lstm_recurrence, steps=3, backend="toy")
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with trace() as kernels:
        got = results(*compiled(*inputs), inputs)
    assert kernels == ["toy.forward", "toy.backward"]
    torch.testing.assert_close(got, results(*step(*inputs), inputs))


def test_it_is_listed(toy: Toy) -> None:
    assert tagrank.env()["backends"]["toy"] is None
    assert explain(2, 3, 4, torch.float16).splitlines()[-2:] == [
        "toy: no, it takes float32 and float64",
        "eager: taken, as it runs everywhere",
    ]
    with pytest.raises(ValueError, match="expected one of 'auto', 'eager', 'native', 'cluster', 'triton', 'toy'; got"):
        lstm_recurrence(torch.zeros(2, 12), torch.zeros(12, 3), steps=2, backend="cudnn")


def test_auto_takes_it_if_no_backend_before_it_serves(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUSED["native"], "unavailable", lambda: "it was not built")
    with trace() as kernels:
        lstm_recurrence(torch.zeros(2, 12), torch.zeros(12, 3), steps=2)
    assert kernels == ["toy.forward"]
    monkeypatch.setattr(toy, "unproven", lambda gates_x, gpu: "it is slow")
    assert "toy: no, it is slow" in explain(2, 3, 4)
    monkeypatch.setattr(toy, "device", "cuda")
    assert "toy: no, auto uses it on cuda only" in explain(2, 3, 4)


def test_what_it_refuses_is_said(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.zeros(2, 12, dtype=torch.float16), torch.zeros(12, 3, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="backend='toy' cannot run this: it takes float32 and float64"):
        lstm_recurrence(*half, steps=2, backend="toy")
    monkeypatch.setattr(toy, "unavailable", lambda: "it is broken")
    with pytest.raises(RuntimeError, match="backend='toy' cannot run this: it is broken"):
        lstm_recurrence(torch.zeros(2, 12), torch.zeros(12, 3), steps=2, backend="toy")
    monkeypatch.setattr(toy, "misset", lambda: "TOY: expected 1, got 2")
    with pytest.raises(tagrank.errors.InputError, match="TOY: expected 1, got 2"):
        lstm_recurrence(torch.zeros(2, 12), torch.zeros(12, 3), steps=2, backend="toy")


@pytest.mark.parametrize("name", ["native", "eager", "auto"])
def test_a_name_belongs_to_one_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "name", name)
    with pytest.raises(ValueError, match=f"name: expected one that is not taken, got '{name}'"):
        register(Toy())


def test_without_a_method_it_is_no_backend() -> None:
    class Half(Toy):
        backward = Backend.backward

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_the_operators_schemas_stay() -> None:
    """Exported programs name them."""
    forward = "Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, SymInt steps, str backend, bool save_gates"
    backward = (
        "Tensor grad_output, Tensor grad_c_n, Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, "
        "Tensor output, Tensor gates, Tensor cells"
    )
    four = "(Tensor, Tensor, Tensor, Tensor)"
    assert str(torch.ops.tagrank.lstm_forward.default._schema) == (
        f"tagrank::lstm_forward({forward}, bool save_cells) -> {four}"
    )
    assert str(torch.ops.tagrank.lstm_backward.default._schema) == (
        f"tagrank::lstm_backward({backward}, bool constant, bool weight_wanted, str backend) -> {four}"
    )
    assert backward.replace("? ", " ").replace("Tensor ", "").split(", ") == [*BackwardInputs._fields[:9]]
