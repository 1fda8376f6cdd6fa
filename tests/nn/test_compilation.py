"""Compiled layers: sizes that change, and how often PyTorch compiles for them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tagrank import ContextLSTM, ContextLSTMCell

SIZES = ((2, 6), (3, 6), (3, 7), (4, 9), (7, 5), (2, 30))


class Model(nn.Module):
    """A layer, or the steps of a cell, on arguments that only some of them have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        inputs = 0 if kind == "steps" else 2
        if kind == "cell":
            self.cell = ContextLSTMCell(3, 5, input_size=2)
        else:
            batch_first = kind == "batch first"
            self.lstm = ContextLSTM(3, 5, input_size=inputs, num_layers=2, batch_first=batch_first)

    def forward(self, context: Tensor, input: Tensor) -> Tensor:
        if self.kind == "steps":
            output, (h_n, _) = self.lstm(context, input.shape[0])
        elif self.kind == "cell":
            gates = self.cell.context_gates(context)
            return self.cell(gates, input[1], self.cell(gates, input[0]))[1]
        else:
            output, (h_n, _) = self.lstm(context, input=input)
        return output.sum((0, 1)) + h_n.sum((0, 1))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ["time first", "batch first", "steps", "cell"])
def test_one_graph_serves_every_batch_and_length(kind: str, train: bool) -> None:
    model = Model(kind)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch, steps in SIZES:
        context = torch.randn(batch, 3)
        input = torch.randn((batch, steps, 2) if kind == "batch first" else (steps, batch, 2))
        torch._dynamo.mark_dynamic(context, 0)
        for dimension in (0, 1):
            torch._dynamo.mark_dynamic(input, dimension)
        with torch.set_grad_enabled(train):
            got, want = compiled(context, input), model(context, input)
            torch.testing.assert_close(got, want)
            if train:
                ours = torch.autograd.grad(got.sum(), model.parameters())
                theirs = torch.autograd.grad(want.sum(), model.parameters())
                torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_unmarked_sizes_are_compiled_once_more() -> None:
    """For the sizes of the first call, and once more for all others; a number of steps by itself too."""
    lstm = ContextLSTM(3, 5)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(lstm, fullgraph=True, backend=counter)
    counts = []
    for batch, steps in ((2, 6), (3, 7), (4, 9), (2, 30)):
        context = torch.randn(batch, 3)
        torch.testing.assert_close(compiled(context, steps), lstm(context, steps))
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2]
