"""The completer: it learns beside the ranker, is a function of the seed, and is a part of the model's folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tagrank.annotator import Annotator
from tagrank.data.manifest import Example, write_manifest
from tagrank.data.sealed import seal
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.labelled import LabelledImages
from tagrank.features.store import FeatureWriter, open_features
from tagrank.ranker.presets import PRESETS
from tagrank.training import run as run_module
from tagrank.training.completing import fit_completer
from tagrank.training.run import train

SPEC = {"backbone": "efficientnet_lite0", "weights": "none at all", "preprocessing": "drawn at random"}
FILE = "completer.safetensors"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(
        PRESETS["default"], embedding_size=16, hidden_size=16, batch_size=16, epochs=2, weight_decay=0.01, dropout=0.0,
        hidden_dropout=0.0, learning_rate=0.03, members=2,
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "default", preset)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 images whose people begin with the sea or the dog; the rest of a list depends only on how it began."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator)
    lists = (("sea", "boat", "sky"), ("dog", "ball"))
    examples = [Example(f"{i}.png", lists[0], lists, "val" if i % 4 == 0 else None) for i in range(60)]
    write_manifest(tmp_path / "images.jsonl", examples)
    with FeatureWriter(tmp_path / "features", SPEC, 8) as writer:
        writer.add([e.image for e in examples], features)
    return tmp_path


def run(data: Path, out: str, **options: Any) -> Annotator:
    return train(data / "images.jsonl", data / out, features=data / "features", progress=False, **options)


def rows(data: Path) -> torch.Tensor:
    return open_features(data / "features").rows(["0.png", "4.png"])


def test_learns_how_lists_go_on_and_is_saved(data: Path) -> None:
    trained = run(data, "out", epochs=15)
    loaded = Annotator.load(data / "out")
    assert loaded.completer is not None
    assert loaded.reads_given
    for given, rest in ((["sea"], ["boat", "sky"]), (["sea", "boat"], ["sky"]), (["dog"], ["ball"])):
        for before, suggestion in zip(
            trained.complete(rows(data), given), loaded.complete(rows(data), given), strict=True
        ):
            assert suggestion == before
            assert [tag.tag for tag in suggestion] == rest
            assert suggestion.next[0].tag == rest[0]
            assert suggestion.next[0].probability > 0.8
    (ended,) = loaded.complete(rows(data)[:1], ["dog", "ball"])
    assert ended == []
    assert ended.end > 0.8


def test_the_model_without_it_is_the_same_and_leaves_the_given_tags_out(data: Path) -> None:
    run(data, "with")
    run(data, "without", completion=False)
    ours, theirs = (load_file(data / out / "model.safetensors") for out in ("with", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (data / "without" / FILE).exists()
    config = json.loads((data / "without" / "config.json").read_text())
    assert "completer" not in config
    annotator = Annotator.load(data / "without")
    assert not annotator.reads_given
    assert all("dog" not in {tag.tag for tag in s.next} for s in annotator.complete(rows(data), ["dog"]))


@pytest.mark.parametrize("options", [{"feedback": True}, {"preset": "paper"}])
def test_who_gets_none(data: Path, options: dict[str, Any]) -> None:
    """A model that reads its own tags needs none, and the paper's model has nothing beside it."""
    annotator = run(data, "out", epochs=1, **options)
    assert annotator.completer is None
    assert annotator.reads_given == ("feedback" in options)
    assert not (data / "out" / FILE).exists()


def test_a_model_that_is_replaced_by_one_without(data: Path) -> None:
    run(data, "out", epochs=1)
    assert (data / "out" / FILE).exists()
    run(data, "out", epochs=1, completion=False, overwrite=True)
    assert not (data / "out" / FILE).exists()
    assert Annotator.load(data / "out").completer is None


def test_is_a_function_of_the_seed(data: Path) -> None:
    images = [Example("a.png", ("sea", "boat"), (("sea", "boat"),)), Example("b.png", ("dog",), (("dog",),))]
    labelled = LabelledImages(images * 4, torch.randn(8, 8))
    before = torch.get_rng_state()
    one, again, other = (
        fit_completer(labelled, Vocabulary(["sea", "boat", "dog"]), replace(PRESETS["default"], dropout=0.5), seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    states = [list(model.state_dict().values()) for model in (one, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(*states[:2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))


def test_a_run_that_stopped_meanwhile_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, "whole")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit_completer", stop)
        with pytest.raises(KeyboardInterrupt):
            run(data, "stopped")
    assert not (data / "stopped" / "config.json").exists()
    with pytest.raises(InputError, match="cannot resume with other settings: was completer True, now False"):
        run(data, "stopped", resume=True, completion=False)
    run(data, "stopped", resume=True)
    for name in ("model.safetensors", FILE):
        whole, stopped = (load_file(data / out / name) for out in ("whole", "stopped"))
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_a_completer_that_is_damaged(data: Path) -> None:
    run(data, "out", epochs=1)
    model = data / "out"
    content = (model / FILE).read_bytes()
    (model / FILE).write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
    with pytest.raises(InputError, match=rf"{FILE}: damaged, or of another model: its digest is not the one in"):
        Annotator.load(model)
    (model / FILE).write_bytes(content[:100])
    with pytest.raises(InputError, match=rf"{FILE}: damaged, or not a safetensors file"):
        Annotator.load(model)
    (model / FILE).unlink()
    with pytest.raises(InputError, match=FILE):
        Annotator.load(model)
    (model / FILE).write_bytes(content)
    config = json.loads((model / "config.json").read_text())
    for change, reason in (
        ({"feedback": False}, "completer: expected a single model with feedback"),
        ({"members": 2}, "completer: expected a single model with feedback"),
        ({"hidden_size": 17}, rf"{FILE}: does not fit config\.json"),
        ({"hidden_size": 2**40}, "hidden_size: expected at most"),
        ({"num_tags": 3}, rf"{FILE}: does not fit config\.json"),
    ):
        (model / "config.json").write_bytes(seal(config | {"completer": config["completer"] | change}))
        with pytest.raises(InputError, match=reason):
            Annotator.load(model)


def test_weights_so_large_that_no_probability_is_left(data: Path) -> None:
    run(data, "out", epochs=1)
    model = data / "out"
    config = json.loads((model / "config.json").read_text())
    del config["files"]
    (model / "config.json").write_bytes(seal(config))
    tensors = load_file(model / FILE)
    save_file({name: torch.full_like(t, 3e38) for name, t in tensors.items()}, model / FILE)
    with pytest.raises(InputError, match="the model gives no probabilities for these features"):
        Annotator.load(model).complete(rows(data), ["dog"])
