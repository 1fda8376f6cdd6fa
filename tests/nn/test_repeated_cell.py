"""ContextLSTMCell from nn.LSTMCell and back, and the cell that tagrank.convert puts in the place of nn.LSTMCell."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tagrank
from tagrank import ContextLSTMCell
from tagrank.nn import context_memory, conversion
from tagrank.nn.conversion import Finding
from tagrank.nn.repeated import RepeatedInputLSTM
from tagrank.nn.repeated_cell import RepeatedInputLSTMCell

F64 = torch.float64
#: Sizes of the batch, the input, the context and the state.
B, X, C, H = 3, 4, 6, 5


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def theirs(request: pytest.FixtureRequest) -> nn.LSTMCell:
    torch.manual_seed(0)
    return nn.LSTMCell(X + C, H, bias=request.param, dtype=F64)


def ours_of(cell: nn.LSTMCell, first: bool = False) -> RepeatedInputLSTMCell:
    ours = RepeatedInputLSTMCell.from_lstm_cell(cell, C)
    if first:
        ours.move_context_first()
    return ours


class Counted:
    """How often a cell computes the context's share of the gates."""

    def __init__(self, cell: RepeatedInputLSTMCell, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        compute = cell.context_gates

        def context_gates(context: Tensor) -> Any:
            self.times += 1
            return compute(context)

        monkeypatch.setattr(cell, "context_gates", context_gates)


def run(cell: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The hidden states, and the last cell state."""
    state, outputs = None, []
    for x in inputs:
        state = cell(x, state)
        outputs.append(state[0])
    return [*outputs, state[1]]


def test_from_an_lstm_cell_and_back(theirs: nn.LSTMCell) -> None:
    theirs.eval().weight_hh.requires_grad_(False)
    state = torch.random.get_rng_state()
    ours = ContextLSTMCell.from_lstm_cell(theirs, C)
    back = ours.to_lstm_cell()
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn"
    for module in (ours, back):
        assert not module.training
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in theirs.parameters()]
        for name, value in theirs.state_dict().items():
            assert torch.equal(module.state_dict()[name], value)
            assert module.state_dict()[name].data_ptr() != value.data_ptr()
    x, context = torch.randn(B, X, dtype=F64), torch.randn(B, C, dtype=F64)
    expected = theirs(torch.cat([x, context], -1))
    torch.testing.assert_close(ours(ours.context_gates(context), x), expected)
    torch.testing.assert_close(back(torch.cat([x, context], -1)), expected)


@pytest.mark.parametrize(
    ("cell", "size", "error", "message"),
    [
        (nn.LSTM(3, 2), 1, TypeError, "cell: expected an nn.LSTMCell, got LSTM"),
        (nn.LSTMCell(3, 2), 4, ValueError, "context_size: expected 0 to 3, as many as cell reads; got 4"),
        (nn.LSTMCell(3, 2), 1.0, TypeError, "context_size should be of type int, got: float"),
    ],
)
def test_bad_cells(cell: Any, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTMCell.from_lstm_cell(cell, size)


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "unbatched"])
@pytest.mark.parametrize("first", [False, True], ids=["context last", "context first"])
def test_a_sequence(theirs: nn.LSTMCell, first: bool, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results and all gradients are those of nn.LSTMCell, and the context's gates are computed once."""
    ours = ours_of(theirs, first)
    counted = Counted(ours, monkeypatch)
    rows = (B,) if batched else ()
    xs = torch.randn(4, *rows, X, dtype=F64)
    context = torch.randn(*rows, C, dtype=F64)
    results: list[list[Tensor]] = []
    grads: list[tuple[Tensor, ...]] = []
    for cell in (ours, theirs):
        leaf, inputs = context.clone().requires_grad_(), [x.clone().requires_grad_() for x in xs]
        results.append(run(cell, [torch.cat([leaf, x] if first else [x, leaf], -1) for x in inputs]))
        loss = sum(((i + 1) * result).sin().sum() for i, result in enumerate(results[-1]))
        parameters = [p for _, p in sorted(cell.named_parameters())]
        grads.append(torch.autograd.grad(loss, [leaf, *inputs, *parameters]))
    torch.testing.assert_close(*results)
    assert counted.times == 1
    if first:
        weight = next(i for i, g in enumerate(grads[0]) if g.shape == ours.weight_ih.shape)
        grads[0] = (*grads[0][:weight], grads[0][weight].roll(C, 1), *grads[0][weight + 1 :])
    torch.testing.assert_close(*grads)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.to_lstm_cell().weight_ih, theirs.weight_ih)


def test_each_step_s_context_has_its_own_gradient(theirs: nn.LSTMCell) -> None:
    """Contexts that are equal by chance, as rows of an embedding that begins at zero, are not one."""
    results = []
    for cell in (ours_of(theirs), theirs):
        contexts = torch.zeros(3, B, C, dtype=F64, requires_grad=True)
        outputs = run(cell, [torch.cat([torch.ones(B, X, dtype=F64), context], -1) for context in contexts])
        results.append(torch.autograd.grad(outputs[-2].sum(), contexts)[0])
    torch.testing.assert_close(*results)
    assert (results[0].flatten(1).norm(dim=1) > 0).all()


def test_what_makes_the_gates_old(theirs: nn.LSTMCell, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ours_of(theirs)
    counted = Counted(ours, monkeypatch)
    x = torch.randn(B, X + C, dtype=F64)

    def step(state: Any, times: int) -> Any:
        """Both cells take the step, and ours computes the context's gates so often."""
        before = counted.times
        result = ours(x, state)
        torch.testing.assert_close(result, theirs(x, state))
        assert counted.times - before == times
        return result

    def change(name: str, value: Tensor) -> None:
        for cell in (ours, theirs):
            with torch.no_grad():
                cell.get_parameter(name).copy_(value)

    with torch.no_grad():
        state = step(None, 1)
        kept = state = step(state, 0)
        x[:, X:] += 1  # in place: the same memory
        state = step(state, 1)
        x[:, :X] += 1
        state = step(state, 0)
        step(tuple(s[torch.tensor([2, 0, 1])] for s in state), 1)
        change("weight_ih", torch.randn(4 * H, X + C, dtype=F64))
        state = step(state, 1)
        if theirs.bias:
            change("bias_hh", torch.randn(4 * H, dtype=F64))
            state = step(state, 1)
        state = step(state, 0)
    # Without gradients the gates have no graph.
    state = step(state, 1)
    assert state[0].requires_grad
    state = step(state, 0)
    for cell in (ours, theirs):
        cell.weight_ih.requires_grad_(False)
    state = step(state, 1)
    # Sequences may take turns.
    x[:, X:] -= 1
    step(kept, 1)
    x[:, X:] += 1
    step(state, 0)
    x[0, -1] = torch.nan
    state = ours(x, state)
    assert state[0][0].isnan().all()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_fused_optimizer_makes_the_gates_old(theirs: nn.LSTMCell, optimizer: Any) -> None:
    """PyTorch does not count its changes. The state lives on, as in a rollout beside which a model is trained."""
    inputs = [torch.cat([x, torch.ones(B, C, dtype=F64)], -1) for x in torch.randn(4, B, X, dtype=F64)]
    results = []
    for cell in (ours_of(theirs), copy.deepcopy(theirs)):
        steps, state = optimizer(cell.parameters(), lr=0.05, fused=True), None
        for x in inputs:
            with torch.no_grad():
                state = cell(x, state)
            steps.zero_grad()
            cell(x)[0].sum().backward()
            steps.step()
        results.append(state)
    torch.testing.assert_close(*results)


def test_what_changes_weights_uncounted(theirs: nn.LSTMCell) -> None:
    ours = ours_of(theirs)
    x, state = torch.randn(B, X + C, dtype=F64), None
    with torch.no_grad():
        for name in [name for name, _ in theirs.named_parameters()]:
            state = ours(x, state)
            for cell in (ours, theirs):
                cell.get_parameter(name).data.mul_(1.5)
            torch.testing.assert_close(ours(x, state), theirs(x, state))
            for cell in (ours, theirs):
                cell.get_parameter(name).data = 0.5 * cell.get_parameter(name)
            torch.testing.assert_close(ours(x, state), theirs(x, state))


def test_states_that_are_detached_in_place(theirs: nn.LSTMCell) -> None:
    """Truncated backpropagation: the state is the same tensor, but the graph of its gates is gone."""
    ours = ours_of(theirs)
    inputs = [torch.cat([x, torch.ones(B, C, dtype=F64)], -1) for x in torch.randn(6, B, X, dtype=F64)]
    for cell in (ours, theirs):
        state = None
        for window in range(3):
            for x in inputs[2 * window : 2 * window + 2]:
                state = cell(x, state)
            assert state is not None
            state[0].sum().backward()
            for part in state:
                part.detach_()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


def test_the_eager_loop_can_be_differentiated_twice(theirs: nn.LSTMCell) -> None:
    ours = RepeatedInputLSTMCell.from_lstm_cell(theirs, C, backend="eager")
    x, results = torch.randn(B, X + C, dtype=F64, requires_grad=True), []
    for cell in (ours, theirs):
        (of_weight,) = torch.autograd.grad(run(cell, [x, x])[1].sum(), cell.weight_ih, create_graph=True)
        results.append(torch.autograd.grad(of_weight.sin().sum(), x)[0])
    torch.testing.assert_close(*results)


def test_a_bias_made_in_inference_mode(theirs: nn.LSTMCell) -> None:
    if not theirs.bias:
        pytest.skip("without biases")
    ours, x = ours_of(theirs), torch.randn(B, X + C, dtype=F64)
    with torch.inference_mode():
        ours.bias_ih = nn.Parameter(theirs.bias_ih.clone())
    with torch.no_grad():
        torch.testing.assert_close(run(ours, [x, x]), run(theirs, [x, x]))


def test_symbolic_traces_take_it_as_one_node(theirs: nn.LSTMCell) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = ours_of(theirs)
            self.lstm = RepeatedInputLSTM(C, H, input_size=X, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0] + self.lstm(x[None])[0][0]  # type: ignore[no-any-return]

    two, x = Two(), torch.randn(B, X + C, dtype=F64)
    traced = torch.fx.symbolic_trace(two)
    assert {node.target for node in traced.graph.nodes if node.op == "call_module"} == {"cell", "lstm"}
    torch.testing.assert_close(traced(x), two(x))


def test_gates_are_kept_for_the_latest_states(theirs: nn.LSTMCell) -> None:
    ours = ours_of(theirs)
    with torch.no_grad():
        states = [ours(torch.zeros(B, X + C, dtype=F64)) for _ in range(100)]
    assert len(ours._memory) == context_memory.KEPT
    gone = weakref.ref(ours.weight_ih)
    gc.collect()
    gc.disable()
    try:
        del ours
        assert gone() is None, "the states keep no parameter"
    finally:
        gc.enable()
    assert len(states) == 100


def test_gates_are_kept_as_long_as_the_state(theirs: nn.LSTMCell) -> None:
    ours = ours_of(theirs)
    state = ours(torch.zeros(B, X + C, dtype=F64))
    assert len(ours._memory) == 1
    outputs = run(ours, [torch.zeros(B, X + C, dtype=F64)] * 3)
    assert len(ours._memory) == 4
    again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    torch.testing.assert_close(run(again, [torch.zeros(B, X + C, dtype=F64)] * 3), outputs)
    del state, outputs
    gc.collect()
    assert len(ours._memory) == 0


@pytest.mark.parametrize("mode", ["no_grad", "inference", "autocast"])
def test_modes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs = nn.LSTMCell(X + C, H)
    ours = ours_of(theirs)
    counted = Counted(ours, monkeypatch)
    inputs = [torch.cat([x, torch.ones(B, C)], -1) for x in torch.randn(3, B, X)]
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(
        mode, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    with context():
        expected, actual = run(theirs, inputs), run(ours, inputs)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if mode == "autocast" else {}
    torch.testing.assert_close(actual, expected, **tolerance)
    assert counted.times == 1


def test_compiled_and_under_torch_func(theirs: nn.LSTMCell) -> None:
    ours = ours_of(theirs)
    inputs = [torch.cat([x, torch.ones(B, C, dtype=F64)], -1) for x in torch.randn(2, B, X, dtype=F64)]
    expected = run(theirs, inputs)
    compiled = torch.compile(lambda *inputs: run(ours, [*inputs]), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    eager = RepeatedInputLSTMCell.from_lstm_cell(theirs, C, backend="eager")
    tangents = [
        torch.func.jvp(lambda x, cell=cell: run(cell, [x, x])[1], (inputs[0],), (inputs[1],))
        for cell in (eager, theirs)
    ]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("first", [False, True], ids=["context last", "context first"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_a_layer_that_steps(layers: int, first: bool, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As decoders call ``nn.LSTM``: a step at a time, with the states of the step before."""
    torch.manual_seed(0)
    theirs = nn.LSTM(X + C, H, num_layers=layers, batch_first=batch_first, dropout=0.5 if layers > 1 else 0, dtype=F64)
    ours = RepeatedInputLSTM.from_lstm(theirs.eval(), C)
    if first:
        ours.move_context_first()
    times = 0
    compute = ours._share

    def share(*args: Any) -> Any:
        nonlocal times
        times += 1
        return compute(*args)

    monkeypatch.setattr(ours, "_share", share)
    context, xs = torch.randn(B, C, dtype=F64), torch.randn(4, B, X, dtype=F64)
    results: list[list[Tensor]] = []
    grads: list[tuple[Tensor, ...]] = []
    for lstm in (ours, theirs):
        leaf, inputs, state = context.clone().requires_grad_(), xs.clone().requires_grad_(), None
        outputs = []
        for x in inputs:
            both = torch.cat([leaf, x] if first else [x, leaf], -1)
            output, state = lstm(both.unsqueeze(1 if batch_first else 0), state)
            outputs.append(output)
        assert state is not None
        results.append([*outputs, *state])
        loss = sum(((i + 1) * result).sin().sum() for i, result in enumerate(results[-1]))
        grads.append(torch.autograd.grad(loss, [leaf, inputs, lstm.weight_hh_l0, lstm.bias_hh_l0]))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*grads)
    assert times == 1
    # The hidden state may be changed on the way: by beams, or by dropout.
    x = torch.cat([context, xs[0]] if first else [xs[0], context], -1).unsqueeze(1 if batch_first else 0)
    beams = tuple(s[:, torch.tensor([1, 0, 2])] for s in results[0][-2:])
    torch.testing.assert_close(ours(x, beams), theirs(x, beams))
    assert times == 2
    with torch.no_grad():
        states = ours(x, beams)[1]
        assert times == 3
        for lstm in (ours, theirs):
            lstm.weight_ih_l0.mul_(2)
        torch.testing.assert_close(ours(x, states), theirs(x, states))
        assert times == 4
    if layers > 1:
        ours.train()
        assert ours(x, states)[0].shape == ((B, 1, H) if batch_first else (1, B, H))
        assert times == 4, "with dropout between layers nothing is kept"


class Loop(nn.Module):
    """A decoder of the usual kind: an image beside each token's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, X)
        self.cell = nn.LSTMCell(X + C, H)
        self.head = nn.Linear(H, 11)

    def forward(self, image: Tensor, steps: int) -> Tensor:
        token, state, scores = torch.zeros(len(image), dtype=torch.long), None, []
        for _ in range(steps):
            state = self.cell(torch.cat([self.embed(token), image], -1), state)
            scores.append(self.head(state[0]))
            token = scores[-1].argmax(-1)
        return torch.stack(scores)


def test_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SMALL_CELL", 0)
    torch.manual_seed(0)
    model = Loop().to(F64)
    original = copy.deepcopy(model)
    images = torch.randn(B, C, dtype=F64)
    assert tagrank.convert(model, (images, 4)).findings == [
        Finding("cell", True, f"its last {C} of {X + C} features repeat over 4 calls")
    ]
    assert isinstance(model.cell, RepeatedInputLSTMCell)
    assert model.cell.training
    for again in (images, images + 1):
        torch.testing.assert_close(model(again, 5), original(again, 5))
    original.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("input", "hx", "error", "message"),
    [
        ([1.0], None, TypeError, "input: expected a Tensor, got list"),
        (torch.zeros(2, 9), None, ValueError, r"input: expected shape \[B, 10\] or \[10\], got \[2, 9\]"),
        (torch.zeros(1, 2, 10), None, ValueError, r"input: expected shape \[B, 10\] or \[10\], got \[1, 2, 10\]"),
        (torch.zeros(2, 10), (), TypeError, "hx: expected a pair of Tensors"),
        (torch.zeros(2, 10), torch.zeros(2, 5), TypeError, "hx: expected a pair of Tensors"),
        (torch.zeros(2, 10), (torch.zeros(3, 5), torch.zeros(3, 5)), RuntimeError, r"Expected hx\[0\] size \(2, 5\)"),
        (torch.zeros(2, 10, dtype=F64), None, ValueError, "input dtype .* does not match weight dtype"),
    ],
)
def test_bad_input(input: Any, hx: Any, error: type[Exception], message: str) -> None:
    cell = RepeatedInputLSTMCell.from_lstm_cell(nn.LSTMCell(X + C, H), C)
    with pytest.raises(error, match=message):
        cell(input, hx)
