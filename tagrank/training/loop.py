"""The training loop, on Lightning: it continues an interrupted run exactly where it stopped.

A run is determined by its seed, whatever interrupts it: the order of the images in an epoch comes from the seed and the
number of the epoch, the noise in a step (dropout, mirrored pictures) from the seed and the number of the step.
"""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.progress import progress_bar
from tagrank.training.batches import EpochSampler, ListDataset
from tagrank.training.module import METRICS, MONITOR, RankerModule


def fit(
    module: RankerModule,
    train: ListDataset,
    val: ListDataset,
    folder: Path,
    *,
    resume: bool = False,
    finished: bool = False,
    progress: str | None = None,
) -> None:
    """Train a module, and give it the weights of its best epoch.

    Args:
        module: the module.
        train: the images to train on.
        val: the images to validate on.
        folder: for the checkpoints ``best.ckpt`` and ``last.ckpt``.
        resume: continue from ``last.ckpt`` if it exists.
        finished: the run to resume is finished: only take the weights of its best epoch.
        progress: if given, show progress on stderr, under this name.

    Raises:
        InputError: a checkpoint is damaged, or cannot be written.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` has the last whole epoch.
    """
    last = folder / "last.ckpt"
    resume = resume and last.is_file()
    if not finished:
        if resume:
            _load(last)  # to report damage in our words: Lightning's do not name the file
        try:
            with _quiet(), _interruptible():
                _run(_trainer(module, folder, progress), module, train, val, last if resume else None)
        except OSError as error:
            # Only checkpoints are files: images and lists are in memory. fsspec does not name the file.
            raise InputError(f"{folder}: a checkpoint cannot be written: {reason(error)}") from error
    module.load_state_dict(_load(folder / "best.ckpt")["state_dict"])


def _trainer(module: RankerModule, folder: Path, progress: str | None) -> L.Trainer:
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Callback] = [
        _Checkpoint(folder, "best", monitor=MONITOR, mode="max", **options),
        _Checkpoint(folder, "last", **options),
        EarlyStopping(MONITOR, mode="max", patience=module.preset.patience, check_on_train_epoch_end=True),
    ]
    return L.Trainer(
        max_epochs=module.preset.epochs,
        callbacks=[*callbacks, _Progress(progress)] if progress else callbacks,
        default_root_dir=folder,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )


def _run(
    trainer: L.Trainer, module: RankerModule, train: ListDataset, val: ListDataset, checkpoint: Path | None
) -> None:
    """Train from a checkpoint, or from the beginning."""
    batch_size = module.preset.batch_size
    # A backbone normalises by the variance of a batch, and a last batch of one image has none.
    drop_last = module.backbone is not None and len(train) % batch_size == 1
    sampler = EpochSampler(train, module.seed)
    try:
        trainer.fit(
            module,
            DataLoader(train, batch_size, sampler=sampler, collate_fn=train.collate, drop_last=drop_last),
            DataLoader(val, batch_size, collate_fn=val.collate),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None


def _load(checkpoint: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise InputError(f"{checkpoint}: not a checkpoint, or a damaged one; start anew with --overwrite") from error
    return state


class _Checkpoint(ModelCheckpoint):
    """A checkpoint callback whose folder may be moved between an interruption and ``resume``."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


class _Progress(Callback):
    """On stderr, a progress bar over the whole run and a line for each epoch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        self.bar = progress_bar()
        self.task = self.bar.add_task(self.name, total=int(trainer.estimated_stepping_batches))
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        values = ", ".join(f"{name.replace('_', ' ')} {trainer.callback_metrics[name]:.4f}" for name in METRICS)
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.console.print(f"{self.name}, epoch {epoch}: {values}", highlight=False, soft_wrap=True)

    def teardown(self, *_: Any, **__: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Restore what Ctrl-C does: after the first Ctrl-C, Lightning leaves the process deaf to the next."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's hints, which are for people who write trainers, and its advertisements."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Tensors in memory need no worker processes; a resumed run has checkpoints in its folder.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            # From Lightning 2.6 with torch 2.14.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        logger.setLevel(level)
