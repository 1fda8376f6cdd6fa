"""On an NVIDIA GPU: training is what it is on the CPU, and recorded steps are what the same steps are unrecorded."""

from dataclasses import replace

import pytest
import torch

from tagrank.ranker.ensemble import RankerEnsemble
from tagrank.ranker.presets import PRESETS
from tagrank.training import steps
from tagrank.training.batches import ListDataset, epoch_order
from tagrank.training.module import RankerModule
from tagrank.training.steps import Steps

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
PRESET = replace(PRESETS["default"], members=3, embedding_size=32, hidden_size=64, batch_size=32)


def train(device: str, dropout: float) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Ten steps, the last two epochs' ends with fewer images: the losses, and the weights afterwards."""
    torch.manual_seed(0)
    preset = replace(PRESET, dropout=dropout, hidden_dropout=dropout)
    ranker = RankerEnsemble(3, feature_size=16, num_tags=8, max_length=5, **preset.ranker_options())
    inputs = torch.randn(150, 16)
    lists = [[torch.randperm(8)[: 1 + i % 5].tolist() for i in range(1 + n % 3)] for n in range(150)]
    ranker.standardise_by(inputs)
    module = RankerModule(ranker, preset, [])
    data = ListDataset(module.prepare(inputs), lists, 8, ranker.steps)
    module.start(torch.device(device))
    data.to(torch.device(device))
    optimizer, schedules = module.optimizer(20)
    gradients, losses = Steps(module), []
    for epoch in range(2):
        for number, (batch, _) in enumerate(data.batches(epoch_order(150, 0, epoch), 32)):
            losses.append(float(gradients(batch, 100 * epoch + number)))
            optimizer.step()
            schedules[0].step()
    module.end()
    return losses, ranker.state_dict()


def test_as_on_the_cpu() -> None:
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        (losses, weights), (expected, others) = (train(device, 0.0) for device in ("cuda", "cpu"))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(
            value, others[name], rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: the noise of a step is that of its seed, recorded or not."""
    losses, weights = train("cuda", 0.5)
    monkeypatch.setattr(steps, "WARM_UP", 1000)
    expected, others = train("cuda", 0.5)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(
            value, others[name], rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
