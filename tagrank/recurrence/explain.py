"""Says in words which kernel would serve a call, and why none of those before it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tagrank.recurrence.backends import FUSED, cluster, passed_over
from tagrank.recurrence.backends import triton_kernels as triton
from tagrank.recurrence.op import DTYPES

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu, Kernel


def explain(
    batch: int,
    steps: int,
    hidden: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    gpu: "Gpu | None" = None,
) -> str:
    """Which kernel ``backend="auto"`` would run, and why: nothing is run, and nothing allocated.

    Args:
        batch: ``B``.
        steps: ``T``.
        hidden: ``H``.
        dtype: of the gates.
        device: of the gates.
        gpu: a GPU that is not here, to ask what would run on it: ``tagrank.kernels.variants.Gpu((9, 0), 132)`` is an
            H100. It takes the place of ``device``.

    Returns:
        Some lines of text: each backend in the order in which they are tried, with the reason where it is passed over;
        below Triton's, for each pass the tile that is launched, and those passed over before it.

    Raises:
        ValueError: a size is not positive, or the dtype is none of float16, bfloat16, float32 and float64.

    Example:
        >>> print(explain(16, 20, 512, torch.bfloat16, gpu=Gpu((9, 0), 132)))
        B = 16, T = 20, H = 512, bfloat16 on cuda:0
        native: no, it runs on the CPU, and gates_x is on cuda:0
        cluster: no, it was not verified on compute capability 9.0
        triton: taken
          forward: not resident 16 x 64, as it is for H up to 64
          ...
          forward: step 16 x 16, 20 launches of 1 x 32 programs; few rows: ...
    """
    for name, size in (("batch", batch), ("steps", steps), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(_name, DTYPES))}; got {_name(dtype)}")
    with FakeTensorMode():
        gates_x = torch.empty(batch, 4 * hidden, dtype=dtype, device=device if gpu is None else "cuda")
    lines = [f"B = {batch}, T = {steps}, H = {hidden}, {_name(dtype)} on {gates_x.device}"]
    for name in FUSED:
        reason = _passed_over(name, gates_x, gpu)
        if reason is not None:
            lines.append(f"{name}: no, {reason}")
            continue
        lines.append(f"{name}: taken")
        if name == "triton":
            there = triton.gpu_of(gates_x.device) if gpu is None else gpu
            for kernel in ("forward", "backward"):
                lines += (f"  {kernel}: {line}" for line in _tiles(kernel, gates_x, steps, there))
        return "\n".join(lines)
    return "\n".join([*lines, "eager: taken, as it runs everywhere"])


def _passed_over(name: str, gates_x: Tensor, gpu: "Gpu | None") -> str | None:
    """As ``backends.passed_over``, for a GPU that need not be here."""
    if gpu is not None and name == "triton":
        return triton.too_old(gpu, gates_x.device)
    if gpu is not None and name == "cluster":
        hidden = gates_x.shape[-1] // 4
        return cluster.out_of_range(gates_x.dtype, hidden, gpu.capability) or cluster.unverified(gpu.capability)
    return passed_over(name, gates_x)


def _tiles(kernel: "Kernel", gates_x: Tensor, steps: int, gpu: "Gpu") -> Iterator[str]:
    """The rules of one kernel up to the one that serves, but for those of other dtypes."""
    from tagrank.kernels.choice import consider

    batch, hidden, dtype = gates_x.shape[0], gates_x.shape[1] // 4, _name(gates_x.dtype)
    for rule, reason in consider(kernel, hidden, batch, dtype, gpu):
        if reason is None:
            tiles, slices = rule.variant.grid(batch, hidden)
            launches = steps if rule.variant.name == "step" else 1
            many = "launch" if launches == 1 else "launches"
            yield f"{rule.variant}, {launches} {many} of {tiles} x {slices} programs; {rule.why}"
            return
        if dtype in rule.dtypes:
            yield f"not {rule.variant}, as {reason}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
