"""Training on Lightning: one module, one callback, and a loop that continues exactly where it stopped.

A run is determined by its seed, whatever interrupts it: the order of an epoch is drawn from the seed and the number of
the epoch, the noise in a step (dropout, mirrored pictures) from the seed and the number of the step.
"""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from tagrank.data.files import reason
from tagrank.data.targets import ListTargets, encode_lists
from tagrank.decode import decode_model
from tagrank.errors import InputError
from tagrank.metrics import evaluate_rankings
from tagrank.progress import progress_bar
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.presets import Preset

MONITOR = "val_ndcg@5"
METRICS = ("train_loss", "val_loss", MONITOR)
SAMPLES = 16
"""Lists drawn per image to validate a model with feedback, each epoch: a quarter of what decoders draw."""


class Batch(NamedTuple):
    """Images (as features ``[B, D]`` or pixels ``[B, 3, h, w]``), their lists, and their numbers ``[B]``."""

    inputs: Tensor
    lists: ListTargets
    numbers: Tensor


class ListDataset(Dataset[int]):
    """Images with ordered lists of tags, read a batch at a time by :meth:`collate`.

    Args:
        inputs: ``[N, ...]``, features or pixels, of any floating dtype.
        lists: for each image its lists of tag indices.
        end: the class END.
        steps: ``S`` of the model.
    """

    def __init__(self, inputs: Tensor, lists: Sequence[Sequence[Sequence[int]]], end: int, steps: int) -> None:
        self.inputs = inputs
        self.lists = lists
        self.end = end
        self.steps = steps

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> Batch:
        """The images of a batch with their lists laid out as targets."""
        lists = encode_lists([self.lists[i] for i in indices], self.end, self.steps)
        numbers = torch.tensor(indices)
        return Batch(self.inputs[numbers].float(), lists, numbers)


class EpochSampler(Sampler[int]):
    """A shuffle that depends on the seed and the epoch alone, so that a resumed run sees the same order."""

    def __init__(self, data: Sized, seed: int) -> None:
        self.data = data
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        return iter(torch.randperm(len(self.data), generator=generator).tolist())


def _mix(seed: int, count: int) -> int:
    """A seed of its own for each epoch or step."""
    return (seed * 1_000_003 + count) % 2**63


class RankerModule(L.LightningModule):
    """Equation (10) minimised, NDCG@5 watched, by the decoder that the model is used with by default.

    Args:
        ranker: the model.
        preset: its hyper-parameters.
        references: the lists that validation images are judged by.
        seed: of the noise in training.
        backbone: trained with the ranker where there is one; the inputs are then pixels, else features.
    """

    def __init__(
        self,
        ranker: Ranker,
        preset: Preset,
        references: Sequence[Sequence[int]],
        seed: int,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.backbone = backbone
        self.preset = preset
        self.references = references
        self.seed = seed
        self.history: list[dict[str, float]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        torch.manual_seed(_mix(self.seed, self.global_step))
        inputs = batch.inputs
        if self.preset.flip and inputs.dim() == 4:
            mirrored = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < 0.5
            inputs = torch.where(mirrored, inputs.flip(-1), inputs)
        loss = self.ranker.loss(self._features(inputs), batch.lists)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.lists.targets))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        features = self._features(batch.inputs)
        lists = len(batch.lists.targets)
        if lists:  # images whose tags are all unknown have none
            self.log("val_loss", self.ranker.loss(features, batch.lists), batch_size=lists)
        rankings = [r.tags for r in decode_model(self.ranker, features, top_k=5, samples=SAMPLES)]
        scores = evaluate_rankings(rankings, [self.references[i] for i in batch.numbers.tolist()], ks=(5,))
        self.log(MONITOR, float(scores["ndcg@5"].mean()), batch_size=len(rankings), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        # Validation has run by now, so this sees the metrics of both.
        metrics = {name: self.trainer.callback_metrics[name].item() for name in METRICS}
        self.history.append({"epoch": self.current_epoch + 1, **metrics})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> Any:
        preset = self.preset
        if preset.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.parameters(), preset.learning_rate, weight_decay=preset.weight_decay
            )
        else:
            # Decay is for the matrices: biases, gains of normalisation and the like do without.
            matrices = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
            vectors = [p for p in self.parameters() if p.requires_grad and p.dim() <= 1]
            groups = [
                {"params": matrices, "weight_decay": preset.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, preset.learning_rate)
        if preset.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, preset.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _features(self, inputs: Tensor) -> Tensor:
        if self.backbone is None:
            return inputs
        features: Tensor = self.backbone(inputs)
        return features


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
    """Train the module and leave it with the weights of its best epoch.

    Args:
        module: what to train.
        train: its images.
        val: images for validation.
        folder: ``best.ckpt`` and ``last.ckpt`` are kept there.
        resume: continue from ``last.ckpt`` where it exists.
        finished: the run to resume has come to its end; take its best epoch.
        progress: show progress on stderr, under this name.

    Raises:
        InputError: a checkpoint is damaged, or cannot be written.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` has the last whole epoch.
    """
    preset = module.preset
    if finished:
        module.load_state_dict(_load(folder / "best.ckpt")["state_dict"])
        return
    last = folder / "last.ckpt"
    resume = resume and last.is_file()
    if resume:
        _load(last)  # damaged, it is better found here than in Lightning
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = _Checkpoint(folder, "best", monitor=MONITOR, mode="max", **options)
    newest = _Checkpoint(folder, "last", **options)
    stopping = EarlyStopping(MONITOR, mode="max", patience=preset.patience, check_on_train_epoch_end=True)
    # A batch of one has no variance for a backbone to normalise by.
    drop_last = module.backbone is not None and len(train) % preset.batch_size == 1
    # Lightning ends the process on Ctrl-C, and leaves it deaf to the next one.
    on_interrupt = signal.getsignal(signal.SIGINT)
    with _quiet():
        trainer = L.Trainer(
            max_epochs=preset.epochs,
            callbacks=[best, newest, stopping, *([_Progress(progress)] if progress else [])],
            default_root_dir=folder,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(
                module,
                DataLoader(
                    train,
                    preset.batch_size,
                    sampler=EpochSampler(train, module.seed),
                    collate_fn=train.collate,
                    drop_last=drop_last,
                ),
                DataLoader(val, preset.batch_size, collate_fn=val.collate),
                ckpt_path=last if resume else None,
                weights_only=True,
            )
        except SystemExit:
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt from None
        except OSError as error:
            # All else is in memory; fsspec does not name the file.
            raise InputError(f"{folder}: a checkpoint cannot be written: {reason(error)}") from error
        finally:
            if on_interrupt is not None:
                signal.signal(signal.SIGINT, on_interrupt)
    module.load_state_dict(_load(folder / "best.ckpt")["state_dict"])


def _load(checkpoint: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise InputError(f"{checkpoint}: not a checkpoint, or a damaged one; start anew with --overwrite") from error
    return state


class _Checkpoint(ModelCheckpoint):
    """One that goes on where its folder was moved to."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


class _Progress(Callback):
    """A bar over the whole run and a line for each epoch, on stderr."""

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
def _quiet() -> Iterator[None]:
    """Without Lightning's hints and advertisements, which are for people who write trainers."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Tensors in memory need no workers, and a resumed run finds its checkpoints where it left them.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            # Lightning 2.6 on torch 2.14.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        logger.setLevel(level)
