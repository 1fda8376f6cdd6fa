"""A training run, from a manifest to a model folder: splits, features, vocabulary, model, resumption."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tagrank.annotator import CONFIG, VOCABULARY, WEIGHTS, Annotator
from tagrank.data.files import read_json, reason, write_atomically
from tagrank.data.manifest import Manifest, read_manifest
from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.labelled import LabelledImages, load_labelled
from tagrank.features.seen import digests, write_seen
from tagrank.ranker.ensemble import Ranker, build_ranker
from tagrank.ranker.presets import PRESETS, Preset
from tagrank.ranker.tag_ranker import Conditioning

VAL_SPLITS = ("val", "validation")
SPLITS = (None, "train", "test", *VAL_SPLITS)
VAL_SHARE = 0.1
HISTORY = "history.json"
SETTINGS = "settings.json"
TRAINING, NEW = "training", "training.new"
"""Folders of runs in a model's folder: that of the model, and one that is to replace it when it is finished."""


def train(
    manifest: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    val: str | Path | None = None,
    val_features: str | Path | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    preset: str = "default",
    conditioning: Conditioning = "every_step",
    feedback: bool = False,
    seed: int = 0,
    epochs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Annotator:
    """Train a ranker, and write its model folder.

    Args:
        manifest: images and lists; those of a split named ``test`` are not touched.
        out: the model folder; ``out/training`` keeps computed features, checkpoints and the history. A model that is
            there stays as it is until the new one is finished, whose run is in ``out/training.new`` meanwhile.
        features: feature store or ``.npz`` of the manifest's images; computed with the backbone where left out.
        val: a manifest for validation. Where left out, the manifest's split ``val``, else a tenth drawn with the seed.
        val_features: features of ``val``; ``features`` where left out.
        backbone: what computes (or computed) the features; ``small_cnn`` is trained with the ranker.
        weights: of the backbone, as for :func:`tagrank.features.backbones.load_backbone`.
        preset: a name in :data:`tagrank.ranker.presets.PRESETS`.
        conditioning: as for :class:`tagrank.TagRanker`.
        feedback: as for :class:`tagrank.TagRanker`.
        seed: decides all that is drawn at random.
        epochs: in place of the preset's.
        resume: go on where a run with the same settings stopped.
        overwrite: replace a model that is there.
        progress: show progress bars, on stderr.

    Returns:
        The model of the epoch with the best validation NDCG@5.

    Raises:
        InputError: a file or an option is not what it should be, or ``out`` has something of these names in it that
            is no model's or run's.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    if preset not in PRESETS:
        raise InputError(f"preset: expected one of {', '.join(PRESETS)}; got {preset!r}")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    chosen = PRESETS[preset] if epochs is None else replace(PRESETS[preset], epochs=epochs)
    train_manifest, val_manifest = _split(read_manifest(manifest), None if val is None else read_manifest(val), seed)
    record: dict[str, Any] = {
        "preset": preset,
        **asdict(chosen),
        "conditioning": conditioning,
        "feedback": feedback,
        "seed": seed,
        "data": _digest(train_manifest, val_manifest, features, val_features, backbone, weights),
    }
    out = Path(out)
    run = _resumed(out, record) if resume else _begun(out, record, overwrite=overwrite)
    network = _backbone(backbone, weights, features, seed)
    val_features = features if val_features is None else val_features
    images, val_images = (
        load_labelled(m, features=f, backbone=network, store=run / "features" / part, progress=progress)
        for m, f, part in ((train_manifest, features, "train"), (val_manifest, val_features, "val"))
    )
    spec = _spec(images, backbone)
    val_images.check(images.inputs.shape[1], spec)
    vocabulary = Vocabulary.build(tags for example in images.examples for tags in example.lists)
    trained = network if images.inputs.dim() == 4 else None
    if trained is not None:
        spec = trained.spec | {"weights": "trained with the ranker"}
    ranker = fit_ranker(
        images,
        val_images,
        vocabulary,
        chosen,
        run,
        backbone=trained,
        conditioning=conditioning,
        feedback=feedback,
        seed=seed,
        resume=resume,
        progress="training" if progress else None,
    )
    annotator = Annotator(ranker, vocabulary, spec, backbone=trained, training=record)
    seen = digests(images, trained), digests(val_images, trained)
    # The configuration first: a folder with one is complete, and of one model.
    (out / CONFIG).unlink(missing_ok=True)
    if run.name == NEW:
        if (out / TRAINING).exists():
            shutil.rmtree(out / TRAINING)
        run.rename(out / TRAINING)
    write_seen(out, *seen)
    annotator.save(out)
    return annotator


def fit_ranker(
    images: LabelledImages,
    val_images: LabelledImages,
    vocabulary: Vocabulary,
    preset: Preset,
    folder: Path,
    *,
    backbone: Backbone | None = None,
    conditioning: Conditioning = "every_step",
    feedback: bool = False,
    seed: int = 0,
    resume: bool = False,
    progress: str | None = None,
) -> Ranker:
    """Build a ranker for these images and train it, and the backbone with it where there is one.

    Args:
        images: to train on.
        val_images: to choose the best epoch by.
        vocabulary: the tags.
        preset: sizes and schedule.
        folder: for checkpoints and ``history.json``.
        backbone: trained too; the inputs of the images are then pixels.
        conditioning: as for :class:`tagrank.TagRanker`.
        feedback: as for :class:`tagrank.TagRanker`.
        seed: decides all that is drawn at random.
        resume: go on from ``folder/last.ckpt`` where it exists.
        progress: show progress on stderr, under this name.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    from tagrank.training.loop import ListDataset, RankerModule, fit

    lists, val_lists = images.lists(vocabulary), val_images.lists(vocabulary)
    if not any(val_lists):
        raise InputError("val: none of its tags is in the training images")
    if backbone is not None and len(images) < 2:
        raise InputError(f"a backbone is trained on at least 2 images, got {len(images)}")
    history = folder / HISTORY
    finished = resume and history.is_file()  # it is written last
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # What reads its own tags cannot be averaged, and a captioning LSTM sees the image once.
        alone = feedback or conditioning == "initial"
        ranker = build_ranker(
            {
                "feature_size": images.inputs.shape[1] if backbone is None else backbone.feature_size,
                "num_tags": len(vocabulary),
                "max_length": max(len(tags) for image in lists for tags in image),
                "conditioning": conditioning,
                "feedback": feedback,
                "embedding_size": preset.embedding_size,
                "hidden_size": preset.hidden_size,
                "bias": preset.bias,
                "activation": preset.activation,
                "dropout": preset.dropout,
                "hidden_dropout": preset.hidden_dropout,
                "skip": preset.skip and conditioning == "every_step",
                "auxiliary": preset.auxiliary,
                # Features that are learned change, and a root has no gradient at zero.
                "signed_root": preset.signed_root and backbone is None,
                "standardise": preset.standardise and backbone is None,
                **({} if alone or preset.members == 1 else {"members": preset.members}),
            }
        )
        if backbone is None:
            ranker.standardise_by(images.inputs)
        if preset.start == "frequencies":
            ranker.start_at_frequencies(encode_lists(lists, vocabulary.end, ranker.steps))
        references = val_images.references(vocabulary)
        module = RankerModule(ranker, preset, references, seed, backbone)
        fit(
            module,
            ListDataset(images.inputs, lists, vocabulary.end, ranker.steps),
            ListDataset(val_images.inputs, val_lists, vocabulary.end, ranker.steps),
            folder,
            resume=resume,
            finished=finished,
            progress=progress,
        )
    if not finished:
        write_atomically(history, [json.dumps(module.history, indent=1, allow_nan=False).encode(), b"\n"])
    return ranker.eval()


def training_part(manifest: Manifest) -> Manifest:
    """The images of a manifest that may be trained on: all but those of the splits ``test`` and ``val``.

    Raises:
        InputError: there are none, or a split has another name, whose meaning can only be guessed.
    """
    for example in manifest.examples:
        if example.split not in SPLITS:
            expected = ", ".join(split for split in SPLITS if split)
            raise InputError(f"{manifest.path}: split: expected one of {expected}; got {example.split!r}")
    examples = tuple(e for e in manifest.examples if e.split not in ("test", *VAL_SPLITS))
    if not examples:
        raise InputError(f"{manifest.path}: no images to train on: all are of the splits test and val")
    return Manifest(manifest.path, examples)


def check_apart(train: Manifest, judged: Manifest) -> None:
    """Make sure that no image is both trained on and judged by.

    Raises:
        InputError: one is.
    """
    trained = {(train.root / example.image).resolve() for example in train.examples}
    for example in judged.examples:
        if (judged.root / example.image).resolve() in trained:
            raise InputError(f"{judged.path}: {example.image} is among the images to train on, in {train.path}")


def hold_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers below ``count`` in two parts, each ascending: most of them, and a tenth drawn with the seed.

    Raises:
        InputError: ``count`` is below 2, so that one part would be empty.
    """
    if count < 2:
        raise InputError(f"expected at least 2 images to train and validate on, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    share = max(1, round(VAL_SHARE * count))
    return sorted(order[share:]), sorted(order[:share])


def has_run(folder: str | Path) -> bool:
    """Whether there is a run in a model's folder, finished or not, that can be resumed."""
    return any((Path(folder) / name / SETTINGS).is_file() for name in (NEW, TRAINING))


def read_history(folder: str | Path) -> list[dict[str, float]]:
    """The metrics of each epoch of the model in a folder; empty where it has none.

    Raises:
        InputError: the file with them is damaged, or is not what training writes.
    """
    path = Path(folder) / TRAINING / HISTORY
    if not path.is_file():
        return []
    history: list[dict[str, float]] = read_json(path)
    if not isinstance(history, list) or not history or not all(map(_is_epoch, history)):
        raise InputError(f"{path}: expected the metrics of each epoch, got {history!r:.60}")
    return history


def _is_epoch(metrics: object) -> bool:
    return (
        isinstance(metrics, dict)
        and {"epoch", "val_ndcg@5"} <= metrics.keys()
        and all(type(value) in (int, float) for value in metrics.values())
    )


def _backbone(name: str | None, weights: str | Path | None, features: str | Path | None, seed: int) -> Backbone | None:
    """What computes the features, where they are not given; the paper's network where no other is named."""
    if features is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_backbone(name or "vgg16", weights)
    if name == "small_cnn":
        raise InputError("backbone: small_cnn is trained with the ranker, from pixels; it does not go with features")
    return None


def _spec(images: LabelledImages, name: str | None) -> dict[str, str] | None:
    """What the features come from, as far as it is known."""
    if images.spec is None:
        return None if name is None else {"backbone": name}
    if "backbone" not in images.spec:
        raise InputError(f"features: expected a store that names their backbone, got {images.spec!r:.60}")
    if name not in (None, images.spec["backbone"]):
        raise InputError(f"backbone: the features were computed with {images.spec['backbone']}, got {name!r}")
    return images.spec


def _split(manifest: Manifest, val: Manifest | None, seed: int) -> tuple[Manifest, Manifest]:
    """Images to train on and images to validate on."""
    part = training_part(manifest)
    held_out = tuple(e for e in (val or manifest).examples if e.split in VAL_SPLITS)
    if val is not None or held_out:
        source = val or manifest
        chosen = Manifest(source.path, held_out or source.examples)
        check_apart(part, chosen)
        return part, chosen
    train, drawn = (
        Manifest(manifest.path, tuple(part.examples[i] for i in half)) for half in hold_out(len(part), seed)
    )
    return train, drawn


def _digest(train: Manifest, val: Manifest, *others: str | Path | None) -> str:
    """Changes with anything that a resumed run reads, except the contents of features and pictures."""
    parts = [[asdict(e) for e in m.examples] for m in (train, val)] + [[str(o)] for o in others if o is not None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _runs(out: Path) -> dict[Path, dict[str, Any]]:
    """The folders of runs in a model's folder with their settings, that of the newest run first.

    Raises:
        InputError: there is something that is no model's or run's, and would be lost.
    """
    runs: dict[Path, dict[str, Any]] = {}
    for folder in (out / NEW, out / TRAINING):
        path = folder / SETTINGS
        settings = read_json(path) if path.is_file() else None
        if isinstance(settings, dict) and "preset" in settings:
            runs[folder] = settings
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder}: not the folder of a training run, whose {SETTINGS} it lacks; choose another folder"
            )
    config = out / CONFIG
    if config.exists():
        content = read_json(config)
        if not isinstance(content, dict) or not {"format", "ranker"} <= content.keys():
            raise InputError(f"{config}: not the configuration of a model; choose another folder")
    elif not runs:
        for path in (out / WEIGHTS, out / VOCABULARY):
            if path.exists():
                raise InputError(f"{path}: not of a model that was trained here; choose another folder")
    return runs


