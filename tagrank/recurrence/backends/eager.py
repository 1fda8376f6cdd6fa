"""Equations (2)-(7) of Yan, Wang and Liao (2016) as a loop anyone can check by eye.

The oracle of every other backend: plain PyTorch, any dtype and device, differentiable any number of times.
"""

import torch
from torch import Tensor

from tagrank.recurrence.dtypes import cell_dtype


def lstm_loop(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; arguments as for :func:`tagrank.lstm_recurrence`.

    Args:
        weight_hr: ``[P, H]``, projects each hidden state, as in nn.LSTM with ``proj_size=P``. ``weight_hh`` is then
            ``[4H, P]``, and ``h0`` ``[B, P]``.

    Returns:
        ``output`` ``[T, B, H]`` (or ``[T, B, P]``) and ``c_n`` ``[B, H]``, in the dtype of ``gates_x``.
    """
    constant, batch = gates_x.dim() == 2, gates_x.shape[-2]
    h = gates_x.new_zeros(batch, weight_hh.shape[1]) if h0 is None else h0
    c = gates_x.new_zeros(batch, weight_hh.shape[0] // 4) if c0 is None else c0
    c = c.to(cell_dtype(c.dtype))
    outputs = []
    for t in range(steps):
        gates = (gates_x if constant else gates_x[t]) + h @ weight_hh.t()
        i, f, g, o = activate(gates).to(c.dtype).chunk(4, dim=-1)  # (2), (3), (5), (4)
        c = f * c + i * g  # (6)
        h = (o * c.tanh()).to(gates_x.dtype)  # (7)
        h = h if weight_hr is None else h @ weight_hr.t()
        outputs.append(h)
    return torch.stack(outputs), c.to(gates_x.dtype)


def activate(gates: Tensor) -> Tensor:
    """The gates ``[..., 4H]``, ordered i, f, g, o, through their nonlinearities: tanh for g, sigmoid for the others."""
    i, f, g, o = gates.chunk(4, dim=-1)
    return torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], dim=-1)
