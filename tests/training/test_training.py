"""Training: it learns, it is a function of its seed, it resumes exactly, and Ctrl-C ends it cleanly."""

import json
import random
import resource
import shutil
import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tagrank.annotator import Annotator
from tagrank.data.manifest import Example, read_manifest, write_manifest
from tagrank.data.scenes import write_scenes
from tagrank.data.sealed import seal
from tagrank.errors import InputError, InputWarning
from tagrank.evaluation.judgement import judge
from tagrank.features.labelled import LabelledImages
from tagrank.features.store import FeatureWriter, open_features
from tagrank.metrics import Calibration, evaluate_rankings
from tagrank.ranker.presets import PRESETS
from tagrank.training.checkpoints import read_checkpoint
from tagrank.training.module import SAMPLES, RankerModule
from tagrank.training.run import train
from tagrank.training.run_folder import read_history
from tagrank.training.train_options import TrainKeywords, TrainOptions

SPEC = {"backbone": "efficientnet_lite0", "weights": "none at all", "preprocessing": "drawn at random"}
TAGS = ("sea", "dog", "boat", "tree", "ball")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(
        PRESETS["default"], embedding_size=16, hidden_size=16, batch_size=16, epochs=4, weight_decay=0.01, dropout=0.1,
        learning_rate=0.02, patience=100,
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "default", preset)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A manifest of 80 images and their feature store; a feature determines which of two tags comes first."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 8, generator=generator)
    examples = []
    for i, row in enumerate(features.tolist()):
        first, second = (TAGS[0], TAGS[1]) if row[0] > 0 else (TAGS[1], TAGS[0])
        lists = ((first, second, TAGS[2]), (first, second))
        examples.append(Example(f"{i}.png", lists[0], lists, "val" if i % 4 == 0 else None))
    write_manifest(tmp_path / "images.jsonl", examples)
    with FeatureWriter(tmp_path / "features", SPEC, 8) as writer:
        writer.add([e.image for e in examples], features)
    return tmp_path


def run(data: Path, out: str, **options: Any) -> Annotator:
    return train(data / "images.jsonl", data / out, features=data / "features", progress=False, **options)


