"""The optimizer and the learning rates that a preset names."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from tagrank.ranker.presets import Preset


def make_optimizer(module: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    """The optimizer of a preset, for the parameters of a module that are trained."""
    if preset.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), preset.learning_rate, weight_decay=preset.weight_decay)
    # Only matrices decay, not biases, gains of normalisation layers and other vectors.
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": preset.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # Fused, a step reads and writes each number once, not ten times.
    return torch.optim.AdamW(groups, preset.learning_rate, fused=True)


def make_schedules(optimizer: torch.optim.Optimizer, preset: Preset, steps: int) -> list[LRScheduler]:
    """What changes the optimizer's rates after each of so many steps, if anything does."""
    if preset.schedule == "constant":
        return []
    return [OneCycleLR(optimizer, preset.learning_rate, total_steps=steps)]
