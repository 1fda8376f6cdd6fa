"""What a training step, a validation step and the optimizer of a ranker are."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from tagrank.decode import decode_model
from tagrank.metrics import evaluate_rankings
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.presets import Preset
from tagrank.training.batches import Batch, mix
from tagrank.training.optimizers import make_optimizer

MONITOR = "val_ndcg@5"
METRICS = {"train_loss": "training loss", "val_loss": "validation loss", MONITOR: "validation NDCG@5"}
"""What is recorded of each epoch, and how it is called: the NDCG@5 of a table is of other images."""
SAMPLES = 16
"""Lists that are drawn per image to validate a model with feedback, each epoch: a quarter of a decoder's default."""


class RankerModule(L.LightningModule):
    """Minimises equation (10), and watches the NDCG@5 of the model's default decoder.

    Args:
        ranker: the model.
        preset: its hyper-parameters.
        references: for each validation image the list by which its ranking is judged.
        seed: of the noise in training.
        backbone: is trained with the ranker if given. The inputs are then pixels; otherwise they are features.
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
        self.started = False
        """Whether training has begun, from the beginning or from a checkpoint that was restored."""

    def on_train_start(self) -> None:
        self.started = True

    def training_step(self, batch: Batch, _: int) -> Tensor:
        torch.manual_seed(mix(self.seed, self.global_step))
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
        if lists:  # 0 if no tag of these images is in the vocabulary
            self.log("val_loss", self.ranker.loss(features, batch.lists), batch_size=lists)
        rankings = [r.tags for r in decode_model(self.ranker, features, top_k=5, samples=SAMPLES)]
        scores = evaluate_rankings(rankings, [self.references[i] for i in batch.numbers.tolist()], ks=(5,))
        self.log(MONITOR, float(scores["ndcg@5"].mean()), batch_size=len(rankings), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        # Validation has run before this, so that the metrics of both are here.
        metrics = {name: self.trainer.callback_metrics[name].item() for name in METRICS}
        self.history.append({"epoch": self.current_epoch + 1, **metrics})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> Any:
        preset = self.preset
        optimizer = make_optimizer(self, preset)
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
