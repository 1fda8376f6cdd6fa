"""Which images a model was trained or validated on: a digest of 64 bits for each image, kept in the model's folder.

The digest of an image depends on its file name without folders and on its features. Hence an image is recognised after
a manifest was copied or images were moved. The features enter as the signs of 32 fixed projections. The signs change
for a few images in a thousand when features are rounded to float16 or computed in another batch.
"""

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from tagrank.data.files import write_atomically
from tagrank.errors import InputError
from tagrank.features.labelled import LabelledImages
from tagrank.model_files import SEEN

BATCH = 256

Digests = NDArray[np.uint64]


def digests(images: LabelledImages) -> Digests:
    """The digests of images with features, ``[N]``."""
    # The legacy generator draws the same numbers in all versions of NumPy. The mean is subtracted because features
    # after a ReLU are all positive: without it, a projection would have the same sign for nearly all images.
    projections = torch.from_numpy(np.random.RandomState(0).standard_normal((images.inputs.shape[1], 32)))
    projections -= projections.mean(dim=0)
    signs = [batch.cpu().double() @ projections > 0 for batch in images.inputs.split(BATCH)]
    keys = np.packbits(torch.cat(signs).numpy(), axis=1)
    names = (PurePosixPath(example.image).name.encode() for example in images.examples)
    both = (hashlib.blake2b(key.tobytes() + name, digest_size=8) for key, name in zip(keys, names, strict=True))
    return np.array([int.from_bytes(value.digest(), "little") for value in both], dtype=np.uint64)


def write_seen(folder: Path, *seen: Digests) -> None:
    """Write the digests of the images that a model has seen to its folder.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    write_atomically(folder / SEEN, [save({"images": np.unique(np.concatenate(seen))})])


def read_seen(folder: Path) -> Digests:
    """The digests of the images that the model in a folder has seen; none if the folder has no such file.

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
