"""Both directions, projections, and sequences of different lengths: ContextLSTM against nn.LSTM in float64."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from tagrank import ContextLSTM
from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED

F64 = torch.float64
C, H, B, T = 4, 5, 6, 7
LENGTHS = [3, 7, 2, 7, 5, 1]
needs_library = pytest.mark.skipif(FUSED["native"].unavailable() is not None, reason="the library is not built")
KINDS = ("whole", "unbatched", "lengths", "packed", "sorted")


class Results(NamedTuple):
    """Output, h_n and c_n, and the gradients of a sum in which each element of these has a weight of its own."""

    tensors: list[Tensor]
    gradients: list[Tensor]

    @classmethod
    def of(cls, output: Tensor, states: tuple[Tensor, Tensor], leaves: Sequence[Tensor]) -> "Results":
        tensors = [output, *states]
        weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view(t.shape) for t in tensors]
        return cls(tensors, list(torch.autograd.grad(tensors, leaves, weights)))


def compare(kind: str, layer: ContextLSTM, hx: bool, seed: int = 0) -> list[str]:
    """Assert that the layer gives what nn.LSTM gives on the repeated context; the kernels that ran."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=F64).requires_grad_()

    first, own, reads = layer.batch_first, layer.proj_size or H, layer.input_size > 0
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    context, input = normal(B, C), normal(T, B, layer.input_size)
    states = (normal(count, B, own), normal(count, B, H)) if hx else None
    leaves = [context, *([input] if reads else []), *(states or ())]
    lengths = torch.tensor(sorted(LENGTHS, reverse=True) if kind == "sorted" else LENGTHS)
    reference = layer.to_lstm()

    def turned(x: Tensor) -> Tensor:
        return x.transpose(0, 1) if first else x

    def packed(x: Tensor) -> PackedSequence:
        return pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=kind == "sorted")

    both = torch.cat([input, context.expand(T, -1, -1)], -1)
    torch.manual_seed(seed)  # of the dropout
    with trace() as kernels:
        if kind == "unbatched":
            of_one = None if states is None else (states[0][:, 0], states[1][:, 0])
            output, ends = layer(context[0], T, input[:, 0] if reads else None, of_one)
        elif kind == "whole":
            output, ends = layer(context, T, turned(input) if reads else None, states)
        elif kind == "lengths":
            output, ends = layer(context, T, turned(input) if reads else None, states, lengths)
        else:
            given = packed(turned(input))
            result, ends = layer(context, None, given, states)
            assert isinstance(result, PackedSequence)
            assert result[1:] == given[1:] or torch.equal(result.batch_sizes, given.batch_sizes)
            assert result.unsorted_indices is given.unsorted_indices
            output = result.data
        ours = Results.of(output, ends, [*leaves, *layer.parameters()])
    torch.manual_seed(seed)
    if kind == "unbatched":
        output, ends = reference(both[:, 0], of_one)
    elif kind == "whole":
        output, ends = reference(turned(both), states)
    else:
        result, ends = reference(packed(turned(both)), states)
        output = result.data
        if kind == "lengths":
            output = pad_packed_sequence(result, batch_first=first, total_length=T)[0]
    theirs = Results.of(output, ends, [*leaves, *reference.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        for got, want in zip(a, b, strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want)
    return kernels


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_is_nn_lstm(kind: str, bidirectional: bool, proj_size: int) -> None:
    inputs = (3,) if kind in ("packed", "sorted") else (0, 3)
    for seed, (input_size, layers, hx, batch_first) in enumerate(
        itertools.product(inputs, (1, 2, 3), (False, True), (False, True))
    ):
        torch.manual_seed(seed)
        layer = ContextLSTM(
            C,
            H,
            input_size=input_size,
            num_layers=layers,
            bias=seed % 3 > 0,
            batch_first=batch_first,
            dropout=0.5 if layers > 1 else 0.0,
            bidirectional=bidirectional,
            proj_size=proj_size,
            dtype=F64,
        )
        kernels = compare(kind, layer.train(seed % 4 != 3), hx, seed)
        if FUSED["native"].unavailable() is None:
            each = layers * (1 + bidirectional)
            assert kernels == ["native.forward"] * each + ["native.backward"] * each


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend(any_backend: str, device_of: Callable[[str], str], kind: str) -> None:
    if device_of(any_backend) != "cpu":
        pytest.skip("on GPUs: test_on_a_gpu")
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "backend": any_backend}
    kernels = compare(kind, ContextLSTM(C, H, input_size=2, dtype=F64, **options), True)
    assert {kernel.split(".")[0] for kernel in kernels} == {any_backend}


@needs_library
@pytest.mark.parametrize("hidden", [5, 40])
@pytest.mark.parametrize("input_size", [0, 2])
@pytest.mark.parametrize("kind", ["whole", "lengths", "packed"])
@pytest.mark.parametrize("train", [False, True])
def test_the_kernel_projects(train: bool, kind: str, input_size: int, hidden: int) -> None:
    """On CPUs the projection is not folded into the weight."""
    if kind == "packed" and input_size == 0:
        pytest.skip("a packed batch has an input")
    layer = ContextLSTM(C, hidden, input_size=input_size, bidirectional=True, proj_size=2, dtype=F64)
    context, input, lengths = (
        torch.randn(B, C, dtype=F64),
        torch.randn(T, B, input_size, dtype=F64),
        torch.tensor(LENGTHS),
    )
    given: Any = pack_padded_sequence(input, lengths, enforce_sorted=False) if kind == "packed" else input
    given, steps = (given, None) if input_size else (None, T)
    found = []
    for backend, kernel in (("auto", "native"), ("eager", "eager"), ("native", "native")):
        layer.backend = backend
        with torch.set_grad_enabled(train), trace() as kernels:
            output, states = layer(context, steps, given, lengths=lengths if kind == "lengths" else None)
            found.append([output.data if kind == "packed" else output, *states])
            if train:
                found[-1] += torch.autograd.grad(sum(t.square().sum() for t in found[-1]), layer.parameters())
        passes = {"forward", "backward"} if train and kernel == "native" else {"forward"}
        assert set(kernels) == {f"{kernel}.{name}" for name in passes}
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_without_a_context_it_is_nn_lstm_too() -> None:
    layer, rows = ContextLSTM(0, H, input_size=3, bidirectional=True), [torch.randn(n, 3) for n in (2, 4, 1)]
    packed = pack_sequence(rows, enforce_sorted=False)
    got, want = layer(input=packed), layer.to_lstm()(packed)
    torch.testing.assert_close(got[0].data, want[0].data)
    torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_parameters_are_those_of_nn_lstm(bidirectional: bool, proj_size: int) -> None:
    options: dict[str, Any] = {"bidirectional": bidirectional, "proj_size": proj_size}
    torch.manual_seed(0)
    ours = ContextLSTM(3, 5, input_size=2, num_layers=2, **options)
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 5, 2, **options)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [[p.shape for p in layer] for layer in ours.all_weights] == [
        [p.shape for p in layer] for layer in theirs.all_weights
    ]
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    text = f", bidirectional={bidirectional}" * bidirectional + f", proj_size={proj_size}" * bool(proj_size)
    assert f"num_layers=2{text})" in repr(ours)


