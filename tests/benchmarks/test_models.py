"""The models of docs/models/, as ``python -m benchmarks.models`` runs them, and the figures of docs/models.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tagrank import ContextLSTM, ContextLSTMCell, convert
from tagrank.nn import conversion
from tagrank.recurrence import trace

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, int]] = {
    "captioning decoder": {"words": 50, "image": 32, "embedding": 8, "hidden": 12, "batch": 4, "steps": 6},
    "conditional sequence VAE": {
        "classes": 4, "condition": 6, "latent": 5, "encoder": 8, "decoder": 12, "batch": 4, "steps": 8,
    },
    "speaker-conditioned decoder": {
        "symbols": 7, "text": 6, "speakers": 4, "speaker": 6, "frame": 5, "prenet": 4, "hidden": 8, "batch": 4,
        "length": 3, "steps": 7,
    },
}  # fmt: skip
CONVERTED = {
    "captioning decoder": ["lstm: converted, its last 32 of 40 features repeat"],
    "conditional sequence VAE": [
        "encoder: converted, its last 6 of 9 features repeat",
        "decoder: converted, its last 11 of 14 features repeat",
    ],
    "speaker-conditioned decoder": [
        "first: converted, its last 6 of 16 features repeat",
        "second: converted, its last 6 of 20 features repeat",
    ],
}


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the models, with small sizes."""
    monkeypatch.setattr(conversion, "SMALL_CELL", 0)
    monkeypatch.setattr(conversion, "CELL_SHARE", 100)
    (found,) = [model for model in load("models").MODELS if model.name == request.param]
    return found._replace(sizes=found.sizes._replace(**SMALL[found.name]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_all_ways_train_and_generate_alike(
    load: Callable[[str], Any], model: Any, dtype: torch.dtype, tolerance: float
) -> None:
    models = load("models")
    found = models.compare(model, dtype, steps=10)
    assert {*found} == {"before", "convert", "after"}
    for of in found.values():
        assert len(set(of["losses"])) == 10, "a loss that stays the same compares nothing"
        assert of["loss_difference"] <= tolerance
        assert of["output_difference"] <= tolerance
    assert models.is_right(found, dtype)


def test_the_models_differ_as_the_page_says(load: Callable[[str], Any], model: Any) -> None:
    """The one runs no kernel of ours, the other does; convert says what it does with the first."""
    models = load("models")
    (batch,) = models.batches(model, 1, torch.float32)
    before, after = model.before(model.sizes), model.after(model.sizes)
    kernels = {}
    for module in (before, after):
        with trace() as ran:
            module.loss(*batch).backward()
        kernels[module] = ran
    assert kernels[before] == []
    assert kernels[after] != []
    assert all(p.grad is not None for p in after.parameters())
    assert any(isinstance(m, ContextLSTM | ContextLSTMCell) for m in after.modules())
    lines = str(convert(before, batch)).splitlines()
    assert [line.partition(" over ")[0] for line in lines if ": converted" in line] == CONVERTED[model.name]


def test_the_models_learn(load: Callable[[str], Any], model: Any) -> None:
    models = load("models")
    torch.manual_seed(0)
    losses = models.training(model.after(model.sizes), models.batches(model, 1, torch.float32) * 60)()
    assert losses[-1] < 0.9 * losses[0]


def test_rows(load: Callable[[str], Any], model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = load("models")
    training, generation = models.measure(model, 0.0, processor=True)
    assert training["speedup"].keys() == generation["speedup"].keys() == {"convert", "after"}
    assert all(speedup > 0 for row in (training, generation) for speedup in row["speedup"].values())
    assert all(columns["rounds"] >= 5 for columns in training["times"].values())

    class Wrong(model.after):  # type: ignore[misc, name-defined]
        def loss(self, *batch: Any) -> Any:
            return 1.01 * super().loss(*batch)

    wrong = models.measure(model._replace(after=Wrong), 0.0)
    assert [{*row["speedup"].values()} for row in wrong] == [{None}, {None}]
    assert models.line(wrong[1]).endswith("wrong")


def test_figures() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "models.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert record["clock"] == "processor"
    assert len(record["rows"]) == 6
    for row in record["rows"]:
        assert row["right"]
        assert max(max(of.values()) for of in row["differences"].values()) < 1e-12, "docs/models.md says so"
        ms = [f"{row['times'][name]['ms']:.0f}" for name in ("before", "after")]
        speedups = [f"{row['speedup'][name]:.2f}x" if name in row["speedup"] else "" for name in ("after", "convert")]
        assert f"| {' | '.join([row['model'], row['mode'], *ms, *speedups])} |".replace("|  |", "| |") in page
    assert record["environment"]["cpu"].partition(" (")[0] in page
