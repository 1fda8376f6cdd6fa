"""Who runs in a comparison of recurrences: our backends, and what people use today.

Each contestant computes the same thing from the same parameters: the hidden states of an LSTM whose input is a context
``[B, D]`` repeated at each of ``T`` steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import ContextLSTM, env
from tagrank.recurrence.backends import FUSED

#: Relative error, in the norm, up to which a result counts as right.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A problem size: batch ``B``, context and hidden size ``D = H``, steps ``T``."""

    batch: int
    hidden: int
    steps: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def make(self) -> tuple[nn.LSTM, Tensor]:
        """The same parameters and context each time."""
        torch.manual_seed(0)
        lstm = nn.LSTM(self.hidden, self.hidden, device=self.device, dtype=self.dtype)
        return lstm, torch.randn(self.batch, self.hidden, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Contestant:
    """A way to compute a case. ``module`` has the parameters that are trained."""

    name: str
    ours: bool
    module: nn.Module
    forward: Forward


def contestants(case: Case, lstm: nn.LSTM) -> list[Contestant]:
    """All that can run this case, with the parameters of ``lstm``."""
    runs = []
    for backend, unavailable in env()["backends"].items():
        if unavailable or (backend in FUSED and case.device != FUSED[backend].DEVICE):
            continue
        module = ContextLSTM(case.hidden, case.hidden, backend=backend, device=case.device, dtype=case.dtype)
        module.load_state_dict(lstm.state_dict())
        runs.append(Contestant(f"tagrank {backend}", backend != "eager", module, _ours(module, case.steps)))
    library = "cuDNN" if case.device == "cuda" else "oneDNN"
    runs.append(Contestant(f"nn.LSTM ({library})", False, lstm, lambda c: lstm(c.expand(case.steps, -1, -1))[0]))
    cell = nn.LSTMCell(case.hidden, case.hidden, device=case.device, dtype=case.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    runs.append(Contestant("nn.LSTMCell loop", False, cell, _cell_loop(cell, case.steps)))
    return runs


def oracle(case: Case, lstm: nn.LSTM, context: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Hidden states ``[T, B, H]``, and the gradients of their sum: of the context, then of each parameter; float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in lstm.named_parameters()}
    leaf = context.detach().double().requires_grad_()
    gates_x = F.linear(leaf, weights["weight_ih_l0"], weights["bias_ih_l0"] + weights["bias_hh_l0"])
    h = c = torch.zeros_like(leaf)
    states = []
    for _ in range(case.steps):
        i, f, g, o = (gates_x + h @ weights["weight_hh_l0"].t()).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    output = torch.stack(states)
    return output.detach(), list(torch.autograd.grad(output.sum(), [leaf, *weights.values()]))


def error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative error, in the norm, of some tensors."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def _ours(module: ContextLSTM, steps: int) -> Forward:
    return lambda context: module(context, steps)[0]


def _cell_loop(cell: nn.LSTMCell, steps: int) -> Forward:
    def run(context: Tensor) -> Tensor:
        state, states = None, []
        for _ in range(steps):
            state = cell(context, state)
            states.append(state[0])
        return torch.stack(states)

    return run
