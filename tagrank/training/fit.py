"""From images in memory to a trained ranker."""

from dataclasses import replace
from pathlib import Path

import torch

from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.labelled import LabelledImages
from tagrank.ranker.ensemble import Ranker, build_ranker
from tagrank.ranker.presets import Preset
from tagrank.training.processes import ALONE, Processes
from tagrank.training.run_folder import is_finished, write_history

Lists = list[list[list[int]]]


def fit_ranker(
    images: LabelledImages,
    val_images: LabelledImages,
    vocabulary: Vocabulary,
    preset: Preset,
    folder: Path,
    *,
    backbone: Backbone | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: str | None = None,
    processes: Processes = ALONE,
) -> Ranker:
    """Build a ranker for these images and train it.

    Args:
        images: the images to train on.
        val_images: the images by which the best epoch is chosen.
        vocabulary: the tags.
        preset: hyper-parameters.
        folder: for checkpoints and ``history.json``.
        backbone: is trained with the ranker if given; the inputs of the images are then pixels.
        seed: of all random draws.
        device: where to train; ``None``: on a GPU if there is one. The ranker is on the CPU afterwards.
        resume: continue from ``folder/last.ckpt`` if it exists.
        progress: if given, show progress on stderr, under this name.
        processes: that train it; this one is process 0.

    Returns:
        The ranker of the epoch with the best validation NDCG@5.

    Raises:
        InputError: no validation image has a tag of the vocabulary, a backbone is to be trained on one image, or a
            checkpoint is damaged or cannot be written.
        KeyboardInterrupt: Ctrl-C.
    """
    from tagrank.training.batches import ListDataset
    from tagrank.training.loop import fit, load_best
    from tagrank.training.module import RankerModule

    lists, val_lists = images.lists(vocabulary), val_images.lists(vocabulary)
    if not any(val_lists):
        raise InputError(
            f"val: none of its tags is in the training images ({len(val_images)} and {len(images)} images); expected "
            "more images, or other images to validate on (--val)"
        )
    if backbone is not None and len(images) < 2:
        raise InputError(f"a backbone is trained on at least 2 images, got {len(images)}")
    finished = resume and is_finished(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = initial_ranker(images, lists, vocabulary, preset, backbone)
        module = RankerModule(ranker, preset, val_images.references(vocabulary), backbone)
        if not finished:
            train, val = (
                ListDataset(module.prepare(inputs), of_images, vocabulary.end, ranker.steps)
                for inputs, of_images in ((images.inputs, lists), (val_images.inputs, val_lists))
            )
            history = fit(
                module,
                train,
                val,
                folder,
                seed=seed,
                device=device,
                resume=resume,
                progress=progress,
                processes=processes,
            )
    load_best(module, folder)
    if not finished:
        write_history(folder, history)
    module.eval()  # the backbone too: its features are computed next
    return ranker


def initial_ranker(
    images: LabelledImages, lists: Lists, vocabulary: Vocabulary, preset: Preset, backbone: Backbone | None
) -> Ranker:
    """The ranker before its first training step; the arguments are those of :func:`fit_ranker`."""
    if backbone is not None:
        # The features change while they are learned, and a root has no gradient at zero.
        preset = replace(preset, signed_root=False, standardise=False)
    if preset.conditioning == "initial":
        # A captioning LSTM sees the image only once.
        preset = replace(preset, skip=False)
    if preset.feedback or preset.conditioning == "initial":
        # Models that read their own tags cannot be averaged.
        preset = replace(preset, members=1)
    ranker = build_ranker(
        {
            "feature_size": images.inputs.shape[1] if backbone is None else backbone.feature_size,
            "num_tags": len(vocabulary),
            "max_length": max(len(tags) for image in lists for tags in image),
            "conditioning": preset.conditioning,
            "feedback": preset.feedback,
            **preset.ranker_options(),
            **({} if preset.members == 1 else {"members": preset.members}),
        }
    )
    if backbone is None:
        ranker.standardise_by(images.inputs)
    if preset.start == "frequencies":
        ranker.start_at_frequencies(encode_lists(lists, vocabulary.end, ranker.steps))
    return ranker