@pytest.mark.parametrize(
    "wrong",
    [
        {"proj_size": -1},
        {"proj_size": 5},
        {"bias": 1},
        {"batch_first": "yes"},
        {"num_layers": 0},
        {"dropout": True},
    ],
    ids=str,
)
def test_the_constructors_errors_are_nn_lstms(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as ours:
        ContextLSTM(3, 5, input_size=2, **wrong)
    said = None
    try:
        nn.LSTM(5, 5, **wrong)
    except (TypeError, ValueError) as theirs:
        said = theirs
    if said is None:
        assert wrong.keys() <= {"bias", "batch_first"}, "torch 2.10 does not look at their types"
    else:
        assert (type(ours.value), str(ours.value)) == (type(said), str(said))


def test_a_layer_in_both_directions_has_no_cell() -> None:
    with pytest.raises(ValueError, match="bidirectional=False, got True; the backward direction starts from the last"):
        ContextLSTM(3, 5, bidirectional=True).cell()
    with pytest.raises(ValueError, match=r"cell: expected proj_size=0, got 2; nn\.LSTMCell has no projection"):
        ContextLSTM(3, 5, proj_size=2).cell()


PACKED = pack_sequence([torch.zeros(2, 2), torch.zeros(1, 2)])
CONTEXT, INPUT = torch.zeros(2, 3), torch.zeros(4, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": PACKED}, TypeError, "context is required because context_size is 3; got NoneType"),
        ({"context": CONTEXT[0], "input": PACKED}, ValueError, "context to be 2D beside a PackedSequence, got 1D"),
        ({"context": CONTEXT[:1], "input": PACKED}, RuntimeError, "context batch size 2 like input, got 1"),
        ({"context": CONTEXT, "input": PACKED, "steps": 3}, ValueError, "steps: expected 2, the length of input"),
        ({"context": CONTEXT, "input": PACKED, "lengths": [2, 1]}, TypeError, "not taken beside a PackedSequence"),
        (
            {"context": CONTEXT, "input": pack_sequence([torch.zeros(2, 3)] * 2)},
            RuntimeError,
            "input_size. Expected 2, got 3",
        ),
        (
            {"context": CONTEXT, "input": PACKED, "hx": (torch.zeros(1, 3, 5),) * 2},
            RuntimeError,
            r"hidden\[0\] size \(1, 2, 5\), got \[1, 3, 5\]",
        ),
        ({"context": CONTEXT, "input": INPUT, "lengths": [4, 5]}, ValueError, r"from 1 to 4, .*; got \[4, 5\]"),
        ({"context": CONTEXT, "input": INPUT, "lengths": [4, 0]}, ValueError, r"from 1 to 4, .*; got \[4, 0\]"),
        ({"context": CONTEXT, "input": INPUT, "lengths": [4]}, ValueError, r"shape \[B\] = \[2\], got \[1\]"),
        ({"context": CONTEXT, "input": INPUT, "lengths": 4}, TypeError, "a Tensor of integers, got int"),
        ({"context": CONTEXT, "input": INPUT, "lengths": [4.0, 2.0]}, TypeError, "a Tensor of integers, got list"),
        (
            {"context": CONTEXT, "input": INPUT, "lengths": torch.ones(2)},
            TypeError,
            "a Tensor of integers, got torch.float32",
        ),
        (
            {"context": CONTEXT[0], "input": INPUT[:, 0], "lengths": [4]},
            ValueError,
            "lengths is taken beside batched inputs only",
        ),
    ],
)
def test_bad_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTM(3, 5, input_size=2)(**arguments)
    with pytest.raises(TypeError, match="input is not taken because input_size is 0; got PackedSequence"):
        ContextLSTM(3, 5)(CONTEXT, input=PACKED)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, list], ids=str)
