"""Trains a layer and a cell in one of several processes, and has the first write the weights: for test_at_large.py.

Started by torchrun with the strategy and the file to write.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tagrank import ContextLSTM, ContextLSTMCell

BATCH = 4


class Both(nn.Module):
    """A layer, and a cell that reads what the layer wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ContextLSTM(3, 5, input_size=2, num_layers=2)
        self.cell = ContextLSTMCell(3, 5, input_size=5)

    def forward(self, context: Tensor, input: Tensor) -> Tensor:
        output, (_, c_n) = self.layer(context, input=input)
        h = self.step(self.cell.context_gates(context), output)
        return h + c_n[-1]

    def step(self, gates: object, output: Tensor) -> Tensor:
        h, c = self.cell(gates, output[0])
        for words in output[1:]:
            h, c = self.cell(gates, words, (h, c))
        return h


def train(model: nn.Module, rank: int, size: int, steps: int = 3) -> None:
    """Some steps on batches of ``BATCH`` rows, of which each process has its part."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        context, input = torch.randn(BATCH, 3, generator=generator), torch.randn(6, BATCH, 2, generator=generator)
        rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
        optimizer.zero_grad()
        model(context[rows], input[:, rows]).square().mean().backward()
        optimizer.step()


def main(strategy: str, path: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model: nn.Module = Both()
    if strategy == "ddp":
        train(DistributedDataParallel(model), dist.get_rank(), dist.get_world_size())
    else:
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model.layer, mesh=mesh)
        # Its parameters are whole only while the forward of the module that holds them runs: here the model's.
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        train(model, dist.get_rank(), dist.get_world_size())
    state = {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in model.state_dict().items()}
    if dist.get_rank() == 0:
        torch.save(state, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
