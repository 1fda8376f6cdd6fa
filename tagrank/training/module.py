"""What a training step, the validation and the optimizer of a ranker are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tagrank.decode import decode, decode_model, default_decoder
from tagrank.metrics import evaluate_rankings
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.presets import Preset
from tagrank.ranker.share import WHOLE, Share
from tagrank.ranker.stacked import StackedRankers
from tagrank.training.batches import Batch, ListDataset
from tagrank.training.optimizers import make_optimizer, make_schedules

MONITOR = "val_ndcg@5"
METRICS = {"train_loss": "training loss", "val_loss": "validation loss", MONITOR: "validation NDCG@5"}
"""What is recorded of each epoch, and how it is called: the NDCG@5 of a table is of other images."""
SAMPLES = 16
"""Lists that are drawn per image to validate a model with feedback, each epoch: a quarter of a decoder's default."""


class RankerModule(nn.Module):
    """Minimises equation (10), and watches the NDCG@5 of the model's default decoder.

    Args:
        ranker: the model.
        preset: its hyper-parameters.
        references: for each validation image the list by which its ranking is judged.
        backbone: is trained with the ranker if given. The inputs are then pixels; otherwise they are features.
    """

    def __init__(
        self, ranker: Ranker, preset: Preset, references: Sequence[Sequence[int]], backbone: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.backbone = backbone
        self.preset = preset
        self.references = references
        self._stack: StackedRankers | None = None

    def start(self, device: torch.device) -> None:
        """Go to a device, with the parameters of all members in common tensors."""
        self.to(device)
        if not self.ranker.feedback:
            self._stack = StackedRankers(self.ranker)
        self._trained = list(self.parameters())

    def end(self) -> None:
        """Go back to the CPU, where each parameter is a tensor of its own."""
        self._stack = None
        for parameter in self.parameters():
            parameter.grad = None
            parameter.data = parameter.data.to("cpu", copy=True)
        self.to("cpu")

    def training_step(self, batch: Batch, share: Share = WHOLE) -> Tensor:
        """Set the gradients of all parameters; the loss of a batch, detached.

        Args:
            batch: the whole batch.
            share: the part of it that this process computes; the loss and the gradients are then those of this part,
                to be added to the others'. A model with feedback has no parts.
        """
        rows = share.rows(0, len(batch.inputs))
        inputs, lists = batch.inputs[rows], batch._replace(targets=batch.targets[rows]).lists()
        if self.preset.flip and inputs.dim() == 4:
            mirrored = torch.rand(len(batch.inputs), 1, 1, 1, device=inputs.device) < 0.5
            inputs = torch.where(mirrored[rows], inputs.flip(-1), inputs)
        for parameter in self._trained:
            parameter.grad = None
        features = self._features(inputs)
        if self._stack is not None:
            count = batch.lists().there.sum()
            loss = self._stack.losses(features, lists, batch.spans, share, count).mean()
            loss.backward()
            self._stack.hand_out_gradients()
        else:
            loss = self._loss(features, batch)
            loss.backward()
        return loss.detach()

    @torch.no_grad()
    def validate(self, data: ListDataset) -> dict[str, float]:
        """The loss and the NDCG@5 of the validation images."""
        self.eval()
        total = Mean(data.device)
        rankings: dict[int, list[int]] = {}
        for batch, numbers in data.batches(torch.arange(len(data)), self.preset.batch_size):
            features = self._features(batch.inputs)
            if self._stack is not None:
                losses, p = self._stack.evaluate(features, batch.lists())
                loss, decoded = losses.mean(), decode(p, default_decoder(self.ranker), top_k=5)
            else:
                loss, decoded = (
                    self._loss(features, batch),
                    decode_model(self.ranker, features, top_k=5, samples=SAMPLES),
                )
            total.add(loss, batch)
            rankings |= {number: ranking.tags for number, ranking in zip(numbers, decoded, strict=True)}
        self.train()
        ranked = [rankings[number] for number in range(len(data))]
        ndcg = float(evaluate_rankings(ranked, self.references, ks=(5,))["ndcg@5"].mean())
        return {"val_loss": total.value(), MONITOR: ndcg}

    def prepare(self, inputs: Tensor) -> Tensor:
        """Do once what would be the same in each step: scale features that do not change."""
        return inputs if self.backbone is not None or self.ranker.feedback else self.ranker.scale(inputs.float())

    def _features(self, inputs: Tensor) -> Tensor:
        """Features ``[B, D]``: scaled, except for a model with feedback."""
        if self.backbone is None:
            return inputs
        features: Tensor = self.backbone(inputs)
        return features if self.ranker.feedback else self.ranker.scale(features)

    def _loss(self, features: Tensor, batch: Batch) -> Tensor:
        """The loss of a model with feedback; 0 if no image has a list."""
        lists = batch.lists().present()
        return self.ranker.loss(features, lists) if len(lists.targets) else features.new_zeros(())

    def optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, list[LRScheduler]]:
        """The optimizer of a run of so many steps, and what changes its rates after each step, if anything does."""
        optimizer = make_optimizer(self, self.preset)
        return optimizer, make_schedules(optimizer, self.preset, steps)


class Mean:
    """The mean of a loss over the lists of several batches, on a device, which is read at the end only."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self._total = torch.zeros((), dtype=dtype, device=device)
        self._lists = torch.zeros((), dtype=dtype, device=device)

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Count a batch with its mean loss."""
        lists = batch.lists().there.sum()
        self._total += loss * lists
        self._lists += lists

    def value(self) -> float:
        """The mean; waits for the device."""
        return float(self._total / self._lists)
