"""Which images a model was trained or validated on: 64 bits for each, kept in its folder.

An image goes by the name of its file, without folders, and by its features, so that it is known again where a manifest
was copied or images lie elsewhere. Of the features 32 signs count, of fixed projections: features that were rounded to
float16, or computed in another batch, have others for a few images in a thousand.
"""

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagrank.data.files import write_atomically
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.labelled import LabelledImages

SEEN = "seen.safetensors"
BATCH = 256

Digests = NDArray[np.uint64]


def digests(images: LabelledImages, backbone: Backbone | None = None) -> Digests:
    """What images are known by, ``[N]``.

    Args:
        images: the images.
        backbone: computes their features where they come as pixels.
    """
    dimension = images.inputs.shape[1] if backbone is None else backbone.feature_size
    # The legacy generator's numbers are the same in all versions of NumPy. Around their mean, as features that come
    # after a ReLU all point the same way.
    projections = torch.from_numpy(np.random.RandomState(0).standard_normal((dimension, 32)))
    projections -= projections.mean(dim=0)

    @torch.no_grad()
    def signs(batch: Tensor) -> Tensor:
        features = batch if backbone is None else backbone(batch.to(next(backbone.parameters())))
        return features.cpu().double() @ projections > 0

    keys = np.packbits(torch.cat([signs(batch) for batch in images.inputs.split(BATCH)]).numpy(), axis=1)
    names = (PurePosixPath(example.image).name.encode() for example in images.examples)
    both = (hashlib.blake2b(key.tobytes() + name, digest_size=8) for key, name in zip(keys, names, strict=True))
    return np.array([int.from_bytes(value.digest(), "little") for value in both], dtype=np.uint64)


def write_seen(folder: Path, *seen: Digests) -> None:
    """Keep in a model's folder what it has seen.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    write_atomically(folder / SEEN, [save({"images": np.unique(np.concatenate(seen))})])


def read_seen(folder: Path) -> Digests:
    """What the model in a folder has seen; nothing where it does not say.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / SEEN
    if not path.is_file():
        return np.empty(0, dtype=np.uint64)
    try:
        images: Digests = load(path.read_bytes())["images"]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path}: damaged: {error}") from error
    return images
