"""The contestants in a comparison of recurrences: tagrank's backends, and what people use today.

All contestants compute the same result from the same parameters: the hidden states ``[T, B, H]`` of an LSTM whose input
is a context ``[B, D]``, D = H, which is the same in all ``T`` time steps.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import ContextLSTM, env
from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.backends.gpu import gpu_of
from tagrank.recurrence.dtypes import dtype_name

#: The largest relative error (in the Euclidean norm) of a right result.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
#: The same in TF32, which keeps 10 bits of the mantissa of a float32 factor.
TF32_TOLERANCE = 2e-3
#: The most time steps of the loop under ``torch.compile``, which unrolls it: compiling takes seconds for each step.
COMPILED_STEPS = 20

Mode = Literal["inference", "training"]
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A problem size.

    Attributes:
        batch: batch size ``B``.
        hidden: hidden size ``H``, which is also the context size ``D``.
        steps: number of time steps ``T``.
        dtype: the dtype of parameters and context.
        device: ``"cpu"`` or ``"cuda"``.
    """

    batch: int
    hidden: int
    steps: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def make(self) -> tuple[nn.LSTM, Tensor]:
        """The parameters, as those of an ``nn.LSTM``, and the context. They are the same in each call."""
        torch.manual_seed(0)
        lstm = nn.LSTM(self.hidden, self.hidden, device=self.device, dtype=self.dtype)
        return lstm, torch.randn(self.batch, self.hidden, device=self.device, dtype=self.dtype)

    def flops(self, mode: Mode) -> float:
        """The operations that cannot be left out.

        In inference ``W I`` once, and ``U h`` in each time step but the first, whose h is zero: 8 B H^2 each. In
        training three times as many.
        """
        products = 8 * self.batch * self.hidden**2 * self.steps
        return products if mode == "inference" else 3 * products

    def bytes_moved(self, mode: Mode) -> float:
        """The bytes of main memory that must move.

        In inference W and U (4H x H each), the context (B x H) and the hidden states (T x B x H). In training also the
        gradients of all these.
        """
        once = 8 * self.hidden**2 + self.batch * self.hidden * (1 + self.steps)
        return (once if mode == "inference" else 2 * once) * self.dtype.itemsize


@dataclass(frozen=True)
class Contestant:
    """A way to compute a case.

    Attributes:
        name: the name in tables and result files.
        kind: ``"ours"``; ``"peer"``, with which ours are compared; or ``"floor"``, which does only the matrix products.
        module: the module whose parameters have gradients in training.
        forward: computes the hidden states from the context.
        graphed: whether it is captured in a CUDA graph and replayed.
        tf32: whether its float32 products are in TF32.
        within: makes the context manager in which both passes run, or are captured. Entering it is not timed.
        model_ms: for each mode, the least time of its kernels in milliseconds according to
            ``tagrank.kernels.roofline``. Empty if that has no model of the kernels or the GPU.
    """

    name: str
    kind: Literal["ours", "peer", "floor"]
    module: nn.Module
    forward: Forward
    graphed: bool = False
    tf32: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    model_ms: Mapping[Mode, float] = field(default_factory=dict)

    def tolerance(self, dtype: torch.dtype) -> float:
        """The largest relative error of a right result."""
        return TF32_TOLERANCE if self.tf32 else TOLERANCE[dtype]


def contestants(
    case: Case, lstm: nn.LSTM, compiled: bool = True, only: Collection[str] | None = None
) -> list[Contestant]:
    """The contestants that can run this case, with the parameters of ``lstm``.

    Args:
        case: the problem size.
        lstm: has the parameters.
        compiled: whether the loop under ``torch.compile`` is one of them, if T is at most ``COMPILED_STEPS``.
        only: the names of those wanted. If it is ``None``, all, but ``"tagrank auto"`` only on GPUs: on CPUs it is
            ``"tagrank native"`` over again.
    """
    runs = _exact(case, lstm, compiled)
    if case.device == "cuda" or (only is not None and "tagrank auto" in only):
        module = ContextLSTM(case.hidden, case.hidden, device=case.device, dtype=case.dtype)
        module.load_state_dict(lstm.state_dict())
        runs.append(Contestant("tagrank auto", "ours", module, _layer(module, case.steps)))
    if case.device == "cuda":
        if case.dtype == torch.float32:
            runs += [_in_tf32(run) for run in runs if run.name.startswith(("nn.LSTM (", "tagrank "))]
        runs += [replace(run, name=f"{run.name}, CUDA graph", graphed=True) for run in runs if _can_be_graphed(run)]
    return [run for run in runs if only is None or run.name in only]


