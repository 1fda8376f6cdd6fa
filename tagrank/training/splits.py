"""Which images of a manifest are trained on, and which are validated on."""

import torch

from tagrank.data.manifest import Manifest
from tagrank.errors import InputError

VAL_SPLITS = ("val", "validation")
SPLITS = (None, "train", "test", *VAL_SPLITS)
VAL_SHARE = 0.1


def split(manifest: Manifest, val: Manifest | None, seed: int) -> tuple[Manifest, Manifest]:
    """The images to train on and the images to validate on.

    Args:
        manifest: the images to train on are its :func:`training_part`.
        val: the images to validate on are those of its split ``val``, or all its images if it has no such split. With
            ``None`` they are the split ``val`` of ``manifest``, or else a tenth of its training part.
        seed: draws the tenth.

    Raises:
        InputError: an image is in both parts, or there are too few images for two parts.
    """
    part = training_part(manifest)
    source = val or manifest
    held_out = tuple(e for e in source.examples if e.split in VAL_SPLITS)
    if val is not None or held_out:
        chosen = Manifest(source.path, held_out or source.examples)
        check_apart(part, chosen)
        return part, chosen
    if len(part) < 2:
        expected = "at least 2 images, one to train on and one to validate on, or --val"
        raise InputError(f"{manifest.path}: expected {expected}; got {len(part)} to train on")
    kept, drawn = hold_out(len(part), seed)
    return (
        Manifest(manifest.path, tuple(part.examples[i] for i in kept)),
        Manifest(manifest.path, tuple(part.examples[i] for i in drawn)),
    )


def training_part(manifest: Manifest) -> Manifest:
    """The images of a manifest that may be trained on: all that are not in the splits ``test`` and ``val``.

    Raises:
        InputError: there are none, or a split has an unknown name, whose meaning can only be guessed.
    """
    for example in manifest.examples:
        if example.split not in SPLITS:
            expected = ", ".join(split for split in SPLITS if split)
            raise InputError(f"{manifest.path}: split: expected one of {expected}; got {example.split!r}")
    examples = tuple(e for e in manifest.examples if e.split not in ("test", *VAL_SPLITS))
    if not examples:
        raise InputError(f"{manifest.path}: no images to train on: all are in the splits test and val")
    return Manifest(manifest.path, examples)


def check_apart(train: Manifest, judged: Manifest) -> None:
    """Make sure that no image is both in ``train`` and in ``judged``.

    Raises:
        InputError: an image is in both.
    """
    trained = {(train.root / example.image).resolve() for example in train.examples}
    for example in judged.examples:
        if (judged.root / example.image).resolve() in trained:
            raise InputError(f"{judged.path}: {example.image} is among the images to train on, in {train.path}")


def hold_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers below ``count`` in two parts, each ascending: nine tenths, and a tenth drawn with the seed.

    Raises:
        InputError: ``count`` is below 2, so that one part would be empty.
    """
    if count < 2:
        raise InputError(f"expected at least 2 images to train and validate on, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    share = max(1, round(VAL_SHARE * count))
    return sorted(order[share:]), sorted(order[:share])
