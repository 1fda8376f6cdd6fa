"""Images with people's lists, as tensors: what a model is trained or judged on."""

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
from tagrank.features.images import find_images, read_image
from tagrank.features.store import FeatureWriter, open_features
from tagrank.progress import track


@dataclass(frozen=True)
class LabelledImages:
    """Images and what people said of them.

    Attributes:
        examples: ``N`` of them.
        inputs: features ``[N, D]``, or pixels ``[N, 3, h, w]`` where the backbone is to be trained too.
        spec: ``Backbone.spec`` of what computed the features, as far as it is known.
    """

    examples: Sequence[Example]
    inputs: Tensor
    spec: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def check(self, dimension: int, spec: Mapping[str, str] | None) -> None:
        """Make sure that the features are of the kind a model was trained on.

        Args:
            dimension: their length, ``D``.
            spec: what computed them, as far as it is known.

        Raises:
            InputError: they have another length, or another backbone computed them.
        """
        if self.inputs.shape[1] != dimension:
            raise InputError(f"features: expected {dimension} per image, got {self.inputs.shape[1]}")
        for key, value in (spec or {}).items():
            got = (self.spec or {}).get(key, value)
            if got != value:
                raise InputError(f"features: expected those of {key} {value!r}, got {got!r}")

    def take(self, indices: Sequence[int]) -> "LabelledImages":
        """Some of the images, by number."""
        return LabelledImages([self.examples[i] for i in indices], self.inputs[list(indices)], self.spec)

    def renamed(self, rename: Callable[[Sequence[str]], tuple[str, ...]]) -> "LabelledImages":
        """The same images with people's lists under other names, such as :meth:`tagrank.decode.OutputTags.rename`."""
        examples = [
            replace(e, tags=rename(e.tags), lists=tuple(rename(tags) for tags in e.lists)) for e in self.examples
        ]
        return LabelledImages(examples, self.inputs, self.spec)

    def lists(self, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """For each image its lists by index. Tags outside the vocabulary are left out, then lists without a tag."""
        return [[kept for tags in e.lists if (kept := vocabulary.encode(tags))] for e in self.examples]

    def references(self, vocabulary: Vocabulary) -> list[list[int]]:
        """For each image the one list it is judged by.

        Tags outside the vocabulary keep their places, under indices that no ranking can name: missing them counts. All
        images have the same index for the same tag.
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
    """The images of a manifest with their features, read where they are given, else computed.

    Args:
        manifest: the images.
        features: a feature store or ``.npz`` file that has them all.
        backbone: computes features; a trainable one (``small_cnn``) leaves pixels, which are then trained on.
        store: a feature store to keep computed features in, so that an interrupted run need not compute them again.
        images: the folder that image paths are relative to, where it is not the manifest's own.
        progress: show a progress bar, on stderr.

    Raises:
        InputError: an image has no features or cannot be read, or there are neither features nor a backbone.
    """
    names = [example.image for example in manifest.examples]
    root = manifest.root if images is None else Path(images)
    if features is not None:
        table = open_features(features)
        return LabelledImages(manifest.examples, table.rows(names), table.spec)
    if backbone is None:
        raise InputError(f"{manifest.path}: features are needed: a file with them, or a backbone to compute them with")
    if any(p.requires_grad for p in backbone.parameters()):
        paths = track([root / name for name in names], "reading images", progress)
        # Half precision: an 8-bit pixel value between -1 and 1 loses nothing that matters.
        pixels = torch.stack([backbone.transform(read_image(path)).half() for path in paths])
        return LabelledImages(manifest.examples, pixels, backbone.spec)
    if store is None:
        rows = all_readable(extract_features(backbone, [root / name for name in names]))
        inputs = torch.stack([row for _, row in track(rows, "computing features", progress, len(names))])
        return LabelledImages(manifest.examples, inputs, backbone.spec)
    write_features(backbone, {name: root / name for name in names}, store, progress=progress)
    return LabelledImages(manifest.examples, open_features(store).rows(names), backbone.spec)


def named_images(paths: Sequence[Path]) -> dict[str, Path]:
    """Image files by the names that a feature store has for them.

    Args:
        paths: a folder names the images below it by their paths relative to it; a manifest (``.jsonl``) names its
            images as it does; an image is named by its file name.

    Raises:
        InputError: two images have the same name, or a folder or manifest is not what it should be.
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
                raise InputError(f"{image}: its name is not UTF-8, which a store's index is; rename it")
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
    """Add the features of images to a store; what it has already is not computed again.

    Args:
        backbone: computes them.
        images: the files, by the names that the store has for them.
        store: the folder of the store.
        on_error: called with an image that cannot be read, and why; left out, the error is raised.
        progress: show a progress bar, on stderr.

    Returns:
        How many were computed.

    Raises:
        InputError: the store has features of another backbone, or an image cannot be read and there is no ``on_error``.
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