def test_lengths_of_any_integers(kind: Any) -> None:
    """Without an input and without steps the longest sequence has the last step."""
    layer, context = ContextLSTM(C, H, bidirectional=True), torch.randn(B, C)
    lengths: Any = LENGTHS if kind is list else torch.tensor(LENGTHS, dtype=kind)
    output, _ = layer(context, lengths=lengths)
    assert output.shape == (7, B, 2 * H)
    longer, _ = layer(context, 9, lengths=lengths)
    assert torch.equal(longer[:7], output)
    assert longer[7:].count_nonzero() == 0
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(output[:length, b], layer(context[b], length)[0])


def test_sequences_that_are_all_as_long_are_not_packed() -> None:
    layer, context = ContextLSTM(C, H), torch.randn(B, C)
    assert torch.equal(layer(context, 7, lengths=[7] * B)[0], layer(context, 7)[0])
    empty = layer(context[:0], 7, lengths=torch.zeros(0, dtype=torch.int64))[0]
    assert empty.shape == (7, 0, H)


def test_padding_reaches_nothing() -> None:
    layer, context, input = ContextLSTM(C, H, input_size=2), torch.randn(2, C), torch.randn(4, 2, 2)
    input[2:, 0] = torch.nan
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        output, states = run(context, 4, input, None, torch.tensor([2, 4]))
        gradients = torch.autograd.grad(output.sum() + states[1].sum(), [*layer.parameters()])
        assert all(t.isfinite().all() for t in (output, *states, *gradients))


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize("input_size", [pytest.param(0, marks=pytest.mark.exhaustive), 3])
def test_compiles_into_one_graph(input_size: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"bidirectional": bidirectional, "proj_size": 2, "num_layers": 2}
    layer = ContextLSTM(C, H, input_size=input_size, dtype=F64, **options)
    context, lengths = torch.randn(B, C, dtype=F64, requires_grad=True), torch.tensor(LENGTHS)
    input = torch.randn(T, B, input_size, dtype=F64, requires_grad=True) if input_size else None
    leaves = [context, *([] if input is None else [input]), *layer.parameters()]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for given in (None, lengths, lengths.flip(0)):
        results = [Results.of(*run(context, T, input, None, given), leaves) for run in (compiled, layer)]
        for got, want in zip(*(itertools.chain(*r) for r in results), strict=True):
            torch.testing.assert_close(got, want)
    if input is not None:
        packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
        got, want = compiled(context, None, packed), layer(context, None, packed)
        torch.testing.assert_close(got[0].data, want[0].data)
        torch.testing.assert_close(got[1], want[1])


