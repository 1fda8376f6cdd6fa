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
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.progress import progress_bar
from tagrank.training.batches import EpochSampler, ListDataset
from tagrank.training.checkpoints import CheckpointFiles, read_checkpoint
from tagrank.training.module import METRICS, MONITOR, RankerModule
from tagrank.training.run_folder import BEST, LAST

_OTHER = "not a checkpoint of this run; start anew with --overwrite"


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
    last = folder / LAST
    resume = resume and last.is_file()
    if not finished:
        try:
            with _quiet(), _interruptible():
                _run(_trainer(module, folder, progress), module, train, val, last if resume else None)
        except OSError as error:
            # Only checkpoints are files: images and lists are in memory. fsspec does not name the file.
            raise InputError(f"{folder}: a checkpoint cannot be written: {reason(error)}") from error
    _load_best(module, folder / BEST)


def _trainer(module: RankerModule, folder: Path, progress: str | None) -> L.Trainer:
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Callback] = [
        _Checkpoint(folder, Path(BEST).stem, monitor=MONITOR, mode="max", **options),
        _Checkpoint(folder, Path(LAST).stem, **options),
        _Stopping(MONITOR, mode="max", patience=module.preset.patience, check_on_train_epoch_end=True),
    ]
    return L.Trainer(
        max_epochs=module.preset.epochs,
        callbacks=[*callbacks, _Progress(progress)] if progress else callbacks,
        default_root_dir=folder,
        plugins=CheckpointFiles(),
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
    module.started = False
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
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if checkpoint is None or module.started or isinstance(error, InputError):
            raise
        raise InputError(f"{checkpoint}: {_OTHER}: {' '.join(str(error).split()):.200}") from error


def _load_best(module: RankerModule, checkpoint: Path) -> None:
    try:
        module.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: {_OTHER}: {' '.join(str(error).split()):.200}") from error


class _Checkpoint(ModelCheckpoint):
    """A checkpoint callback whose folder may be moved between an interruption and ``resume``."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


class _Stopping(EarlyStopping):
    """Early stopping that also ends a run that is resumed from the checkpoint of its last epoch.

    Lightning forgets that a run had ended early, and would train further epochs.
    """

    @property
    def state_key(self) -> str:
        # Checkpoints of earlier versions have the state under the name of the base class.
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def on_fit_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0


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
        values = ", ".join(f"{word} {trainer.callback_metrics[name]:.4f}" for name, word in METRICS.items())
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
