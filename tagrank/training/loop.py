"""The training loop: it continues an interrupted run exactly where it stopped.

A run is determined by its seed, whatever interrupts it: the order of the images in an epoch comes from the seed and the
number of the epoch, the noise in a step (dropout, mirrored pictures) from the seed and the number of the step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.progress import progress_bar
from tagrank.training.batches import ListDataset, epoch_order, mix
from tagrank.training.checkpoints import read_checkpoint, save_checkpoint
from tagrank.training.module import METRICS, MONITOR, Mean, RankerModule
from tagrank.training.processes import ALONE, Processes
from tagrank.training.run_folder import BEST, LAST
from tagrank.training.shared_norm import shared_norms
from tagrank.training.steps import Steps

History = list[dict[str, float]]
_OTHER = "not a checkpoint of this run; start anew with --overwrite"


def fit(
    module: RankerModule,
    train: ListDataset,
    val: ListDataset,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: str | None = None,
    processes: Processes = ALONE,
) -> History:
    """Train a module. It is on the CPU afterwards.

    Args:
        module: the module.
        train: the images to train on.
        val: the images to validate on.
        folder: for the checkpoints ``best.ckpt`` and ``last.ckpt``.
        seed: of the order of the images and of the noise.
        device: where to train; ``None``: on a GPU if there is one.
        resume: continue from ``last.ckpt`` if it exists.
        progress: if given, show progress on stderr, under this name.
        processes: that train it; this one is process 0.

    Returns:
        The metrics of each epoch.

    Raises:
        InputError: a checkpoint is damaged, or cannot be written; or another process has ended.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` has the last whole epoch.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    last = folder / LAST
    processes.send(Fit(module, train, seed, torch.device(device).type))
    module.start(torch.device(device))
    try:
        for data in (train, val):
            data.to(torch.device(device))
        run = _Run(module, train, seed, processes)
        if resume and last.is_file():
            run.restore(last)
        processes.send(run.state() if run.history else None)
        with _show(progress, run) as (step_done, epoch_done), run.together():
            while not run.finished():
                best = run.epoch(val, step_done)
                epoch_done()
                try:
                    run.save(folder, best)
                except OSError as error:
                    raise InputError(f"{folder}: a checkpoint cannot be written: {reason(error)}") from error
            processes.send(False)
    finally:
        module.end()
    return run.history


@dataclass(frozen=True)
class Fit:
    """What process 0 sends to the others when it begins to train: arguments of :func:`fit`, and a kind of device."""

    module: RankerModule
    train: ListDataset
    seed: int
    device: str


def assist(job: Fit, processes: Processes) -> None:
    """Take part in what process 0 trains.

    Raises:
        InputError: process 0 has ended.
    """
    device = torch.device(f"cuda:{processes.local_rank}" if job.device == "cuda" else job.device)
    job.module.start(device)
    job.train.to(device)
    run = _Run(job.module, job.train, job.seed, processes)
    if (state := processes.receive()) is not None:
        run.load(state)
    with run.together():
        while processes.receive():
            run.train_epoch(lambda: None)


def load_best(module: RankerModule, folder: Path) -> None:
    """Give a module the weights of the best epoch of its run.

    Raises:
        InputError: the checkpoint is damaged, or of another run.
    """
    path = folder / BEST
    try:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{path}: {_OTHER}: {' '.join(str(error).split()):.200}") from error


class _Run:
    """A run between two epochs.

    Attributes:
        history: the metrics of each epoch.
        step: how many steps there were.
        steps: how many steps the run has if it does not stop early.
    """

    def __init__(self, module: RankerModule, train: ListDataset, seed: int, processes: Processes) -> None:
        self.module, self.train, self.seed, self._processes = module, train, seed, processes
        self.history: History = []
        self.step = 0
        size = module.preset.batch_size
        # A backbone normalises by the variance of a batch, and a last batch of one image has none.
        alone = module.backbone is not None and len(train) % size == 1
        self._images = len(train) - alone
        self._per_epoch = -(-self._images // size)
        self.steps = self._per_epoch * module.preset.epochs
        self._optimizer, self._schedules = module.optimizer(self.steps)
        self._gradients = Steps(module, processes)

    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones, as many as the patience, were no better than one before."""
        preset, done = self.module.preset, len(self.history)
        return done >= preset.epochs or (done > 0 and done - 1 - self._best() >= preset.patience)

    def _best(self) -> int:
        values = [metrics[MONITOR] for metrics in self.history]
        return values.index(max(values))

    def epoch(self, val: ListDataset, step_done: Callable[[], None]) -> bool:
        """Train for an epoch and validate; whether the model is better than it was after any epoch before."""
        self._processes.busy = True
        self._processes.send(True)
        loss = self.train_epoch(step_done)
        self._processes.busy = False
        number = len(self.history) + 1
        self.history.append({"epoch": number, "train_loss": loss, **self.module.validate(val)})
        return self._best() == number - 1

    def train_epoch(self, step_done: Callable[[], None]) -> float:
        """Train for an epoch, and return its loss."""
        size = self.module.preset.batch_size
        loss = Mean(self.train.device)
        order = epoch_order(len(self.train), self.seed, self.step // self._per_epoch)[: self._images]
        for batch, _ in self.train.batches(order, size):
            loss.add(self._gradients(batch, mix(self.seed, self.step)), batch)
            self._optimizer.step()
            for schedule in self._schedules:
                schedule.step()
            self.step += 1
            step_done()
        return loss.value()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block, the processes share this machine's cores, and their batches' statistics."""
        with self._processes.sharing_cores(), shared_norms(self.module, self._processes):
            yield

    def state(self) -> dict[str, Any]:
        """What a checkpoint has."""
        return {
            "state_dict": self.module.state_dict(),
            "global_step": self.step,
            "optimizer_states": [self._optimizer.state_dict()],
            "lr_schedulers": [schedule.state_dict() for schedule in self._schedules],
            "history": self.history,
        }

    def save(self, folder: Path, best: bool) -> None:
        """Write the checkpoints of an epoch. Raises an OSError if that fails."""
        state = self.state()
        if best:  # only its weights are needed
            save_checkpoint(state | {"optimizer_states": [], "lr_schedulers": []}, folder / BEST)
        save_checkpoint(state, folder / LAST)

    def restore(self, path: Path) -> None:
        """Go on after a checkpoint. Raises an InputError if it is damaged, or of another run."""
        state = read_checkpoint(path)
        try:
            self.load(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: {_OTHER}: {' '.join(str(error).split()):.200}") from error

    def load(self, state: dict[str, Any]) -> None:
        """Go on after what :meth:`state` returned. Raises many kinds of errors if it is of another run."""
        self.module.load_state_dict(state["state_dict"])
        for one, before in zip([self._optimizer], state["optimizer_states"], strict=True):
            one.load_state_dict(before)
        for schedule, before in zip(self._schedules, state["lr_schedulers"], strict=True):
            schedule.load_state_dict(before)
        if state["global_step"] != len(state["history"]) * self._per_epoch:
            raise ValueError(f"{state['global_step']} steps in {len(state['history'])} epochs")
        self.history, self.step = state["history"], state["global_step"]


@contextmanager
def _show(name: str | None, run: _Run) -> Iterator[Sequence[Callable[[], None]]]:
    """On stderr, a progress bar over the run and a line for each epoch: what to call after a step and an epoch."""
    if name is None:
        yield (lambda: None), (lambda: None)
        return
    with progress_bar() as bar:
        task = bar.add_task(name, total=run.steps, completed=run.step)

        def epoch_done() -> None:
            metrics = run.history[-1]
            values = ", ".join(f"{word} {metrics[metric]:.4f}" for metric, word in METRICS.items())
            epoch = f"{len(run.history)}/{run.module.preset.epochs}"
            bar.console.print(f"{name}, epoch {epoch}: {values}", highlight=False, soft_wrap=True)

        yield (lambda: bar.advance(task)), epoch_done
