"""Batch normalisation by the statistics of a batch of which several processes have a part each.

torch.nn.SyncBatchNorm does this on GPUs only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tagrank.training.processes import Processes


@contextmanager
def shared_norms(module: nn.Module, processes: Processes) -> Iterator[None]:
    """Within the block, the batch normalisations of a module that trains see the whole batch."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if processes.size > 1 else []
    try:
        for norm in norms:
            norm.forward = lambda x, norm=norm: _forward(norm, x)  # type: ignore[method-assign,misc]
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        frozen: Tensor = type(norm).forward(norm, x)
        return frozen
    dims = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = x.new_tensor(x.numel() // x.shape[1])
    sums = _Sum.apply(torch.cat([x.sum(dims), count.view(1)]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / count
    _keep(norm, mean.detach(), variance.detach() * count / (count - 1))
    normal: Tensor = centred * (variance + norm.eps).rsqrt().view(shape)
    return normal if norm.weight is None else normal * norm.weight.view(shape) + norm.bias.view(shape)


@torch.no_grad()
def _keep(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update what the normalisation knows of all batches, as PyTorch's own does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, weight)
    norm.running_var.lerp_(variance, weight)


class _Sum(torch.autograd.Function):
    """The sum over the processes. Each has a share of the loss, so the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total
