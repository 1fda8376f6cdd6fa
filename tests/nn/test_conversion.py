"""From ``nn.LSTM`` and back, and the conversion of models that contain it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tagrank
from tagrank import ContextLSTM
from tagrank.nn.conversion import Finding
from tagrank.nn.repeated import RepeatedInputLSTM

F64 = torch.float64


def lstm_of(input_size: int = 7, hidden: int = 5, **options: Any) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(input_size, hidden, dtype=F64, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "dropout": 0.5},
        {"bias": False, "batch_first": True},
        {"bidirectional": True, "num_layers": 2},
        {"proj_size": 3, "bidirectional": True},
    ],
    ids=["plain", "layers", "no bias", "bidirectional", "projection"],
)
def test_from_an_lstm_and_back(options: dict[str, Any]) -> None:
    lstm = lstm_of(**options).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    state = torch.random.get_rng_state()
    layer = ContextLSTM.from_lstm(lstm, 4)
    back = layer.to_lstm()
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn"
    for module in (layer, back):
        assert not module.training
        assert module.dropout == options.get("dropout", 0.0)
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in lstm.parameters()]
        for name, value in lstm.state_dict().items():
            assert torch.equal(module.state_dict()[name], value)
            assert module.state_dict()[name].data_ptr() != value.data_ptr()
    x, context = torch.randn(6, 2, 3, dtype=F64), torch.randn(2, 4, dtype=F64)
    both = torch.cat([x, context.expand(6, -1, -1)], -1)
    if lstm.batch_first:
        x, both = x.transpose(0, 1), both.transpose(0, 1)
    expected = lstm(both)[0]
    torch.testing.assert_close(layer(context, input=x)[0], expected)
    torch.testing.assert_close(back(both)[0], expected)


def test_all_of_the_input_may_be_the_context() -> None:
    lstm = lstm_of(4)
    layer = ContextLSTM.from_lstm(lstm, 4)
    context = torch.randn(2, 4, dtype=F64)
    torch.testing.assert_close(layer(context, steps=3)[0], lstm(context.expand(3, -1, -1))[0])


@pytest.mark.parametrize(
    ("lstm", "size", "error", "message"),
    [
        (nn.GRU(4, 4), 2, TypeError, "lstm: expected an nn.LSTM, got GRU"),
        (nn.LSTM(4, 4), 5, ValueError, "context_size: expected 0 to 4, as many as lstm reads; got 5"),
        (nn.LSTM(4, 4), 1.5, TypeError, "context_size should be of type int, got: float"),
    ],
)
def test_bad_lstms(lstm: Any, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ContextLSTM.from_lstm(lstm, size)


class Captioner(nn.Module):
    """An image and a caption to logits: the image is concatenated to each word, before or after it."""

    def __init__(self, first: bool = False, batch_first: bool = False) -> None:
        super().__init__()
        self.first, self.batch_first = first, batch_first
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6 + 10, 8, batch_first=batch_first)
        self.head = nn.ModuleDict({"rnn": nn.LSTM(8, 9, batch_first=batch_first)})

    def forward(self, image: Tensor, caption: Tensor) -> Tensor:
        time = 1 if self.batch_first else 0
        words = self.embed(caption)
        images = image.unsqueeze(time).expand(*words.shape[:2], -1)
        both = [images, words] if self.first else [words, images]
        output: Tensor = self.head["rnn"](self.lstm(torch.cat(both, -1))[0])[0]
        return output


def example(batch_first: bool = False) -> tuple[Tensor, Tensor]:
    caption = torch.arange(12).remainder(11).view(4, 3)
    return torch.randn(3, 10, dtype=F64), caption.t() if batch_first else caption


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("first", [False, True], ids=["image last", "image first"])
def test_convert(first: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    model = Captioner(first, batch_first).to(F64)
    original = copy.deepcopy(model)
    image, caption = example(batch_first)
    state = torch.random.get_rng_state()
    conversion = tagrank.convert(model, (image,), {"caption": caption})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert conversion.findings == [
        Finding("lstm", True, f"its {'first' if first else 'last'} 10 of 16 features repeat over 4 steps"),
        Finding("head.rnn", False, "neither its first nor its last features repeat from step to step"),
    ]
    assert str(conversion).splitlines()[0].startswith("lstm: converted, its")
    assert conversion.error < 1e-12
    assert isinstance(model.lstm, RepeatedInputLSTM)
    assert model.training
    assert model.lstm.training

    # The results and all gradients are those of nn.LSTM, and the state dict loads both ways.
    images = [image.clone().requires_grad_() for _ in range(2)]
    outputs = [m(i, caption) for m, i in zip((model, original), images, strict=True)]
    torch.testing.assert_close(*outputs)
    for module, of_image, output in zip((model, original), images, outputs, strict=True):
        (output.square().sum()).backward()
        assert of_image.grad is not None
        module.lstm.load_state_dict(original.lstm.state_dict())
    torch.testing.assert_close(images[0].grad, images[1].grad)
    torch.testing.assert_close(model(image, caption), outputs[1])
    original.load_state_dict(model.state_dict())
    torch.testing.assert_close(original(image, caption), outputs[1])
    torch.testing.assert_close(model.lstm.to_lstm().weight_ih_l0, original.lstm.weight_ih_l0)
    again = copy.deepcopy(model)
    torch.testing.assert_close(again(image, caption), outputs[1])


def test_a_converted_layer_sees_that_its_input_does_not_repeat() -> None:
    torch.manual_seed(0)
    model = Captioner().to(F64)
    tagrank.convert(model, example())
    x = torch.randn(4, 3, 16, dtype=F64)
    with pytest.raises(ValueError, match="input: expected features 6 to 15 to be the same at each step, as"):
        model.lstm(x)
    x[..., 6:] = x[:1, :, 6:]
    x[..., 7] = torch.nan
    assert model.lstm(x)[0].isnan().all(), "a NaN repeats, too"
    with pytest.raises(ValueError, match=r"input: expected shape \[T, B, 16\] or \[T, 16\], got \[4, 3, 15\]"):
        model.lstm(x[..., :15])
    with pytest.raises(TypeError, match="input: expected a Tensor, got list"):
        model.lstm([x])
    unbatched = torch.randn(1, 16, dtype=F64).expand(4, -1)
    torch.testing.assert_close(model.lstm(unbatched)[0], model.lstm.to_lstm()(unbatched)[0])


def test_a_compiled_model_sees_it_too() -> None:
    torch.manual_seed(0)
    model = Captioner().to(F64)
    tagrank.convert(model, example())
    compiled = torch.compile(model.lstm, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 16, dtype=F64)
    with pytest.raises(RuntimeError, match="to be the same at each step"):
        compiled(x)
    x[..., 6:] = x[:1, :, 6:]
    torch.testing.assert_close(compiled(x)[0], model.lstm(x)[0])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("where", ["first", "last", "all"])
def test_packed_sequences_are_converted(where: str, enforce_sorted: bool, options: dict[str, Any]) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(7, 5, num_layers=2, **options)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
            output, states = self.lstm(packed)
            assert type(output) is type(packed)
            assert output.sorted_indices is packed.sorted_indices
            return nn.utils.rnn.pad_packed_sequence(output)[0], states

    torch.manual_seed(0)
    model = Reader().to(F64)
    original = copy.deepcopy(model)
    lengths = torch.tensor([5, 4, 4, 1] if enforce_sorted else [4, 1, 5, 4])
    x, (begin, end) = torch.randn(5, 4, 7, dtype=F64), {"first": (0, 4), "last": (3, 7), "all": (0, 7)}[where]
    x[..., begin:end] = x[:1, :, begin:end]
    conversion = tagrank.convert(model, (x, lengths))
    assert conversion.findings[0].converted
    assert conversion.error < 1e-12
    results = [m(x, lengths) for m in (model, original)]
    torch.testing.assert_close(*results)
    of_weights = [
        torch.autograd.grad(output.square().sum() + states[0].sum(), [*m.parameters()])
        for m, (output, states) in zip((model, original), results, strict=True)
    ]
    names = [name for name, _ in original.named_parameters()]
    for name, ours, theirs in zip(names, *of_weights, strict=True):
        if where == "first" and "weight_ih_l0" in name:
            ours = ours.roll(end, 1)  # the layer keeps these columns last
        torch.testing.assert_close(ours, theirs)
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    x[2, :, begin] += 1
    with pytest.raises(ValueError, match=f"expected features {begin} to {end - 1} to be the same at each step"):
        model(x, lengths)


class Several(nn.Module):
    """LSTMs and cells of all kinds."""

    class Own(nn.LSTM):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.LSTM(8, 8)
        self.same = self.whole
        self.own = Several.Own(8, 8)
        self.unused = nn.LSTM(8, 8)
        self.both_ways = nn.LSTM(8, 8, bidirectional=True)
        self.packed = nn.LSTM(8, 8)
        self.short = nn.LSTM(8, 8)
        self.few = nn.LSTM(9, 8)
        self.cell = nn.LSTMCell(2048, 64)
        self.small_cell = nn.LSTMCell(8, 8)
        self.wide_cell = nn.LSTMCell(8, 25)
        self.varying_cell = nn.LSTMCell(8, 8)
        self.changed_states = nn.LSTMCell(8, 8)
        self.once = nn.LSTMCell(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        sequence = x.expand(5, -1, -1)
        state = small = wide = varying = changed = None
        for step in range(3):
            state = self.cell(x.repeat(1, 256), state)
            small = self.small_cell(x, small)
            wide = self.wide_cell(x, wide)
            varying = self.varying_cell(x + step, hx=varying)
            changed = tuple(s.clone() for s in self.changed_states(x, changed))
        few = torch.cat([torch.rand(5, 2, 8, dtype=x.dtype), torch.zeros(5, 2, 1, dtype=x.dtype)], -1)
        return {
            "whole": self.same(self.whole(sequence)[0][:1].expand(5, -1, -1))[0],
            "own": self.own(sequence)[0],
            "both": self.both_ways(sequence)[0],
            "packed": self.packed(nn.utils.rnn.pack_sequence([sequence[:, 0]]))[0].data,
            "short": self.short(sequence[:1])[0],
            "few": self.few(few)[0],
            "cell": state[0],
            "small cells": small[0] + wide[0].sum() + varying[0] + changed[0] + self.once(x)[0],
        }


def test_each_one_that_is_left_has_a_reason() -> None:
    torch.manual_seed(0)
    model = Several().to(F64)
    conversion = tagrank.convert(model, torch.randn(2, 8, dtype=F64))
    found = {finding.name: (finding.converted, finding.reason) for finding in conversion.findings}
    by_hand = "takes the context once: gates = cell.context_gates(context), then cell(gates, input, (h, c))"
    assert found == {
        "whole": (True, "all of its 8 features repeat over 5 steps"),
        "own": (False, "it is a Own, which may do more than nn.LSTM"),
        "unused": (False, "the example does not run it"),
        "both_ways": (True, "all of its 8 features repeat over 5 steps"),
        "packed": (True, "all of its 8 features repeat over 5 steps"),
        "short": (False, "the example runs it for one step only"),
        "few": (False, "only its last 1 of 9 features repeat"),
        "cell": (True, "all of its 2048 features repeat over 3 calls"),
        "small_cell": (
            False,
            "all of its 8 features repeat over 3 calls, but to look for that takes as long as to read them anew, in "
            f"2 rows; ContextLSTMCell {by_hand}",
        ),
        "wide_cell": (
            False,
            "all of its 8 features repeat over 3 calls, but that is little beside the rest and its state's 25; "
            f"ContextLSTMCell {by_hand}",
        ),
        "varying_cell": (False, "neither its first nor its last features repeat from call to call"),
        "changed_states": (
            False,
            f"no call gets the states that the one before returned; ContextLSTMCell {by_hand}",
        ),
        "once": (False, "the example runs it for one call only"),
    }
    assert model.whole is model.same
    assert isinstance(model.whole, RepeatedInputLSTM)


class OwnCalls(nn.Module):
    """A cell with a call of its own, and modules on which something hangs."""

    class Cell(nn.LSTMCell):
        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"h": super().forward(x, (h, c))[0]}

    def __init__(self) -> None:
        super().__init__()
        self.own = OwnCalls.Cell(2048, 8)
        self.empty = nn.LSTMCell(0, 8)
        self.hooked = nn.LSTM(2048, 8)
        self.hooked.register_forward_hook(lambda *_: None)
        self.normalised = nn.utils.weight_norm(nn.LSTM(2048, 8), "weight_hh_l0")
        self.first, self.second = nn.LSTM(2048, 8), nn.LSTM(2048, 8)
        self.second.weight_ih_l0 = self.first.weight_ih_l0

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.zeros(len(x), 8)
        results = [self.own(x, h, h)["h"], self.empty(x[:, :0], self.empty(x[:, :0]))[0]]
        layers = self.hooked, self.normalised, self.first, self.second
        return results + [layer(x.expand(3, -1, -1))[0] for layer in layers]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_another_module_would_lose(recwarn: pytest.WarningsRecorder) -> None:
    found = {f.name: (f.converted, f.reason) for f in tagrank.convert(OwnCalls(), torch.randn(2, 2048)).findings}
    hooks = "it has hooks, or is normalised by one; register them after the conversion"
    tied = "it shares a parameter with another module"
    assert found == {
        "own": (False, "it is a Cell, which may do more than nn.LSTM"),
        "empty": (False, "neither its first nor its last features repeat from call to call"),
        "hooked": (False, hooks),
        "normalised": (False, hooks),
        "first": (False, tied),
        "second": (False, tied),
    }


def test_a_model_whose_outputs_change_is_left_alone() -> None:
    class Counting(Captioner):
        calls = 0

        def forward(self, image: Tensor, caption: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(image, caption) + Counting.calls

    model = Counting().to(F64)
    before = model.lstm
    with pytest.raises(RuntimeError, match=r"convert: an output of the example changed by .* the model is as it was"):
        tagrank.convert(model, example())
    assert model.lstm is before
    with pytest.raises(ValueError, match="model: is an LSTM itself"):
        tagrank.convert(nn.LSTM(4, 4), torch.zeros(3, 2, 4))
    assert str(tagrank.convert(nn.Linear(2, 2), torch.zeros(1, 2))) == "the model has no nn.LSTM and no nn.LSTMCell"
