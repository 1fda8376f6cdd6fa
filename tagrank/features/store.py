"""The feature store: one vector per image, computed once.

A store is a folder::

    index.json                      {"spec": {...}, "dimension": D, "shards": [{"file": ..., "rows": n}, ...]}
    features-00000.safetensors      "features", float16 [n, D]; in its metadata "images", the n names in a JSON list
    ...

The index is the truth: a shard counts once the index names it, and both are replaced as a whole, so a writer may be
killed at any moment. It loses the rows that were not yet in a shard, at most ``rows_per_shard``. The index is written
anew with each shard, and so has no more than a few words for each; the names of a million images are in the shards.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagrank.data.files import is_utf8, parse_json, read_json, reason
from tagrank.data.shards import INDEX, ShardWriter, shard_name, some
from tagrank.errors import InputError

STEM = "features"


class Features:
    """Feature vectors by image name. Made by :func:`open_features`.

    Attributes:
        path: the store or file they come from.
        names: the images, in stored order.
        dimension: ``D``, the length of a vector.
        spec: what computed them (:attr:`tagrank.features.backbones.Backbone.spec`); None where the file does not say.
    """

    def __init__(
        self, path: Path, names: Sequence[str], blocks: Sequence[Tensor], dimension: int, spec: dict[str, str] | None
    ) -> None:
        self.path = path
        self.names = tuple(names)
        self.dimension = dimension
        self.spec = spec
        self._blocks = blocks
        self._starts = torch.tensor([0, *(len(block) for block in blocks)]).cumsum(0)
        self._row = {name: row for row, name in enumerate(self.names)}
        if len(self._row) < len(self.names):
            twice = next(name for row, name in enumerate(self.names) if self._row[name] != row)
            raise InputError(f"{path}: image {twice!r} is there twice")

    def rows(self, names: Sequence[str]) -> Tensor:
        """The vectors of some images, in the order asked for; an image may be asked for more than once.

        Returns:
            float32 ``[N, D]``, on the CPU.

        Raises:
            InputError: an image is not there, or its vector has NaN or infinite elements.
        """
        absent = [name for name in names if name not in self._row]
        if absent:
            raise InputError(f"{self.path}: no features of {some(absent)}")
        rows = torch.tensor([self._row[name] for name in names], dtype=torch.int64)
        output = torch.empty(len(names), self.dimension)
        # Block by block, each found once however many there are.
        order = rows.argsort()
        block_of, counts = torch.unique_consecutive(
            torch.searchsorted(self._starts, rows[order], right=True) - 1, return_counts=True
        )
        for number, here in zip(block_of.tolist(), order.split(counts.tolist()), strict=True):
            output[here] = self._blocks[number][rows[here] - self._starts[number]].float()
        finite = output.isfinite().all(dim=1)
        if not finite.all():
            broken = [names[row] for row in torch.nonzero(~finite).flatten().tolist()]
            raise InputError(f"{self.path}: expected finite features, got NaN or infinity for {some(broken)}")
        return output

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._row


def open_features(path: str | Path) -> Features:
    """Open a feature store, or an ``.npz`` file with ``images`` (names) and ``features`` (``[N, D]``, floating point).

    A store is memory-mapped: what is not asked for is not read. An ``.npz`` file is compressed, and is read as a whole.

    Raises:
        InputError: there is neither at ``path``; the index is damaged; a shard is missing, damaged or does not fit the
            index; an image is there twice.
    """
    path = Path(path)
    if not path.is_dir():
        return _open_npz(path)
    if not (path / INDEX).exists():
        raise InputError(f"{path}: expected a feature store, got a folder without {INDEX}")
    spec, dimension, shards = _read_index(path)
    names: list[str] = []
    blocks = []
    for file, rows in shards:
        images, block = _open_shard(path / file, rows, dimension)
        names.extend(images)
        blocks.append(block)
    return Features(path, names, blocks, dimension, spec)


class FeatureWriter(ShardWriter):
    """Adds features to a store, which it makes where there is none. A context manager; one writer at a time.

    To resume after an interruption, leave out the images in :attr:`done`::

        with FeatureWriter(folder, backbone.spec, backbone.feature_size) as writer:
            paths = [path for path in paths if str(path) not in writer.done]

    Args:
        folder: the store: a feature store, an empty folder, or not there yet.
        spec: what computes the features: backbone, weights, preprocessing.
        dimension: ``D``, the length of a vector.
        rows_per_shard: how many images a shard has; also how many are lost if the process is killed.

    Raises:
        InputError: the store holds features of another ``spec`` or ``dimension``, is damaged, is being written by
            another process, or the folder has something else in it.
    """

    kind = "a feature store"
    expected = "images that are not in the store yet"
    stem = STEM

    def __init__(self, folder: str | Path, spec: dict[str, str], dimension: int, rows_per_shard: int = 1024) -> None:
        if dimension < 1:
            raise ValueError(f"dimension: expected at least 1, got {dimension}")
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
        self.dimension = dimension
        self._spec = dict(spec)
        self._shards: list[tuple[str, int]] = []
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        super().__init__(folder, rows_per_shard)

    def add(self, names: Sequence[str], features: Tensor) -> None:
        """Add the features of some images. They are on the disk when their shard is full, or at the end.

        Args:
            names: ``n`` names of images that are not in :attr:`done`.
            features: floating point ``[n, D]``. They are stored in float16.

        Raises:
            ValueError: the shape does not fit, or an image is there already.
            InputError: a name is not UTF-8, a vector has elements that are NaN, infinite, or beyond float16's 65,504,
                or the disk is full.
        """
        if features.shape != (len(names), self.dimension) or not features.is_floating_point():
            raise ValueError(
                f"features: expected floating point [{len(names)}, {self.dimension}], "
                f"got {features.dtype} {list(features.shape)}"
            )
        self._check_new(names)
        foreign = [name for name in names if not is_utf8(name)]
        if foreign:
            raise InputError(f"expected names in UTF-8, got {some(foreign)}; rename the files")
        rows = features.detach().to("cpu", torch.float16)
        finite = rows.isfinite().all(dim=1)
        if not finite.all():
            broken = [names[row] for row in torch.nonzero(~finite).flatten().tolist()]
            raise InputError(f"expected finite features within float16's range, got others for {some(broken)}")
        self._names.extend(names)
        self._rows.append(rows)
        self._added(names)

    def _resume(self) -> set[str]:
        done: set[str] = set()
        if (self.folder / INDEX).exists():
            spec, dimension, self._shards = _read_index(self.folder)
            if (spec, dimension) != (self._spec, self.dimension):
                raise InputError(
                    f"{self.folder}: holds features of {_describe(spec, dimension)}; "
                    f"cannot add those of {_describe(self._spec, self.dimension)}"
                )
            for file, rows in self._shards:
                done.update(_open_shard(self.folder / file, rows, dimension)[0])
        if not self._recover([file for file, _ in self._shards]):
            self._write_index([])
        return done

    def _write_shard(self, count: int) -> None:
        from safetensors.torch import save

        rows = self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows)
        file = shard_name(STEM, len(self._shards))
        names = json.dumps(self._names[:count], ensure_ascii=False)
        self._write(file, [save({"features": rows[:count].contiguous()}, metadata={"images": names})])
        shards = [*self._shards, (file, count)]
        self._write_index(shards)
        self._shards = shards
        self._names = self._names[count:]
        self._rows = [rows[count:]]

    def _write_index(self, shards: Sequence[tuple[str, int]]) -> None:
        entries = [{"file": file, "rows": rows} for file, rows in shards]
        index = {"spec": self._spec, "dimension": self.dimension, "shards": entries}
        self._write(INDEX, [json.dumps(index, ensure_ascii=False).encode(), b"\n"])


def _read_index(folder: Path) -> tuple[dict[str, str], int, list[tuple[str, int]]]:
    path = folder / INDEX
    index = read_json(path)
    if not isinstance(index, dict) or index.keys() != {"spec", "dimension", "shards"}:
        raise InputError(f"{path}: expected the index of a feature store, got {index!r:.60}")
    spec, dimension, shards = index["spec"], index["dimension"], index["shards"]
    if not isinstance(spec, dict) or not all(isinstance(value, str) for value in spec.values()):
        raise InputError(f"{path}: spec: expected names with their texts, got {spec!r:.60}")
    if type(dimension) is not int or dimension < 1:
        raise InputError(f"{path}: dimension: expected a number above 0, got {dimension!r:.60}")
    if not isinstance(shards, list):
        raise InputError(f"{path}: shards: expected a list, got {shards!r:.60}")
    return spec, dimension, [_read_shard_entry(path, number, shard) for number, shard in enumerate(shards)]


def _read_shard_entry(path: Path, number: int, shard: Any) -> tuple[str, int]:
    expected = shard_name(STEM, number)
    if not isinstance(shard, dict) or shard.keys() != {"file", "rows"} or shard["file"] != expected:
        raise InputError(
            f"{path}: shards[{number}]: expected file {expected!r} and its number of rows, got {shard!r:.60}"
        )
    rows = shard["rows"]
    if type(rows) is not int or rows < 1:
        raise InputError(f"{path}: shards[{number}].rows: expected a number above 0, got {rows!r:.60}")
    return expected, rows


def _open_shard(path: Path, rows: int, dimension: int) -> tuple[list[str], Tensor]:
    """The shard's images, and its tensor, a view of the mapped file: reading elements reads their pages."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            images = parse_json((file.metadata() or {}).get("images", "null"))
    except OSError as error:
        raise InputError(f"{path}: missing or unreadable shard ({reason(error)})") from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged shard ({error})") from error
    if features.shape != (rows, dimension) or features.dtype != torch.float16:
        raise InputError(
            f"{path}: expected float16 [{rows}, {dimension}] by the index, got {features.dtype} {list(features.shape)}"
        )
    if not isinstance(images, list) or len(images) != rows or not all(isinstance(image, str) for image in images):
        raise InputError(f"{path}: images: expected the names of {rows} images, got {images!r:.60}")
    return images, features


def _open_npz(path: Path) -> Features:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: expected a feature store or an .npz file, got a single array")
        with archive:
            missing = [key for key in ("images", "features") if key not in archive]
            if missing:
                raise InputError(f"{path}: expected arrays 'images' and 'features', got {some(list(archive))}")
            images, features = archive["images"], archive["features"]
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a feature store, and not a readable .npz file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    if images.ndim != 1 or images.dtype.kind != "U":
        raise InputError(f"{path}: images: expected a vector of names, got {images.dtype} {list(images.shape)}")
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) != len(images):
        raise InputError(
            f"{path}: features: expected floating point [{len(images)}, D], got {features.dtype} {list(features.shape)}"
        )
    block = torch.from_numpy(features.astype(features.dtype.newbyteorder("="), copy=False))
    return Features(path, images.tolist(), [block], features.shape[1], None)


def _describe(spec: dict[str, str], dimension: int) -> str:
    return ", ".join([f"{key}={value!r}" for key, value in spec.items()] + [f"dimension={dimension}"])
