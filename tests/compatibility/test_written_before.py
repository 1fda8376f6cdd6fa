"""Files written before the modules were put into folders by role (commit 292029f) are read, and mean the same.

``written/`` holds, for 24 images with 6 features each and 5 tags: a manifest, a feature store of three shards, an index
of three shards, three model folders, a run that was interrupted in its eighth epoch of twelve, and the ranked lists of
each model with their scores (``expected.json``). The preset of all models and runs is the one of :func:`small`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tagrank.annotator import Annotator
from tagrank.data.manifest import read_manifest
from tagrank.features.store import FeatureWriter, open_features
from tagrank.ranker.presets import PRESETS
from tagrank.retrieval import open_index
from tagrank.training.run import train
from tagrank.training.run_folder import read_history

WRITTEN = Path(__file__).parent / "written"
MODELS = ("ensemble", "feedback", "initial")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files. It is the current folder, because the settings of a run have relative paths."""
    folder = tmp_path / "written"
    shutil.copytree(WRITTEN, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(
        PRESETS["default"], members=2, embedding_size=4, hidden_size=8, batch_size=8, epochs=12, patience=100,
        learning_rate=0.02, weight_decay=0.0, dropout=0.0, hidden_dropout=0.0,
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "default", preset)


def features(folder: Path) -> torch.Tensor:
    images = [example.image for example in read_manifest(folder / "photos.jsonl").examples]
    assert len(images) == 24
    return open_features(folder / "features").rows(images)


def expected(model: str) -> tuple[list[list[str]], torch.Tensor]:
    """The tags of each image's list, and their scores ``[24, 3]``."""
    lists = json.loads((WRITTEN / "expected.json").read_text())[model]
    return [[tag for tag, _ in image] for image in lists], torch.tensor([[s for _, s in image] for image in lists])


def check_lists(annotator: Annotator, folder: Path, model: str) -> None:
    lists = [annotator.tags(ranking) for ranking in annotator.rank(features(folder), top_k=3)]
    tags, scores = expected(model)
    assert [[tag.tag for tag in image] for image in lists] == tags
    torch.testing.assert_close(
        torch.tensor([[tag.score for tag in image] for image in lists]), scores, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("model", MODELS)
def test_models(written: Path, model: str) -> None:
    check_lists(Annotator.load(written / model), written, model)


@pytest.mark.parametrize("model", MODELS)
def test_models_without_a_completer_go_on_with_lists(written: Path, model: str) -> None:
    annotator = Annotator.load(written / model)
    assert annotator.completer is None
    for suggestion in annotator.complete(features(written), ["dog"], top_k=4):
        assert suggestion.reads_given == (model != "ensemble")
        assert len(suggestion) == 4
        assert "dog" not in {tag.tag for tag in suggestion}
        assert sum(tag.probability for tag in suggestion.next) + suggestion.end == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_models_are_written_as_they_were(written: Path, tmp_path: Path, model: str) -> None:
    Annotator.load(written / model).save(tmp_path / "again")
    folders = (written / model, tmp_path / "again")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert after.pop("files").keys() == {"model.safetensors", "vocabulary.json"}
    assert after.pop("checksum")
    assert after == before
    assert (tmp_path / "again" / "vocabulary.json").read_text() == (written / model / "vocabulary.json").read_text()


def test_history(written: Path) -> None:
    history = read_history(written / "ensemble")
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_is_resumed(written: Path) -> None:
    """The resumed run ends with the same model and history as the run that was not interrupted."""
    annotator = train("photos.jsonl", "interrupted", features="features", seed=3, resume=True, progress=False)
    check_lists(annotator, written, "ensemble")
    for mine, theirs in zip(read_history("interrupted"), read_history("ensemble"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_feature_store_is_continued(written: Path) -> None:
    spec = open_features(written / "features").spec
    assert spec is not None
    before = features(written)
    with FeatureWriter(written / "features", spec, 6, rows_per_shard=10) as writer:
        assert len(writer.done) == 24
        writer.add(["more.jpg"], torch.arange(6.0).unsqueeze(0))
    assert torch.equal(features(written), before)
    assert open_features(written / "features").rows(["more.jpg"]).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_an_index(written: Path) -> None:
    """A tag finds the photographs for which the model gives it the highest probability of being first."""
    index = open_index(written / "index")
    annotator = Annotator.load(written / "ensemble")
    best = annotator.probabilities(features(written))[:, 0, annotator.vocabulary.index("dog")].topk(3)
    found = index.search(["dog"], top_k=3)
    assert [match.image for match in found] == [f"{row:02}.jpg" for row in best.indices.tolist()]
    assert [match.score for match in found] == pytest.approx(best.values.tolist(), rel=1e-2)
    assert index.gains_of(annotator, features(written)[0]) @ index.gains("00.jpg") > 0.999