def _can_be_graphed(run: Contestant) -> bool:
    """Whether it is worth a graph: a loop over cells is the eager loop with more launches."""
    return run.name not in ("nn.LSTMCell loop", "flashrnn")


def _in_tf32(run: Contestant) -> Contestant:
    """The same with products in TF32, which is cuDNN's default."""
    name = run.name.removesuffix(")") + ", TF32)" if run.name.endswith(")") else run.name + ", TF32"
    return replace(run, name=name, tf32=True, within=partial(_in_both, run.within, tf32))


@contextmanager
def _in_both(outer: Callable[[], Any], inner: Callable[[], Any]) -> Iterator[None]:
    with outer(), inner():
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """Inside the block, products of float32 numbers are in TF32: cuDNN's, cuBLAS's and ours."""
    cudnn, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(precision)


def _exact(case: Case, lstm: nn.LSTM, compiled: bool) -> list[Contestant]:
    """The contestants that are not in TF32 or in a CUDA graph, without ``"tagrank auto"``."""
    runs = []
    for backend, unavailable in env()["backends"].items():
        if unavailable or (backend in FUSED and case.device != FUSED[backend].device):
            continue
        module = ContextLSTM(case.hidden, case.hidden, backend=backend, device=case.device, dtype=case.dtype)
        module.load_state_dict(lstm.state_dict())
        runs += _of_backend(case, backend, module)
    if compiled and case.steps <= COMPILED_STEPS:
        torch._dynamo.reset()
        loop = torch.compile(_loop(lstm, case.steps), dynamic=False, fullgraph=True)
        runs.append(Contestant("torch.compile", "peer", lstm, loop))
    return runs + _of_libraries(case, lstm)


def _of_backend(case: Case, backend: str, module: ContextLSTM) -> list[Contestant]:
    """The contestants of one backend: it may have several kernels that serve this case, or none."""
    forward = _layer(module, case.steps)
    if backend == "eager":
        return [Contestant("eager loop", "peer", module, forward)]
    ours = Contestant(f"tagrank {backend}", "ours", module, forward)
    fused = FUSED[backend]
    gates_x = torch.empty(case.batch, 4 * case.hidden, device=case.device, dtype=case.dtype)
    # First what the backend takes now, then what it could take if this GPU were in tagrank.kernels.verified.
    runs = [] if fused.unsupported(gates_x) else [replace(ours, model_ms=_least_ms(case, backend))]
    for name, only in fused.variants().items():
        with only():
            serves = fused.unsupported(gates_x) is None
        # What it takes while nothing is verified is the step variant.
        if serves and name not in (backend, "step"):
            runs.append(replace(ours, name=f"{ours.name} {name}", within=only, model_ms=_least_ms(case, backend, name)))
    return runs


def _of_libraries(case: Case, lstm: nn.LSTM) -> list[Contestant]:
    """The contestants that are PyTorch's own modules or come from other libraries."""
    cuda = case.device == "cuda"
    library = "cuDNN" if cuda else "oneDNN"
    runs = [Contestant(f"nn.LSTM ({library})", "peer", lstm, lambda c: lstm(c.expand(case.steps, -1, -1))[0])]
    cell = nn.LSTMCell(case.hidden, case.hidden, device=case.device, dtype=case.dtype)
    cell.load_state_dict(cell_parameters(lstm))
    runs.append(Contestant("nn.LSTMCell loop", "peer", cell, _cell_loop(cell, case.steps)))
    if cuda and case.dtype != torch.float32 and find_spec("flashrnn") is not None:
        runs.append(Contestant("flashrnn", "peer", lstm, _flashrnn(lstm, case)))
    if not cuda and case.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        runs.append(Contestant("packed products alone", "floor", lstm, _packed_products(lstm, case)))
    return runs


def cell_parameters(lstm: nn.LSTM) -> dict[str, Tensor]:
    """The state dict of a one-layer ``nn.LSTM``, with the names that ``nn.LSTMCell`` has for the parameters."""
    return {name.removesuffix("_l0"): parameter for name, parameter in lstm.state_dict().items()}


