"""A small model with random weights, photographs, and an index of them: what the page is tested with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagrank import Annotator, TagRanker
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.features.extraction import all_readable, extract_features
from tagrank.features.familiarity import Familiarity
from tagrank.retrieval import IndexWriter

TAGS = (
    "dog",
    "ball",
    "salt, pepper",
    "cat",
    "tree",
    "sky",
    "<b>grass</b>",
    "sea",
    "boat",
    "moon",
    "sun",
    "hut",
    "owl",
    "fox",
)


def draw(path: Path, seed: int, width: int = 320, height: int = 240) -> Path:
    """A picture of coloured rectangles."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="session")
def world(once: Callable[..., Path]) -> Path:
    """``model``, ``photos`` with a.jpg to f.jpg, and ``index`` of them."""

    def fill(folder: Path) -> None:
        torch.manual_seed(0)
        (folder / "photos").mkdir()
        photos = [draw(folder / "photos" / f"{name}.jpg", seed) for seed, name in enumerate("abcdef")]
        backbone = load_backbone("small_cnn")
        sizes = {"max_length": 4, "embedding_size": 16, "hidden_size": 16}
        ranker = TagRanker(backbone.feature_size, len(TAGS), **sizes)
        completer = TagRanker(backbone.feature_size, len(TAGS), **sizes, feedback=True)
        with torch.no_grad():
            for model in (ranker, completer):
                for parameter in model.parameters():
                    parameter.mul_(3)  # distributions that differ from tag to tag
        rows = torch.stack([row for _, row in all_readable(extract_features(backbone.eval(), photos))])
        # As if these had been the training photographs, and those of validation anything.
        known = Familiarity(torch.nn.functional.normalize(rows, dim=1).half(), np.linspace(0, 1, 200))
        annotator = Annotator(
            ranker,
            Vocabulary(TAGS),
            backbone.spec,
            backbone=backbone,
            completer=completer,
            familiarity=known,
        )
        annotator.save(folder / "model")
        with IndexWriter(folder / "index", annotator, root=str(folder / "photos")) as writer:
            writer.add([photo.name for photo in photos], annotator.probabilities(rows))

    return once("app", fill)


@pytest.fixture(scope="session")
def annotator(world: Path) -> Annotator:
    return Annotator.load(world / "model")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("there is no Chromium")