def test_is_exported_with_lengths() -> None:
    layer = ContextLSTM(C, H, input_size=2, bidirectional=True)
    context, input = torch.randn(B, C), torch.randn(T, B, 2)
    arguments = (context, T, input, None, torch.tensor(LENGTHS))
    with torch.no_grad():
        program = torch.export.export(layer, arguments).module()
        for lengths in (LENGTHS, LENGTHS[::-1]):
            other = (*arguments[:4], torch.tensor(lengths))
            torch.testing.assert_close(program(*other), layer(*other))
        with pytest.raises(RuntimeError, match="lengths: expected numbers from 1 to 7"):
            program(*arguments[:4], torch.tensor([8] * B))


@pytest.mark.parametrize("kind", ["whole", "lengths", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_autocast(kind: str, proj_size: int) -> None:
    layer = ContextLSTM(C, H, input_size=2, bidirectional=True, proj_size=proj_size)
    context, input, lengths = torch.randn(B, C), torch.randn(T, B, 2), torch.tensor(LENGTHS)
    given: Any = pack_padded_sequence(input, lengths, enforce_sorted=False) if kind == "packed" else input

    def run() -> list[Tensor]:
        output, states = layer(context, None, given, lengths=lengths if kind == "lengths" else None)
        output = output.data if isinstance(output, PackedSequence) else output
        gradients = torch.autograd.grad(output.float().sum() + states[1].float().sum(), [*layer.parameters()])
        return [output, *states, *gradients]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run()
    assert {t.dtype for t in got[:3]} == {torch.bfloat16}
    assert {t.dtype for t in got[3:]} == {torch.float32}
    for a, b in zip(got, run(), strict=True):
        assert (a.float() - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize("kind", ["lengths", "packed"])
def test_functional_transforms(kind: str) -> None:
    """torch.func takes the eager loop, which has any derivative."""
    layer, lengths = ContextLSTM(C, H, input_size=2, bidirectional=True, dtype=F64), torch.tensor(LENGTHS)
    context, input = torch.randn(B, C, dtype=F64), torch.randn(T, B, 2, dtype=F64)

    def loss(context: Tensor) -> Tensor:
        if kind == "lengths":
            return layer(context, None, input, lengths=lengths)[0].square().sum()
        return layer(context, None, pack_padded_sequence(input, lengths, enforce_sorted=False))[0].data.square().sum()

    leaf = context.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(context), expected)
    direction = torch.randn_like(context)
    _, forward = torch.func.jvp(loss, (context,), (direction,))
    torch.testing.assert_close(forward, (expected * direction).sum())


def test_flops_are_counted_where_operators_are_intercepted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = ContextLSTM(C, H, input_size=2, bidirectional=True)
    context, input, lengths = torch.randn(B, C), torch.randn(T, B, 2), torch.tensor(LENGTHS)
    expected = layer(context, None, input, lengths=lengths)
    with FlopCounterMode(display=False), warnings.catch_warnings():
        torch.testing.assert_close(layer(context, None, input, lengths=lengths), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("proj_size", [0, 24])
@pytest.mark.parametrize("kind", ["whole", "lengths", "packed"])
def test_on_a_gpu(kind: str, proj_size: int) -> None:
    """Against the CPU, in float64: results and all gradients; nothing waits for the GPU if lengths are there."""
    torch.manual_seed(0)
    layers = [ContextLSTM(C, 64, input_size=3, num_layers=2, bidirectional=True, proj_size=proj_size, dtype=F64)]
    layers.append(ContextLSTM.from_lstm(layers[0].to_lstm(), C).cuda())
    context, input, lengths = torch.randn(B, C, dtype=F64), torch.randn(T, B, 3, dtype=F64), torch.tensor(LENGTHS)
    found = []
    for layer, device in zip(layers, ("cpu", "cuda"), strict=True):
        x = context.to(device).requires_grad_()
        given: Any = input.to(device)
        packed = pack_padded_sequence(given, lengths, enforce_sorted=False) if kind == "packed" else given
        here = lengths.to(device) if kind == "lengths" else None
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" and kind != "packed" else "default")
        try:
            output, states = layer(x, None, packed, lengths=here)
            output = output.data if kind == "packed" else output
            results = Results.of(output, states, [x, *layer.parameters()])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append([t.cpu() for t in itertools.chain(*results)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
