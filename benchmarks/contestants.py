"""Who runs in a comparison of recurrences: our backends, and what people use today.

Each contestant computes the same thing from the same parameters: the hidden states of an LSTM whose input is a context
``[B, D]``, D = H, that stays the same at each of ``T`` steps.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import ContextLSTM, env
from tagrank.recurrence.backends import FUSED, cluster
from tagrank.recurrence.backends import triton_kernels as triton

#: Relative error, in the norm, up to which a result counts as right.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

Mode = Literal["inference", "training"]
OneLaunch = Literal["resident", "grouped"]
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

    def flops(self, mode: Mode) -> float:
        """The operations that cannot be left out: ``W I`` once, ``U h`` at all steps but the first, where h is zero."""
        products = 8 * self.batch * self.hidden**2 * self.steps
        return products if mode == "inference" else 3 * products

    def bytes_moved(self, mode: Mode) -> float:
        """Main memory to be read or written: weights, context, hidden states; in training their gradients too."""
        once = 8 * self.hidden**2 + self.batch * self.hidden * (1 + self.steps)
        return (once if mode == "inference" else 2 * once) * self.dtype.itemsize


@dataclass(frozen=True)
class Contestant:
    """A way to compute a case.

    Attributes:
        name: as it is printed.
        kind: ``ours``, a ``peer`` that ours is compared with, or a ``floor``: the matrix products alone.
        module: has the parameters that are trained.
        forward: the context to the hidden states.
        graphed: to be captured in a CUDA graph, and then replayed.
        within: makes the context in which both passes are run.
        model_ms: for each mode, the least time of its kernels by ``tagrank.kernels.roofline``, if that knows the GPU.
    """

    name: str
    kind: Literal["ours", "peer", "floor"]
    module: nn.Module
    forward: Forward
    graphed: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    model_ms: Mapping[Mode, float] = field(default_factory=dict)


def contestants(case: Case, lstm: nn.LSTM, compiled: bool = True) -> list[Contestant]:
    """All that can run this case, with the parameters of ``lstm``; ``compiled``: torch.compile's peer among them."""
    cuda = case.device == "cuda"
    runs = []
    for backend, unavailable in env()["backends"].items():
        if unavailable or (backend in FUSED and case.device != FUSED[backend].DEVICE):
            continue
        module = ContextLSTM(case.hidden, case.hidden, backend=backend, device=case.device, dtype=case.dtype)
        module.load_state_dict(lstm.state_dict())
        if backend != "eager":
            ours = Contestant(f"tagrank {backend}", "ours", module, _ours(module, case.steps))
            if not cuda:
                runs.append(ours)
                continue
            if backend == "cluster":
                if cluster.unsupported(torch.empty(0, 4 * case.hidden, device=case.device, dtype=case.dtype)) is None:
                    runs.append(replace(ours, model_ms=_modelled(case, "cluster")))
                continue
            runs.append(replace(ours, model_ms=_modelled(case, None)))
            # What the table would take if this GPU were in tagrank.kernels.verified.
            runs += [
                replace(ours, name=f"{ours.name} {n}", within=_forced(n), model_ms=_modelled(case, n))
                for n in _served(case)
            ]
            continue
        runs.append(Contestant("eager loop", "peer", module, _ours(module, case.steps)))
    loop = _loop(lstm, case.steps)
    if compiled:
        torch._dynamo.reset()
        runs.append(Contestant("torch.compile", "peer", lstm, torch.compile(loop, dynamic=False, fullgraph=True)))
    if cuda:
        runs += [
            replace(run, name=f"{run.name}, CUDA graph", graphed=True) for run in runs if run.name != "torch.compile"
        ]
    library = "cuDNN" if cuda else "oneDNN"
    runs.append(Contestant(f"nn.LSTM ({library})", "peer", lstm, lambda c: lstm(c.expand(case.steps, -1, -1))[0]))
    cell = nn.LSTMCell(case.hidden, case.hidden, device=case.device, dtype=case.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    runs.append(Contestant("nn.LSTMCell loop", "peer", cell, _cell_loop(cell, case.steps)))
    if cuda and case.dtype != torch.float32 and find_spec("flashrnn") is not None:
        runs.append(Contestant("flashrnn", "peer", lstm, _flashrnn(lstm, case)))
    if not cuda and case.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        runs.append(Contestant("packed products alone", "floor", lstm, _packed_products(lstm, case)))
    return runs


def oracle(case: Case, lstm: nn.LSTM, context: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Hidden states ``[T, B, H]``, and the gradients of their sum: of the context, then of each parameter; float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in lstm.named_parameters()}
    leaf = context.detach().double().requires_grad_()
    output = _recur(leaf, case.steps, **weights)
    return output.detach(), list(torch.autograd.grad(output.sum(), [leaf, *weights.values()]))


def error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative error, in the norm, of some tensors."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def _recur(
    context: Tensor, steps: int, weight_ih_l0: Tensor, weight_hh_l0: Tensor, bias_ih_l0: Tensor, bias_hh_l0: Tensor
) -> Tensor:
    """The recurrence as plain PyTorch with a constant input, for the oracle and for torch.compile."""
    gates_x = F.linear(context, weight_ih_l0, bias_ih_l0 + bias_hh_l0)
    h = c = torch.zeros_like(gates_x[:, : weight_hh_l0.shape[1]])
    states = []
    for _ in range(steps):
        i, f, g, o = (gates_x + h @ weight_hh_l0.t()).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states)


