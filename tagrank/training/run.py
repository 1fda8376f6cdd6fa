"""A training run, from a manifest to a model's folder."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tagrank.annotator import Annotator
from tagrank.data.files import reason
from tagrank.data.manifest import Example, Manifest, read_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError, InputWarning
from tagrank.features.backbones import Backbone, check_backbone, is_known, load_backbone
from tagrank.features.devices import find_device
from tagrank.features.labelled import LabelledImages, load_labelled
from tagrank.features.seen import Digests, digests, write_seen
from tagrank.ranker.presets import Preset
from tagrank.training import run_folder
from tagrank.training.afterwards import complete, features_of
from tagrank.training.completing import fit_completer
from tagrank.training.fit import fit_ranker
from tagrank.training.helper import help_train
from tagrank.training.processes import Processes
from tagrank.training.splits import split
from tagrank.training.starting import check_processes, started
from tagrank.training.train_options import TrainKeywords, TrainOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


def train(
    manifest: str | Path,
    out: str | Path,
    *,
    options: TrainOptions | None = None,
    on_error: Callable[[InputError], None] | None = None,
    **keywords: "Unpack[TrainKeywords]",
) -> Annotator:
    """Train a ranker, and write its model folder.

    Args:
        manifest: images and lists; images in a split named ``test`` are ignored.
        out: the model's folder; ``out/training`` keeps computed features, checkpoints and the history. An existing
            model stays as it is until the new model is finished; until then the new run is in ``out/training.new``.
        options: of the run; the defaults if left out.
        on_error: called with the error of each image that cannot be read or has no features. The image is then left
            out. If it is None, the error is raised.
        **keywords: fields of :class:`~tagrank.training.train_options.TrainOptions` that replace those of ``options``:
            ``train(manifest, out, features="features", seed=1)``.

    Returns:
        The model of the epoch with the best validation NDCG@5. Under torchrun all processes return it, and only
        process 0 reads and writes files.

    Raises:
        TypeError: a keyword is not known.
        InputError: a file or an option is not what it should be, another process is training in ``out``, something
            in ``out`` has the name of one of our files and is not ours, or a process of the training has ended.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    options = replace(options or TrainOptions(), **keywords)
    preset = options.hyper_parameters()
    if options.backbone is not None:
        check_backbone(options.backbone)
    find_device(options.device)
    check_processes(options)
    with started(options) as processes:
        if processes.rank > 0:
            helped: Annotator = help_train(processes)
            return helped
        annotator = _train(manifest, Path(out), options, preset, processes, on_error)
        processes.send(annotator)
    return annotator


def _train(
    manifest: str | Path,
    out: Path,
    options: TrainOptions,
    preset: Preset,
    processes: Processes,
    on_error: Callable[[InputError], None] | None,
) -> Annotator:
    """What process 0 does of :func:`train`."""
    val = None if options.val is None else read_manifest(options.val)
    parts = split(read_manifest(manifest), val, options.seed)
    settings = {
        "preset": options.preset,
        **asdict(preset),
        "seed": options.seed,
        "data": _digest(parts, options, partial(_place, parts[0].root)),
    }
    earlier = {"data": _digest(parts, options, str), "completer": None}
    with run_folder.open_run(out, settings, earlier, resume=options.resume, overwrite=options.overwrite) as folder:
        annotator, *seen = _fit(parts, options, preset, settings, folder, processes, on_error)
        try:
            run_folder.replace_model(out, folder)
            write_seen(out, *seen)
        except OSError as error:
            raise InputError(f"{out}: the model cannot be written: {reason(error)}") from error
        annotator.save(out)
    return annotator


