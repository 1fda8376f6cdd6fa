"""Training steps, which a GPU replays from a recording."""

import torch
from torch import Tensor

from tagrank.training.batches import Batch
from tagrank.training.module import RankerModule
from tagrank.training.processes import ALONE, Processes

WARM_UP = 3
"""So many steps run before one is recorded: they compile kernels and make what libraries keep."""


class Steps:
    """The training steps of a module.

    On a GPU a step is a few hundred kernels, each shorter than the call that launches it. They are recorded once, as a
    CUDA graph, and replayed by one call. A batch of another shape runs as it is, and so do all steps of a model with
    feedback, whose tensors have the sizes of the lists.

    If several processes train, each computes its share of a batch, and the gradients are those of the whole.

    Args:
        module: on its device.
        processes: those that train it.
    """

    def __init__(self, module: RankerModule, processes: Processes = ALONE) -> None:
        self.module, self.processes = module, processes
        device = next(module.parameters()).device
        self._recordable = device.type == "cuda" and not module.ranker.feedback and processes.size == 1
        self._run = 0
        self._shape: torch.Size | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """Set the gradients of all parameters; the loss of a batch, detached. The seed is of the noise in this step."""
        torch.manual_seed(seed)
        self._shape = self._shape or batch.inputs.shape
        if not self._recordable or self._run < WARM_UP or batch.inputs.shape != self._shape:
            self._run += 1
            loss = self.module.training_step(batch, self.processes.share)
            return self.processes.add_gradients(self.module.parameters(), loss)
        if self._graph is None:
            self._graph = self._record(batch)
        self._batch.inputs.copy_(batch.inputs)
        self._batch.targets.copy_(batch.targets)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss

    def _record(self, batch: Batch) -> torch.cuda.CUDAGraph:
        """Record a step for batches of this shape. Its results are in the same tensors after each replay."""
        self._batch = Batch(batch.inputs.clone(), batch.targets.clone(), batch.spans)
        graph, device = torch.cuda.CUDAGraph(), batch.inputs.device
        # A recording is of one stream, by default of one of the current device.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            self._loss = self.module.training_step(self._batch)
        self._gradients = [(parameter, parameter.grad) for parameter in self.module.parameters()]
        return graph
