"""Several processes that train one model: each computes its share of a batch, and their gradients are added.

Process 0 is the one that trains: it reads, validates and writes. The others have no files. They are told what to train,
take part in its steps, and so have its weights at each moment.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.ranker.share import Share

FOREVER = timedelta(days=30)
"""How long a process waits for the others. While process 0 computes features, that may be long."""


class LostError(InputError):
    """Another process of the training has ended, or cannot be reached."""


class Processes:
    """The processes of a training, seen from one of them.

    Args:
        rank: the number of this process.
        size: how many there are.
        threads: how many threads this one has for a step; None leaves that to whoever started it.

    Attributes:
        busy: whether the others are in an epoch. If not, they wait for what process 0 sends next.
    """

    def __init__(self, rank: int = 0, size: int = 1, threads: int | None = None) -> None:
        self.rank, self.size, self._threads = rank, size, threads
        self.share = Share(rank, size)
        self.busy = False

    @property
    def local_rank(self) -> int:
        """The number of this process among those on its machine, which is that of its GPU."""
        return int(os.environ.get("LOCAL_RANK", self.rank))

    def send(self, value: Any) -> None:
        """Send something from process 0 to the others, which :meth:`receive` it.

        Raises:
            LostError: one of them has ended.
        """
        if self.size > 1:
            self._broadcast(value)

    def receive(self) -> Any:
        """Wait for what process 0 sends.

        Raises:
            LostError: it has ended.
        """
        return self._broadcast(None)

    def meet(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostError: one of them has ended.
        """
        with _others():
            distributed.all_reduce(torch.zeros(1))

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        with _others():
            distributed.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the processes' gradients, in place, and their shares of the loss, which is returned.

        Raises:
            LostError: another process has ended.
        """
        if self.size == 1:
            return loss
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        with _others():
            distributed.all_reduce(flat)
        sums = flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, of_all in zip(gradients, sums, strict=True):
            gradient.copy_(of_all.view_as(gradient))
        return flat[0]

    @contextmanager
    def sharing_cores(self) -> Iterator[None]:
        """Use this process's share of the cores only."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads or threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


ALONE = Processes()


@contextmanager
def _others() -> Iterator[None]:
    """What goes wrong between processes becomes a :class:`LostError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(
            f"another process of the training has ended, or cannot be reached ({first_line(error):.100}); the same "
            "command with --resume goes on"
        ) from error