def _loop(lstm: nn.LSTM, steps: int) -> Forward:
    weights = dict(lstm.named_parameters())
    return lambda context: _recur(context, steps, **weights)


def _ours(module: ContextLSTM, steps: int) -> Forward:
    return lambda context: module(context, steps)[0]


def _table(case: Case) -> tuple[int, int, str, Any]:
    """What the table of Triton kernels is asked for."""
    gpu = triton.gpu_of(torch.device(case.device, torch.cuda.current_device()))
    return case.hidden, case.batch, str(case.dtype).removeprefix("torch."), gpu


def _served(case: Case) -> list[OneLaunch]:
    """The variants in one launch that serve both passes of a case, verified or not."""
    from tagrank.kernels.choice import RULES

    served = [{r.variant.name for r in rules if r.refusal(*_table(case)) is None} for rules in RULES.values()]
    names: tuple[OneLaunch, ...] = ("resident", "grouped")
    return [name for name in names if all(name in some for some in served)]


def _modelled(case: Case, name: OneLaunch | Literal["cluster"] | None) -> dict[Mode, float]:
    """Milliseconds that the kernels of a case take at least, without the products before and after the time loop."""
    from tagrank.kernels.choice import choose
    from tagrank.kernels.roofline import H100, cluster_step, triton_step
    from tagrank.kernels.variants import Kernel

    size = _table(case)
    if case.dtype == torch.float32 or size[-1].capability != (9, 0):
        return {}

    def floor(kernel: Kernel, training: bool) -> float:
        if name == "cluster":
            one = cluster_step(kernel, case.batch, case.hidden, H100, training=training)
            return case.steps * one.floor(H100)[0] * 1e3
        variant = choose(kernel, *size, name=name)
        return (
            case.steps * triton_step(kernel, variant, case.batch, case.hidden, training=training).floor(H100)[0] * 1e3
        )

    return {"inference": floor("forward", False), "training": floor("forward", True) + floor("backward", True)}


def _forced(name: OneLaunch) -> Callable[[], AbstractContextManager[Any]]:
    return partial(triton.forced, forward=name, backward=name)


def _cell_loop(cell: nn.LSTMCell, steps: int) -> Forward:
    def run(context: Tensor) -> Tensor:
        state, states = None, []
        for _ in range(steps):
            state = cell(context, state)
            states.append(state[0])
        return torch.stack(states)

    return run


def _flashrnn(lstm: nn.LSTM, case: Case) -> Forward:
    """FlashRNN's fused kernel, one head: ``Wx`` [B, T, 4, heads, H], ``R`` [4, heads, H, H], ``b`` [4, heads, H]."""
    from flashrnn import flashrnn

    H, dtype = case.hidden, str(case.dtype).removeprefix("torch.")

    def run(context: Tensor) -> Tensor:
        gates_x = F.linear(context, lstm.weight_ih_l0, lstm.bias_ih_l0)
        repeated = gates_x.view(-1, 1, 4, 1, H).expand(-1, case.steps, -1, -1, -1).contiguous()
        R, b = lstm.weight_hh_l0.view(4, 1, H, H), lstm.bias_hh_l0.view(4, 1, H)
        states, _ = flashrnn(repeated, R, b, function="lstm", backend="cuda_fused", dtype=dtype)
        hidden: Tensor = states[0, :, :, 0].transpose(0, 1)
        return hidden

    return run


def _packed_products(lstm: nn.LSTM, case: Case) -> Forward:
    """The matrix products of the forward pass, one after another, by oneDNN with a weight that is packed once."""
    weight = torch.ops.mkldnn._reorder_linear_weight(lstm.weight_hh_l0.detach(), case.batch)

    def run(context: Tensor) -> Tensor:
        for _ in range(case.steps):
            torch.ops.mkldnn._linear_pointwise(context, weight, None, "none", [], "")
        return context

    return run