def _fit(
    parts: tuple[Manifest, Manifest],
    options: TrainOptions,
    preset: Preset,
    settings: Mapping[str, Any],
    folder: Path,
    processes: Processes,
    on_error: Callable[[InputError], None] | None,
) -> tuple[Annotator, Digests, Digests]:
    """The model, trained in the folder of its run, and the digests of the images that it has seen."""
    device = find_device(options.device)
    backbone = _backbone(options, device)
    images, val_images = _load(parts, options, backbone, folder, on_error)
    there = {example.image for loaded in (images, val_images) for example in loaded.examples}
    left_out = sorted({example.image for part in parts for example in part.examples} - there)
    run_folder.keep_left_out(folder, left_out, resume=options.resume)
    spec = _spec(images, options.backbone)
    val_images.check(images.inputs.shape[1], spec)
    vocabulary = Vocabulary.build(tags for example in images.examples for tags in example.lists)
    trained = backbone if images.inputs.dim() == 4 else None
    if trained is not None:
        spec = trained.spec | {"weights": "trained with the ranker"}
    ranker = fit_ranker(
        images,
        val_images,
        vocabulary,
        preset,
        folder,
        backbone=trained,
        seed=options.seed,
        device=device,
        resume=options.resume,
        progress="training" if options.progress else None,
        processes=processes,
    )
    if trained is not None:
        images, val_images = (LabelledImages(i.examples, features_of(i.inputs, trained)) for i in (images, val_images))
    completer = None
    if preset.completer:
        completer = fit_completer(images, vocabulary, preset, options.seed, device=device, progress=options.progress)
    annotator = Annotator(ranker, vocabulary, spec, backbone=trained, training=settings, completer=completer)
    complete(annotator, images, val_images)
    return annotator, digests(images), digests(val_images)


def _digest(parts: tuple[Manifest, Manifest], options: TrainOptions, place: Callable[[str | Path], str]) -> str:
    """Changes with anything that a resumed run reads, except the contents of features and pictures.

    Args:
        parts: the images.
        options: of the run.
        place: makes a text of where features or weights are.
    """
    files = [
        None if file is None else place(file) for file in (options.features, options.val_features, options.weights)
    ]
    sources = (*files[:2], options.backbone, files[2])
    names = [field.name for field in fields(Example)]  # asdict() would copy each tag
    read = [[{name: getattr(e, name) for name in names} for e in part.examples] for part in parts] + [
        [s] for s in sources if s is not None
    ]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def _place(folder: Path, file: str | Path) -> str:
    """Where a file is, as seen from a folder: the same for all paths to it, and after both were moved."""
    if not os.path.exists(file):  # a name of weights
        return str(file)
    return os.path.relpath(os.path.realpath(file), os.path.realpath(folder))


def _backbone(options: TrainOptions, device: torch.device) -> Backbone | None:
    """The network that computes the features if they are not given: by default the paper's."""
    if options.features is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            backbone = load_backbone(options.backbone or "vgg16", options.weights)
        # One that is trained goes where the ranker is trained.
        trained = any(parameter.requires_grad for parameter in backbone.parameters())
        return backbone if trained else backbone.to(device)
    if options.weights is not None:
        raise InputError("weights: are those of a backbone that computes features or is trained; features are given")
    if options.backbone == "small_cnn":
        raise InputError("backbone: small_cnn is trained with the ranker, from pixels; it does not go with features")
    return None


def _load(
    parts: tuple[Manifest, Manifest],
    options: TrainOptions,
    backbone: Backbone | None,
    folder: Path,
    on_error: Callable[[InputError], None] | None,
) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on and to validate on, with features or pixels; features are computed into ``folder``."""
    val_features = options.features if options.val_features is None else options.val_features
    images, val_images = (
        load_labelled(
            part,
            features=given,
            backbone=backbone,
            store=folder / "features" / name,
            images=options.images,
            progress=options.progress,
            on_error=on_error,
        )
        for part, given, name in zip(parts, (options.features, val_features), ("train", "val"), strict=True)
    )
    return images, val_images


def _spec(images: LabelledImages, backbone: str | None) -> dict[str, str] | None:
    """What the features come from, as far as it is known."""
    if images.spec is None and backbone is not None:
        check_backbone(backbone, images.inputs.shape[1])
        return {"backbone": backbone}
    if images.spec is not None and "backbone" not in images.spec:
        raise InputError(f"features: expected a store that names their backbone, got {images.spec!r:.60}")
    if images.spec is not None and backbone not in (None, images.spec["backbone"]):
        raise InputError(f"backbone: the features were computed with {images.spec['backbone']}, got {backbone!r}")
    if images.spec is None or not is_known(images.spec["backbone"]):
        whose = "an unknown backbone" if images.spec is None else repr(images.spec["backbone"])
        warnings.warn(
            f"features: of {whose}: the model will rank features, but cannot annotate photographs; "
            "name the backbone that computed them (--backbone)",
            InputWarning,
            stacklevel=4,
        )
    return images.spec
