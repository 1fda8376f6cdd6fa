"""Images with people's lists of tags, as tensors to train a model on or to judge it by."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tagrank.data.files import is_utf8
from tagrank.data.manifest import Example, Manifest, read_manifest
from tagrank.data.spellings import find_file, image_key
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.extraction import extract_features
from tagrank.features.folders import images_below, is_folder, report_errors
from tagrank.features.images import use_image
from tagrank.features.picture_folder import check_some_there
from tagrank.features.store import Features, FeatureWriter, open_features
from tagrank.features.web_dataset import ShardImage, is_shard, shard_images
from tagrank.progress import track

S = TypeVar("S", Path, ShardImage, Path | ShardImage)


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


def share_of_lists(tag: str, lists: Sequence[Sequence[str]]) -> float:
    """The share of people's lists that have a tag."""
    return sum(tag in tags for tags in lists) / len(lists)


def load_labelled(
    manifest: Manifest,
    *,
    features: str | Path | None = None,
    backbone: Backbone | None = None,
    store: Path | None = None,
    images: str | Path | None = None,
    progress: bool = True,
    on_error: Callable[[InputError], None] | None = None,
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
        on_error: called with the error of each image that cannot be read or has no features. The image is then left
            out. If it is None, the error is raised.

    Raises:
        InputError: an image has no features or cannot be read, and ``on_error`` is None or no image is left; or both
            ``features`` and ``backbone`` are None.
    """
    root = manifest.root if images is None else Path(images)
    if features is None and (store is None or not store.exists()):
        check_some_there(manifest, root)
    if features is not None:
        return _stored(manifest, open_features(features), on_error)
    if backbone is None:
        raise InputError(f"{manifest.path}: features are needed: give a file of them, or a backbone to compute them")
    paths = {example.image: find_file(root, example.image) for example in manifest.examples}
    if any(p.requires_grad for p in backbone.parameters()):
        pixels = _pixels(backbone, track(paths.values(), "reading images", progress))
        return _readable(manifest, pixels, backbone.spec, on_error)
    if store is None:
        with closing(extract_features(backbone, paths.values())) as features_of:
            rows = track(features_of, "computing features", progress, len(paths))
            return _readable(manifest, (row for _, row in rows), backbone.spec, on_error)
    if on_error is None:
        write_features(backbone, paths, store, progress=progress)
        return _stored(manifest, open_features(store))
    failed: list[InputError] = []
    write_features(backbone, paths, store, on_error=lambda _, error: failed.append(error), progress=progress)
    _report(manifest, failed, on_error)
    return _stored(manifest, open_features(store), lambda _: None)


def _stored(
    manifest: Manifest, table: Features, on_error: Callable[[InputError], None] | None = None
) -> LabelledImages:
    """The images with their features from a file."""
    examples = manifest.examples
    if on_error is not None:
        absent = [example for example in examples if example.image not in table]
        examples = tuple(example for example in examples if example.image in table)
        errors = [InputError(f"{table.path}: no features of {example.image!r}") for example in absent]
        _report(manifest, errors, on_error)
    return LabelledImages(examples, table.rows([example.image for example in examples]), table.spec)


def _readable(
    manifest: Manifest,
    inputs: Iterable[Tensor | InputError],
    spec: dict[str, str],
    on_error: Callable[[InputError], None] | None,
) -> LabelledImages:
    """The images with these features or pixels, without those that have an error instead."""
    kept: list[tuple[Example, Tensor]] = []
    errors: list[InputError] = []
    for example, row in zip(manifest.examples, inputs, strict=True):
        if isinstance(row, Tensor):
            kept.append((example, row))
        elif on_error is None:
            raise row
        else:
            errors.append(row)
    if on_error is not None:
        _report(manifest, errors, on_error)
    return LabelledImages([example for example, _ in kept], torch.stack([row for _, row in kept]), spec)


def _report(manifest: Manifest, errors: Sequence[InputError], on_error: Callable[[InputError], None]) -> None:
    """Report the errors of single images. If no image is left, there is one error for all."""
    if len(errors) == len(manifest):
        raise InputError(f"{manifest.path}: none of {len(errors)} images is left; the first: {errors[0]}")
    for error in errors:
        on_error(error)


def _pixels(backbone: Backbone, paths: Iterable[Path]) -> Iterator[Tensor | InputError]:
    for path in paths:
        try:
            # Half precision is enough for 8-bit pixel values that were scaled to [-1, 1].
            yield use_image(path, backbone.transform).half()
        except InputError as error:
            yield error


def named_images(
    paths: Sequence[Path],
    root: Path | None = None,
    *,
    exclude_folders: Sequence[str] = (),
    on_error: Callable[[InputError], None] | None = None,
) -> dict[str, Path | ShardImage]:
    """Image files by their names in a feature store.

    Args:
        paths: folders, manifests (``.jsonl``), shards of a WebDataset (``.tar``) and images. An image in a folder is
            named by its path relative to the folder, an image of a manifest as in the manifest, an image in a shard as
            in the shard, any other image by its file name.
        root: the folder that the paths in manifests are relative to, if it is not the manifest's folder.
        exclude_folders: as for :func:`~tagrank.features.folders.find_images`.
        on_error: called with the error of each image whose name is not UTF-8, and of each folder or shard that cannot
            be read. If it is None, the error is raised.

    Raises:
        InputError: two images have the same name; a manifest cannot be read, or none of its images is there; or no
            image is left.
    """
    images: dict[str, Path | ShardImage] = {}
    errors: list[InputError] = []
    for path in paths:
        for name, image in _named(path, root, exclude_folders, errors):
            name = os.path.normpath(name)
            if not is_utf8(name):
                errors.append(InputError(f"{image}: its name is not UTF-8, which a store needs; rename the file"))
            elif os.path.abspath(str(images.setdefault(name, image))) != os.path.abspath(str(image)):
                raise InputError(f"{images[name]} and {image} would both be stored as {name!r}; use two stores")
    report_errors(errors, on_error if images else None)
    return images


def _named(
    path: Path, root: Path | None, exclude_folders: Sequence[str], errors: list[InputError]
) -> Iterator[tuple[str, Path | ShardImage]]:
    if path.suffix == ".jsonl":
        manifest, folder = read_manifest(path), root or path.parent
        check_some_there(manifest, folder)
        yield from ((e.image, find_file(folder, e.image)) for e in manifest.examples)
    elif is_folder(path):
        for file in images_below(path, exclude_folders, errors):
            yield file.relative_to(path).as_posix(), file
    elif is_shard(path):
        for image in shard_images(path, errors):
            yield image.name, image
    else:
        yield path.name, path


def write_features(
    backbone: Backbone,
    images: Mapping[str, S],
    store: str | Path,
    *,
    extract: Callable[[Backbone, Sequence[S]], Iterator[tuple[S, Tensor | InputError]]] = extract_features,
    on_error: Callable[[S, InputError], None] | None = None,
    progress: bool = True,
) -> int:
    """Compute the features of images that a store does not have yet, and add them to it.

    Args:
        backbone: computes the features.
        images: the image files, by their names in the store.
        store: the folder of the store.
        extract: computes the features, in the order of the images.
        on_error: called with each image that cannot be read and its error. If it is None, the error is raised.
        progress: show a progress bar on stderr.

    Returns:
        How many images were added.

    Raises:
        InputError: the store has features of another backbone, or an image cannot be read and ``on_error`` is None.
    """
    with FeatureWriter(store, backbone.spec, backbone.feature_size) as writer:
        names: dict[S, list[str]] = {}
        done = set(map(image_key, writer.done))
        for name, path in images.items():
            if image_key(name) not in done:
                names.setdefault(path, []).append(name)
        rows = extract(backbone, list(names))
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
