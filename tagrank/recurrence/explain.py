"""Says in words which kernel would serve a call, and why the backends before it would not."""

from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tagrank.recurrence.backends import FUSED, passed_over
from tagrank.recurrence.dtypes import DTYPES, dtype_name

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu


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
        gpu: a GPU that is not in this machine, to say what would run on it; ``device`` is then ignored.
            ``tagrank.kernels.variants.Gpu((9, 0), 132)`` is an H100.

    Returns:
        Some lines of text: each backend in the order in which ``auto`` tries them, with the reason if it is passed
        over. Lines of its own may follow the backend that is taken: Triton's are, for each pass, the tiles that are
        passed over and the tile that is launched.

    Raises:
        ValueError: a size is not positive, or the dtype is none of float16, bfloat16, float32 and float64.

    Example:
        >>> print(explain(256, 20, 512, torch.bfloat16, gpu=Gpu((9, 0), 132)))
        B = 16, T = 20, H = 512, bfloat16 on cuda:0
        native: no, it runs on the CPU, and gates_x is on cuda:0
        cluster: no, it is for B up to 64, as with more rows the grouped variant of triton is ahead
        triton: taken
          forward: not resident 16 x 64, as it is for H up to 64
          ...
          forward: grouped 64 x 16, 1 launch of 4 x 32 programs; tiles of 32 rows would be too many programs; ...
    """
    for name, size in (("batch", batch), ("steps", steps), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(dtype_name, DTYPES))}; got {dtype_name(dtype)}")
    with FakeTensorMode():
        gates_x = torch.empty(batch, 4 * hidden, dtype=dtype, device=device if gpu is None else "cuda")
    lines = [f"B = {batch}, T = {steps}, H = {hidden}, {dtype_name(dtype)} on {gates_x.device}"]
    for name, backend in FUSED.items():
        reason = passed_over(backend, gates_x, gpu)
        if reason is None:
            lines += [f"{name}: taken", *(f"  {line}" for line in backend.explain(gates_x, steps, gpu))]
            return "\n".join(lines)
        lines.append(f"{name}: no, {reason}")
    return "\n".join([*lines, "eager: taken, as it runs everywhere"])
