"""Images with people's lists of tags, as tensors to train a model on or to judge it by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tagrank.data.files import is_utf8
from tagrank.data.manifest import Example, Manifest, read_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.extraction import all_readable, extract_features
from tagrank.features.images import find_images, use_image
from tagrank.features.store import FeatureWriter, open_features
from tagrank.progress import track


@dataclass(frozen=True)
class LabelledImages:
    """Images with people's lists of tags.

    Attributes:
        examples: ``N`` images, by name, with their lists.
        inputs: features ``[N, D]``, or pixels ``[N, 3, h, w]`` if the backbone is trained too.
        spec: ``Backbone.spec`` of the backbone that computed the features; None if it is not known.
    """

    examples: Sequence[Example]
    inputs: Tensor
    spec: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def check(self, dimension: int, spec: Mapping[str, str] | None) -> None:
        """Check that a model was trained on features of the same length and backbone.

        Args:
            dimension: ``D`` of the model.
            spec: ``Backbone.spec`` of the model; None if it is not known. Only what both specs say is compared.

        Raises:
            InputError: the features have another length, or another backbone computed them.
        """
        if self.inputs.shape[1] != dimension:
            raise InputError(f"features: expected {dimension} per image, got {self.inputs.shape[1]}")
        for key, value in (spec or {}).items():
            got = (self.spec or {}).get(key, value)
            if got != value:
                raise InputError(f"features: expected those of {key} {value!r}, got {got!r}")

    def take(self, indices: Sequence[int]) -> "LabelledImages":
        """The images with these row numbers."""
        return LabelledImages([self.examples[i] for i in indices], self.inputs[list(indices)], self.spec)

    def renamed(self, rename: Callable[[Sequence[str]], tuple[str, ...]]) -> "LabelledImages":
        """The same images, with each list renamed by a function such as :meth:`tagrank.decode.OutputTags.rename`."""
        examples = [
            replace(e, tags=rename(e.tags), lists=tuple(rename(tags) for tags in e.lists)) for e in self.examples
        ]
        return LabelledImages(examples, self.inputs, self.spec)

    def lists(self, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """The lists of each image, as tag indices. Tags outside the vocabulary are dropped, then empty lists."""
        return [[kept for tags in e.lists if (kept := vocabulary.encode(tags))] for e in self.examples]

    def references(self, vocabulary: Vocabulary) -> list[list[int]]:
        """The list that each image is judged by, as tag indices.

        Tags outside the vocabulary keep their places and get indices from ``len(vocabulary)`` on. No ranking has these
        indices, so that such a tag counts as missed. The same tag has the same index in all images.
        """
        unknown: dict[str, int] = {}
        return [
            [
                vocabulary.index(tag) if tag in vocabulary else unknown.setdefault(tag, len(vocabulary) + len(unknown))
                for tag in e.tags
            ]
            for e in self.examples
        ]


def load_labelled(
    manifest: Manifest,
    *,
    features: str | Path | None = None,
    backbone: Backbone | None = None,
    store: Path | None = None,
    images: str | Path | None = None,
    progress: bool = True,
) -> LabelledImages:
    """Load the images of a manifest with their features. Features are read from a file, or computed.

    Args:
        manifest: the images.
        features: a feature store or ``.npz`` file that has the features of all images.
        backbone: computes the features if ``features`` is None. A trainable backbone (``small_cnn``) computes none: the
            result has pixels, which it is trained on.
        store: a feature store for computed features, so that an interrupted run need not compute them again.
        images: the folder that image paths are relative to, if it is not the manifest's folder.
        progress: show a progress bar on stderr.

    Raises:
        InputError: an image has no features or cannot be read, or both ``features`` and ``backbone`` are None.
    """
    names = [example.image for example in manifest.examples]
    root = manifest.root if images is None else Path(images)
    if features is not None:
        table = open_features(features)
        return LabelledImages(manifest.examples, table.rows(names), table.spec)
    if backbone is None:
        raise InputError(f"{manifest.path}: features are needed: give a file of them, or a backbone to compute them")
    if any(p.requires_grad for p in backbone.parameters()):
        paths = track([root / name for name in names], "reading images", progress)
        # Half precision is enough for 8-bit pixel values that were scaled to [-1, 1].
        pixels = torch.stack([use_image(path, backbone.transform).half() for path in paths])
        return LabelledImages(manifest.examples, pixels, backbone.spec)
    if store is None:
        rows = all_readable(extract_features(backbone, [root / name for name in names]))
        inputs = torch.stack([row for _, row in track(rows, "computing features", progress, len(names))])
        return LabelledImages(manifest.examples, inputs, backbone.spec)
    write_features(backbone, {name: root / name for name in names}, store, progress=progress)
    return LabelledImages(manifest.examples, open_features(store).rows(names), backbone.spec)


def named_images(paths: Sequence[Path]) -> dict[str, Path]:
    """Image files by their names in a feature store.

    Args:
        paths: folders, manifests (``.jsonl``) and images. An image in a folder is named by its path relative to the
            folder, an image of a manifest as in the manifest, any other image by its file name.

    Raises:
        InputError: two images have the same name, a name is not UTF-8, or a folder or manifest cannot be read.
    """
    images: dict[str, Path] = {}
    for path in paths:
        if path.suffix == ".jsonl":
            named = {example.image: path.parent / example.image for example in read_manifest(path).examples}
        elif path.is_dir():
            named = {image.relative_to(path).as_posix(): image for image in find_images([path])}
        else:
            named = {path.name: path}
        for name, image in named.items():
            if not is_utf8(name):
                raise InputError(f"{image}: its name is not UTF-8, which a store needs; rename the file")
            if images.setdefault(name, image) != image:
                raise InputError(f"{images[name]} and {image} would both be stored as {name!r}; use two stores")
    return images


def write_features(
    backbone: Backbone,
    images: Mapping[str, Path],
    store: str | Path,
    *,
    on_error: Callable[[Path, InputError], None] | None = None,
    progress: bool = True,
) -> int:
    """Compute the features of images that a store does not have yet, and add them to it.

    Args:
        backbone: computes the features.
        images: the image files, by their names in the store.
        store: the folder of the store.
        on_error: called with each image that cannot be read and its error. If it is None, the error is raised.
        progress: show a progress bar on stderr.

    Returns:
        How many images were added.

    Raises:
        InputError: the store has features of another backbone, or an image cannot be read and ``on_error`` is None.
    """
    with FeatureWriter(store, backbone.spec, backbone.feature_size) as writer:
        names: dict[Path, list[str]] = {}
        for name, path in images.items():
            if name not in writer.done:
                names.setdefault(path, []).append(name)
        rows = extract_features(backbone, list(names))
        computed = 0
        for path, row in track(rows, "computing features", progress, len(names)):
            if isinstance(row, Tensor):
                writer.add(names[path], row.expand(len(names[path]), -1))
                computed += len(names[path])
            elif on_error is None:
                raise row
            else:
                on_error(path, row)
    return computed