def oracle(case: Case, lstm: nn.LSTM, context: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The right result in float64.

    Returns:
        The hidden states ``[T, B, H]``, and the gradients of their sum with respect to the context and each parameter.
    """
    weights = {name: p.detach().double().requires_grad_() for name, p in lstm.named_parameters()}
    leaf = context.detach().double().requires_grad_()
    output = _recur(leaf, case.steps, **weights)
    return output.detach(), list(torch.autograd.grad(output.sum(), [leaf, *weights.values()]))


def error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative error (in the Euclidean norm) of the tensors ``got``."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def _recur(
    context: Tensor, steps: int, weight_ih_l0: Tensor, weight_hh_l0: Tensor, bias_ih_l0: Tensor, bias_hh_l0: Tensor
) -> Tensor:
    """The recurrence with a constant input in plain PyTorch, for the oracle and for torch.compile."""
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


def _layer(module: ContextLSTM, steps: int) -> Forward:
    return lambda context: module(context, steps)[0]


def _least_ms(case: Case, backend: str, variant: Any = None) -> dict[Mode, float]:
    """The least time of a case's kernels in milliseconds, without the products before and after the time loop.

    The kernels are the given variant, or if it is ``None`` what the backend takes. The result is empty unless there is
    a model of them, the GPU is like an H100 and the dtype has 16 bits.
    """
    from tagrank.kernels.choice import choose
    from tagrank.kernels.roofline import H100, Step, cluster_step, triton_step
    from tagrank.kernels.variants import Kernel

    if case.device == "cpu" or case.dtype == torch.float32 or backend not in ("cluster", "triton"):
        return {}
    gpu = gpu_of(torch.device(case.device, torch.cuda.current_device()))
    if gpu.capability != (9, 0):
        return {}

    def step(kernel: Kernel, training: bool) -> Step:
        if backend == "cluster":
            return cluster_step(kernel, case.batch, case.hidden, H100, training=training)
        chosen = choose(kernel, case.hidden, case.batch, dtype_name(case.dtype), gpu, name=variant)
        return triton_step(kernel, chosen, case.batch, case.hidden, training=training)

    def milliseconds(kernel: Kernel, training: bool) -> float:
        return case.steps * step(kernel, training).floor(H100)[0] * 1e3

    return {
        "inference": milliseconds("forward", False),
        "training": milliseconds("forward", True) + milliseconds("backward", True),
    }


def _cell_loop(cell: nn.LSTMCell, steps: int) -> Forward:
    def run(context: Tensor) -> Tensor:
        state, states = None, []
        for _ in range(steps):
            state = cell(context, state)
            states.append(state[0])
        return torch.stack(states)

    return run


def _flashrnn(lstm: nn.LSTM, case: Case) -> Forward:
    """FlashRNN's fused kernel with one head.

    It takes ``Wx`` [B, T, 4, heads, H], ``R`` [4, heads, H, H] and ``b`` [4, heads, H].
    """
    H, dtype = case.hidden, str(case.dtype).removeprefix("torch.")

    def run(context: Tensor) -> Tensor:
        from flashrnn import flashrnn  # builds its kernels at the first call, and may fail to

        gates_x = F.linear(context, lstm.weight_ih_l0, lstm.bias_ih_l0)
        repeated = gates_x.view(-1, 1, 4, 1, H).expand(-1, case.steps, -1, -1, -1).contiguous()
        R, b = lstm.weight_hh_l0.view(4, 1, H, H), lstm.bias_hh_l0.view(4, 1, H)
        states, _ = flashrnn(repeated, R, b, function="lstm", backend="cuda_fused", dtype=dtype)
        hidden: Tensor = states[0, :, :, 0].transpose(0, 1)
        return hidden

    return run


def _packed_products(lstm: nn.LSTM, case: Case) -> Forward:
    """Only the matrix products of the forward pass: one a time step, by oneDNN, with a weight packed beforehand."""
    weight = torch.ops.mkldnn._reorder_linear_weight(lstm.weight_hh_l0.detach(), case.batch)

    def run(context: Tensor) -> Tensor:
        for _ in range(case.steps):
            torch.ops.mkldnn._linear_pointwise(context, weight, None, "none", [], "")
        return context

    return run