def _resumed(out: Path, record: dict[str, Any]) -> Path:
    """The folder of the run to resume, which has the settings it began with."""
    runs = _runs(out)
    if not runs:
        raise InputError(f"{out}: nothing to resume: {out / TRAINING / SETTINGS} is missing")
    for folder, before in runs.items():
        changed = [key for key in record if before.get(key) != record[key]]
        if not changed:
            return folder
    was = ", ".join(f"{key} {before.get(key)!r}, now {record[key]!r}" for key in changed)
    raise InputError(f"{out}: cannot resume with other settings: was {was}")


def _begun(out: Path, record: dict[str, Any], *, overwrite: bool) -> Path:
    """The folder of a new run, with nothing but its settings in it."""
    try:
        # Settings alone are of a run that got no further, and nothing is lost with them.
        runs = [folder for folder in _runs(out) if os.listdir(folder) != [SETTINGS]]
        if not overwrite and (runs or (out / CONFIG).exists()):
            raise InputError(
                f"{out}: there is a model or an unfinished run already; go on with --resume, replace it with "
                "--overwrite, or choose another folder"
            )
        run = out / (NEW if out / TRAINING in runs else TRAINING)
        for folder in {run, out / NEW}:
            if folder.exists():
                shutil.rmtree(folder)
        run.mkdir(parents=True)
        write_atomically(run / SETTINGS, [json.dumps(record, indent=2).encode(), b"\n"])
    except OSError as error:
        raise InputError(f"{out}: cannot be used: {reason(error)}") from error
    return run