def test_learns_the_order_and_writes_a_model(data: Path) -> None:
    annotator = run(data, "out", epochs=40)
    manifest = read_manifest(data / "images.jsonl").select("val")
    features = open_features(data / "features").rows([e.image for e in manifest.examples])
    loaded = Annotator.load(data / "out")
    rankings = loaded.rank(features)
    right = [loaded.tags(r)[0].tag == e.tags[0] for r, e in zip(rankings, manifest.examples, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    assert rankings == annotator.rank(features)
    assert loaded.backbone_spec == SPEC
    history = json.loads((data / "out" / "training" / "history.json").read_text())
    assert [h["epoch"] for h in history] == list(range(1, 41))
    assert history[-1]["train_loss"] < 0.4 * history[0]["train_loss"]
    assert max(h["val_ndcg@5"] for h in history) > 0.98


@pytest.mark.parametrize("options", [{}, {"feedback": True}], ids=str)
def test_watches_the_decoder_that_the_model_is_used_with(data: Path, options: dict[str, Any]) -> None:
    examples = []  # lists that do not depend on the features, so that decoders do not agree
    for i, example in enumerate(read_manifest(data / "images.jsonl").examples):
        tags = tuple(random.Random(i).sample(TAGS, 1 + i % 5))
        examples.append(replace(example, tags=tags, lists=(tags,)))
    write_manifest(data / "images.jsonl", examples)
    annotator = run(data, "out", epochs=2, **options)
    images = read_manifest(data / "images.jsonl").select("val").examples
    features = open_features(data / "features").rows([e.image for e in images])
    references = [annotator.vocabulary.encode(e.tags) for e in images]

    def ndcg(decoder: str | None) -> float:
        rankings = annotator.rank(features, decoder=decoder, top_k=5, samples=SAMPLES)
        return float(evaluate_rankings([r.tags for r in rankings], references, ks=(5,))["ndcg@5"].mean())

    history = json.loads((data / "out" / "training" / "history.json").read_text())
    watched = max(epoch["val_ndcg@5"] for epoch in history)  # the model is from the best epoch
    assert watched == pytest.approx(ndcg(None), abs=1e-6)
    assert watched != pytest.approx(ndcg("greedy"), abs=1e-6)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_is_a_function_of_the_seed(data: Path) -> None:
    before = torch.get_rng_state()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(data, out, seed=seed, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(weights(data / "a"), weights(data / "b"))
    assert not same(weights(data / "a"), weights(data / "c"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_resumes_exactly(data: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], preset: str) -> None:
    options: dict[str, Any] = {"preset": preset, "epochs": 4, "seed": 3}
    run(data, "whole", **options)

    original = RankerModule.training_step

    steps = count()

    def stop_in_the_third_epoch(self: RankerModule, *given: Any) -> torch.Tensor:
        if next(steps) == 2 * -(-60 // PRESETS[preset].batch_size) + 1:  # there are 60 images
            raise error("stop")
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RankerModule, "training_step", stop_in_the_third_epoch)
        with pytest.raises(error):
            run(data, "halves", **options)
    assert not (data / "halves" / "config.json").exists()
    torch.manual_seed(12345)  # other random draws of the process change nothing
    run(data, "halves", resume=True, **options)
    assert same(weights(data / "whole"), weights(data / "halves"))
    histories = [(data / out / "training" / "history.json").read_text() for out in ("whole", "halves")]
    assert histories[0] == histories[1]


def test_does_not_lose_a_model(data: Path) -> None:
    run(data, "out", epochs=1)
    with pytest.raises(InputError, match="there is a model or an unfinished run already"):
        run(data, "out", epochs=1)
    with pytest.raises(InputError, match="cannot resume with other settings: was epochs 1, now 2"):
        run(data, "out", epochs=2, resume=True)
    before = weights(data / "out")
    run(data, "out", epochs=1, resume=True)  # finished already
    assert same(before, weights(data / "out"))
    run(data, "out", epochs=1, seed=5, overwrite=True)
    assert not same(before, weights(data / "out"))
    with pytest.raises(InputError, match="nothing to resume"):
        run(data, "other", resume=True)


def test_a_failed_run_touches_no_model(data: Path) -> None:
    run(data, "out", epochs=1)
    before = weights(data / "out")
    with pytest.raises(InputError, match=r"typo\.npz"):
        train(data / "images.jsonl", data / "out", features=data / "typo.npz", overwrite=True, progress=False)
    Annotator.load(data / "out")
    assert same(before, weights(data / "out"))
    with pytest.raises(InputError, match="backbone: expected"):
        train(data / "images.jsonl", data / "new", backbone="vgg17", progress=False)
    run(data, "new", epochs=1)


def test_an_old_model_stays_until_the_new_one_is_finished(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, "out", epochs=1)
    before = weights(data / "out")
    history = read_history(data / "out")

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(RankerModule, "validate", stop)
        with pytest.raises(RuntimeError, match="stop"):
            run(data, "out", epochs=2, overwrite=True)
    assert same(before, weights(data / "out"))
    assert Annotator.load(data / "out").training["epochs"] == 1
    assert read_history(data / "out") == history
    run(data, "out", epochs=1, resume=True)  # the old run, which is finished
    assert same(before, weights(data / "out"))
    run(data, "out", epochs=2, resume=True)
    assert Annotator.load(data / "out").training["epochs"] == 2
    assert len(read_history(data / "out")) == 2
    assert not (data / "out" / "training.new").exists()


@pytest.mark.parametrize("name", ["training/a.txt", "training", "training.new/a.txt", "config.json", "vocabulary.json"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_files_that_are_not_ours_are_kept(data: Path, name: str, options: dict[str, bool]) -> None:
    path = data / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(InputError, match=f"{(data / 'out' / name.split('/')[0])}: not "):
        run(data, "out", **options)
    assert path.read_text() == "{}"


def test_a_folder_of_features_beside_the_run_is_kept(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "features").mkdir(parents=True)
    (tmp_path / "out" / "features" / "a.txt").touch()
    train(pictures, tmp_path / "out", backbone="small_cnn", epochs=1, overwrite=True, progress=False)
    assert (tmp_path / "out" / "features" / "a.txt").exists()


def test_a_trained_backbone_stays_as_in_its_best_epoch(pictures: Path, tmp_path: Path) -> None:
    """Features are computed with it after the last epoch, for the completer and for what the model knows."""
    model = train(pictures, tmp_path / "out", backbone="small_cnn", preset="scenes", epochs=1, progress=False)
    assert model.completer is not None
    best = read_checkpoint(tmp_path / "out" / "training" / "best.ckpt")["state_dict"]
    saved = Annotator.load(tmp_path / "out").backbone().state_dict()
    assert any("running_mean" in name for name in saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, best[f"backbone.{name}"], rtol=0, atol=0)


def test_resumes_where_the_folder_was_moved_to(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, "whole")
    original = RankerModule.training_step

    steps = count()

    def stop(self: RankerModule, *given: Any) -> torch.Tensor:
        if next(steps) == 2 * 4:
            raise RuntimeError("stop")
        return original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RankerModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="stop"):
            run(data, "here")
    (data / "here").rename(data / "there")
    run(data, "there", resume=True)
    assert same(weights(data / "whole"), weights(data / "there"))
    assert not (data / "here").exists()


def test_resumes_with_another_path_to_the_features(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, "out", epochs=2)
    (data.parent / "link").symlink_to(data)
    monkeypatch.chdir(data.parent)
    for folder in (f"./{data.name}", "link"):
        features, manifest = f"{folder}/features", f"{folder}/images.jsonl"
        train(manifest, data / "out", features=features, epochs=2, resume=True, progress=False)
    shutil.copytree(data / "features", data / "others")
    with pytest.raises(InputError, match="cannot resume with other settings"):
        train(data / "images.jsonl", data / "out", features=data / "others", epochs=2, resume=True, progress=False)
    data.rename(data.parent / "moved")
    run(data.parent / "moved", "out", epochs=2, resume=True)


def test_resumes_with_the_same_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that cannot be read are left out, and none may come or go while a run is interrupted."""
    examples = read_manifest(data / "images.jsonl").examples
    more = [replace(examples[1], image=name) for name in ("x.png", "y.png")]
    write_manifest(data / "images.jsonl", [*examples, *more])
    errors: list[InputError] = []

    def resume(**options: Any) -> None:
        run(data, "out", epochs=3, on_error=errors.append, **options)

    resume()
    assert [str(error)[-22:] for error in errors] == ["no features of 'x.png'", "no features of 'y.png'"]
    resume(resume=True)
    spec = open_features(data / "features").spec
    assert spec is not None
    with FeatureWriter(data / "features", spec, 8) as writer:
        writer.add(["y.png"], torch.ones(1, 8))
    with pytest.raises(InputError, match=r"training: cannot resume: other images can be read than before: 'y\.png'"):
        resume(resume=True)
    resume(overwrite=True)
    assert json.loads((data / "out" / "training" / "left-out.json").read_text()) == ["x.png"]


def test_a_damaged_checkpoint(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, "out", epochs=2)
    training = data / "out" / "training"
    (training / "history.json").unlink()
    checkpoint = training / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last.ckpt: not a checkpoint, or a damaged one"):
        run(data, "out", epochs=2, resume=True)


def test_a_full_disk(data: Path) -> None:
    def limit(files: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (files, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    limit(4096)
    try:
        with pytest.raises(InputError, match="out/training: a checkpoint cannot be written: file too large"):
            run(data, "out", epochs=1)
    finally:
        limit(before)
    run(data, "out", epochs=1, resume=True)


def test_validation_images_are_not_trained_on(data: Path) -> None:
    examples = read_manifest(data / "images.jsonl").examples
    write_manifest(data / "images.jsonl", [replace(e, split=None) for e in examples])
    with pytest.raises(InputError, match="is among the images to train on"):
        run(data, "out", val=data / "images.jsonl")
    write_manifest(data / "images.jsonl", [replace(e, split="dev") for e in examples])
    with pytest.raises(InputError, match="split: expected one of train, test, val, validation; got 'dev'"):
        run(data, "out")


def test_validation_features_of_another_size(data: Path) -> None:
    write_manifest(data / "val.jsonl", [Example("v.png", ("sea",), (("sea",),))])
    with FeatureWriter(data / "other", SPEC, 9) as writer:
        writer.add(["v.png"], torch.zeros(1, 9))
    with pytest.raises(InputError, match="features: expected 8 per image, got 9"):
        run(data, "out", val=data / "val.jsonl", val_features=data / "other")
    with FeatureWriter(data / "third", SPEC | {"weights": "others"}, 8) as writer:
        writer.add(["v.png"], torch.zeros(1, 8))
    with pytest.raises(InputError, match="features: expected those of weights 'none at all', got 'others'"):
        run(data, "out", val=data / "val.jsonl", val_features=data / "third")


def test_features_that_name_no_backbone(data: Path) -> None:
    with FeatureWriter(data / "nameless", {"model": "mine"}, 8) as writer:
        writer.add([e.image for e in read_manifest(data / "images.jsonl").examples], torch.zeros(80, 8))
    with pytest.raises(InputError, match="features: expected a store that names their backbone, got"):
        train(data / "images.jsonl", data / "out", features=data / "nameless", progress=False)


def test_a_validation_image_with_only_unknown_tags(data: Path) -> None:
    known = [Example(f"{i}.png", ("sea",), (("sea",),)) for i in range(0, 64, 4)]
    write_manifest(data / "val.jsonl", [*known, Example("64.png", ("kite",), (("kite",),))])
    examples = read_manifest(data / "images.jsonl").examples
    write_manifest(data / "images.jsonl", [e for e in examples if e.split is None])
    run(data, "out", val=data / "val.jsonl", epochs=1)
    (epoch,) = json.loads((data / "out" / "training" / "history.json").read_text())
    assert 0 < epoch["val_loss"] < 10


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", 33, seed=0, splits={"train": 0.99, "val": 0.01})


def test_a_backbone_is_trained_from_the_seed(pictures: Path, tmp_path: Path) -> None:
    for out, seed, noise in (("a", 1, 0), ("b", 1, 1), ("c", 2, 0)):
        torch.manual_seed(noise)
        train(pictures, tmp_path / out, backbone="small_cnn", seed=seed, epochs=1, progress=False)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    key = "backbone.network.head.0.weight"
    assert not torch.equal(weights(tmp_path / "a")[key], weights(tmp_path / "c")[key])
    assert Annotator.load(tmp_path / "a").backbone().spec["backbone"] == "small_cnn"


def test_a_last_batch_of_one_picture(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = len([e for e in read_manifest(pictures).examples if e.split == "train"])
    monkeypatch.setitem(PRESETS, "default", replace(PRESETS["default"], batch_size=images - 1))
    train(pictures, tmp_path / "out", backbone="small_cnn", epochs=1, progress=False)


def test_stops_early(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(PRESETS["default"], learning_rate=1e-12, schedule="constant", patience=2, epochs=50)
    monkeypatch.setitem(PRESETS, "default", preset)
    run(data, "out")
    run(data, "out", resume=True)  # it is finished, though it stopped before epoch 50
    assert len(json.loads((data / "out" / "training" / "history.json").read_text())) == 3


@pytest.mark.parametrize("options", [{"feedback": True}, {"conditioning": "initial"}])
def test_other_models_train_too(data: Path, options: dict[str, Any]) -> None:
    annotator = run(data, "out", epochs=8, **options)
    rows = open_features(data / "features").rows(["0.png", "1.png"])
    assert annotator.check_decoder(None) == "expected_gain"
    assert all(len(set(r.tags)) == len(r.tags) > 0 for r in annotator.rank(rows))
    with pytest.raises(InputError, match="reads its own tags"):
        annotator.rank(rows, decoder="assignment")


def test_without_a_val_split_a_tenth_is_drawn(data: Path) -> None:
    examples = [replace(e, split=None) for e in read_manifest(data / "images.jsonl").examples]
    write_manifest(data / "images.jsonl", examples)
    run(data, "out", epochs=1)
    assert (data / "out" / "config.json").is_file()


def test_bad_input(data: Path) -> None:
    with pytest.raises(InputError, match="preset: expected one of default, paper, scenes; got 'best'"):
        run(data, "out", preset="best")
    with pytest.raises(InputError, match="epochs: expected at least 1, got 0"):
        run(data, "out", epochs=0)
    with pytest.raises(InputError, match="the features were computed with efficientnet_lite0, got 'vgg16'"):
        run(data, "out", backbone="vgg16", epochs=1)
    with pytest.raises(InputError, match="small_cnn is trained with the ranker"):
        run(data, "out2", backbone="small_cnn", epochs=1)
    write_manifest(data / "images.jsonl", [Example("1.png", ("sea",), (("sea",),))])
    with pytest.raises(InputError, match=r"images.jsonl: expected at least 2 images, .* or --val; got 1 to train on"):
        run(data, "out")
    assert not (data / "out" / "config.json").exists()


def test_scores_are_calibrated_by_the_validation_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(data / "images.jsonl")
    val = manifest.select("val")
    features = open_features(data / "features").rows([e.image for e in val.examples])
    with monkeypatch.context() as patch:
        patch.setattr("tagrank.metrics.calibration.LEAST", 50)
        annotator = run(data, "out", epochs=4)
    loaded = Annotator.load(data / "out")
    assert loaded.calibration == annotator.calibration != Calibration()
    images = LabelledImages(val.examples, features)
    calibrated = judge(loaded, images)
    np.testing.assert_array_equal(loaded.unlike(features), annotator.unlike(features))
    assert loaded.familiarity is not None
    assert len(loaded.familiarity.memory) == len(manifest.examples) - len(val.examples)
    np.testing.assert_allclose(np.sort(loaded.unlike(features)), np.arange(20) / 21, atol=1e-9)
    loaded.calibration = Calibration()
    raw = judge(loaded, images)
    assert raw.rankings == calibrated.rankings
    assert raw.calibration is not None
    assert calibrated.calibration is not None
    assert calibrated.calibration.error < raw.calibration.error


@pytest.mark.parametrize("feedback", [False, True])
def test_thresholds_are_compared_with_calibrated_scores(data: Path, feedback: bool) -> None:
    annotator = run(data, "out", epochs=1, feedback=feedback)
    features = open_features(data / "features").rows(["0.png", "1.png"])
    plain = annotator.rank(features, top_k=5)
    annotator.calibration = Calibration(0.5, 1.0)
    for before, after in zip(plain, annotator.rank(features, top_k=5), strict=True):
        assert after.tags == before.tags
        np.testing.assert_allclose(after.scores, annotator.calibration(np.array(before.scores)))
    for all_, kept in zip(
        annotator.rank(features, top_k=5), annotator.rank(features, top_k=5, threshold=0.6), strict=True
    ):
        assert kept.tags == [tag for tag, score in zip(all_.tags, all_.scores, strict=True) if score >= 0.6]


def packed(data: Path, dimension: int) -> Path:
    """The features as other programs write them: an ``.npz``, which does not name a backbone."""
    names = [example.image for example in read_manifest(data / "images.jsonl").examples]
    rows = np.random.default_rng(0).standard_normal((len(names), dimension), np.float32)
    np.savez(data / "packed.npz", images=names, features=rows)
    return data / "packed.npz"


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("resnet9000", r"backbone: expected .* \(such as resnet\d+\), got 'resnet9000'"),
        ("vgg16", r"features: expected 4096 per image, as vgg16 computes them \(--backbone\), got 8"),
        ("efficientnet_lite0", "features: expected 1280 per image, as efficientnet_lite0"),
        ("googlenet", "features: expected 1024 per image, as googlenet"),
    ],
)
def test_a_backbone_that_did_not_compute_the_features(data: Path, backbone: str, reason: str) -> None:
    features = packed(data, 8)
    with pytest.raises(InputError, match=reason):
        train(data / "images.jsonl", data / "out", features=features, backbone=backbone, progress=False)
    assert not list((data / "out").rglob("*.ckpt"))


def test_an_unknown_backbone_is_found_before_anything_is_read(data: Path) -> None:
    with pytest.raises(InputError, match="backbone: expected"):
        train(data / "no.jsonl", data / "out", features=data / "no.npz", backbone="resnet9000", progress=False)
    assert not (data / "out").exists()


def test_a_model_that_cannot_annotate_is_announced(data: Path) -> None:
    unknown = r"features: of an unknown backbone: .* cannot annotate photographs; name .* \(--backbone\)"
    with pytest.warns(InputWarning, match=unknown):
        train(data / "images.jsonl", data / "out", features=packed(data, 8), epochs=1, progress=False)
    with FeatureWriter(data / "mine", {"backbone": "mine"}, 8) as writer:
        writer.add([f"{i}.png" for i in range(80)], torch.randn(80, 8))
    with pytest.warns(InputWarning, match="features: of 'mine': the model will rank features, but cannot annotate"):
        train(data / "images.jsonl", data / "out2", features=data / "mine", epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        given: Any = {"features": packed(data, 512), "backbone": "resnet18"}
        trained = train(data / "images.jsonl", data / "out3", epochs=1, progress=False, **given)
    assert trained.backbone_spec == {"backbone": "resnet18"}


def test_options_by_keyword_and_as_an_object(data: Path) -> None:
    assert get_type_hints(TrainKeywords) == get_type_hints(TrainOptions)
    assert list(get_type_hints(TrainKeywords)) == list(get_type_hints(TrainOptions))
    run(data, "keywords", seed=1, epochs=1)
    options = TrainOptions(features=data / "features", seed=2, epochs=1, progress=False)
    train(data / "images.jsonl", data / "object", options=options, seed=1)
    assert same(weights(data / "keywords"), weights(data / "object"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        run(data, "other", sed=1)


@pytest.fixture
def model(data: Path) -> Path:
    run(data, "out", epochs=1)
    return data / "out"


def test_a_model_folder_with_something_missing_or_damaged(model: Path) -> None:
    for name in ("config.json", "vocabulary.json", "model.safetensors"):
        kept = (model / name).read_bytes()
        (model / name).unlink()
        with pytest.raises(InputError, match=f"not a model: {name} is missing"):
            Annotator.load(model)
        (model / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(InputError, match=name):
            Annotator.load(model)
        (model / name).write_bytes(kept)
    with pytest.raises(InputError, match="it is not a folder"):
        Annotator.load(model / "config.json")
    config = json.loads((model / "config.json").read_text())
    for change, message in (
        ({"format": 2}, "expected format 1, got 2"),
        ({"ranker": {**config["ranker"], "hidden_size": 17}}, "does not fit config.json"),
        ({"ranker": {"sizes": 3}}, "not the configuration of a model"),
        (
            {"backbone": {"weights": "none"}},
            "config.json: .*the configuration of a model: backbone(.backbone)?: expected",
        ),
        ({"backbone": {"backbone": 3}}, "config.json: .*the configuration of a model: backbone(.backbone)?: expected"),
        ({"backbone": ["vgg16"]}, "config.json: .*the configuration of a model: backbone(.backbone)?: expected"),
        ({"backbone": "backbone"}, "config.json: .*the configuration of a model: backbone(.backbone)?: expected"),
        ({"training": 3}, "config.json: expected the configuration of a model: training: expected an object, got 3"),
        ({"ranker": {**config["ranker"], "num_tags": 2}}, "model.safetensors: does not fit"),
    ):
        (model / "config.json").write_bytes(seal(config | change))
        with pytest.raises(InputError, match=message):
            Annotator.load(model)
    # As earlier versions wrote it: without digests.
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("files", "checksum")}))
    (model / "vocabulary.json").write_text('{"tags": ["sea"]}')
    with pytest.raises(InputError, match="vocabulary: expected 3 tags like the ranker, got 1"):
        Annotator.load(model)


@pytest.mark.parametrize(
    "history",
    [
        "{}",
        "[]",
        "[1]",
        '[{"epoch": 1}]',
        '[{"epoch": "1", "val_ndcg@5": 0.5}]',
        "[{",
        '[{"epoch": 1' + "0" * 400 + ', "val_ndcg@5": 0.5}]',
    ],
)
def test_a_history_that_is_damaged(model: Path, history: str) -> None:
    (model / "training" / "history.json").write_text(history)
    with pytest.raises(
        InputError, match=r"training/history\.json: (expected the metrics of each epoch|not valid JSON)"
    ):
        read_history(model)


def test_weights_that_are_not_finite(model: Path) -> None:
    tensors = weights(model)
    tensors["ranker.members.0.classifier.bias"][0] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"ranker.members.0.classifier.bias has values that are not finite"):
        Annotator.load(model)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json", "familiar.safetensors"])
def test_a_flipped_bit_in_a_model(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[content.index(b"dog") if name == "vocabulary.json" else -7] ^= 1
    (model / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: damaged, or of another model: its digest is not the one in config"):
        Annotator.load(model)


@pytest.mark.parametrize(("old", "new"), [(b'"max_length": 3', b'"max_length": 7'), (b'"dropout"', b'"dropouu"')])
def test_a_flipped_bit_in_the_configuration(model: Path, old: bytes, new: bytes) -> None:
    path = model / "config.json"
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=r"config\.json: damaged, or edited by hand: its checksum is that of"):
        Annotator.load(model)


def test_a_calibration_that_is_none(model: Path) -> None:
    for wrong in ({"temperature": 0.0}, {"temperature": "1"}, {"slope": 1.0}, [1.0, 0.0]):
        config = json.loads((model / "config.json").read_text())
        config["calibration"] = wrong
        (model / "config.json").write_bytes(seal(config))
        with pytest.raises(InputError, match=r"config\.json: expected the configuration of a model: "):
            Annotator.load(model)


def test_features_of_another_size(model: Path) -> None:
    with pytest.raises(InputError, match=r"the model takes 8 per image, got shape \[2, 9\]"):
        Annotator.load(model).rank(torch.zeros(2, 9))


def test_a_model_without_a_known_backbone(model: Path) -> None:
    annotator = Annotator.load(model)
    nameless = Annotator(annotator.ranker, annotator.vocabulary)
    with pytest.raises(InputError, match="features of an unknown backbone"):
        nameless.backbone()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("members", 2**63, "does not fit config.json: .* members, but .* tensors"),
        ("hidden_size", 20_000, "does not fit config.json: "),
        ("hidden_size", 2**31, "hidden_size: expected at most"),
        ("hidden_size", 2**100, "hidden_size: expected at most"),
        ("max_length", 2**40, "max_length: expected at most"),
        ("hidden_dropout", "", "hidden_dropout: expected a number, got ''"),
        ("dropout", True, "dropout: expected a number, got True"),
        ("bias", "no", "bias: expected True or False, got 'no'"),
        ("feedback", 1, "feedback: expected True or False, got 1"),
        ("backend", "triton", "backend: is no option of a model"),
        ("members", "2", "members: expected a positive int, got '2'"),
    ],
)
def test_a_configuration_with_wrong_types_or_sizes(model: Path, option: str, value: Any, reason: str) -> None:
    config = json.loads((model / "config.json").read_text())
    config["ranker"][option] = value
    (model / "config.json").write_bytes(seal(config))
    with pytest.raises(InputError, match=reason) as caught:
        Annotator.load(model)
    assert str(model) in str(caught.value)


def test_weights_so_large_that_no_probability_is_left(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["files"]
    (model / "config.json").write_bytes(seal(config))
    tensors = load_file(model / "model.safetensors")
    save_file({name: torch.full_like(t, 3e38) for name, t in tensors.items()}, model / "model.safetensors")
    annotator = Annotator.load(model)
    for use in (annotator.probabilities, annotator.rank):
        with pytest.raises(InputError, match="the model gives no probabilities for these features"):
            use(torch.ones(2, annotator.ranker.feature_size))


def test_weights_of_no_backbone(tmp_path: Path) -> None:
    """Features are given, so that no backbone computes any."""
    manifest = tmp_path / "photos.jsonl"
    manifest.write_text('{"image": "a.jpg", "tags": ["dog"]}\n{"image": "b.jpg", "tags": ["cat"]}\n')
    np.savez(tmp_path / "features.npz", **{"a.jpg": np.zeros(3), "b.jpg": np.ones(3)})
    with pytest.raises(InputError, match="weights: are those of a backbone that computes features or is trained"):
        train(manifest, tmp_path / "model", features=tmp_path / "features.npz", weights="none", progress=False)
