"""The feature store: one feature vector per image, computed once.

A store is a folder that :mod:`tagrank.data.shards` describes, with these files::

    index.json                      {"spec": {...}, "dimension": D,
                                     "shards": [{"file": ..., "rows": n, "sha256": DIGEST}, ...]}
    features-00000.safetensors      "features", float16 [n, D]; "crc32", int64 [n], the checksum of each row;
                                    in its metadata "images", the n names in a JSON list
    ...

The digest is of the names and the checksums. It is compared when the store is opened, and the checksum of a row when
the row is read. Hence no row is read that nobody asked for. Shards that an earlier version wrote have neither.

A writer that is killed loses at most ``rows_per_shard`` rows. The names of the images are in the shards and not in the
index, because the index is written again with each shard: with the names of a million images it would be large.
"""

import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagrank.data.files import first_line, is_utf8, parse_json, reason
from tagrank.data.schema import Positive, read_as
from tagrank.data.shards import INDEX, Entry, ShardWriter, shard_name, some
from tagrank.data.spellings import image_key
from tagrank.errors import InputError

PREFIX = "features"
MAX_INFLATION = 50
"""How many times as large as its file the content of an ``.npz`` may be, beyond 64 MB."""


class Features:
    """Feature vectors by image name. Made by :func:`open_features`.

    Attributes:
        path: the store or the file.
        names: the images, in stored order.
        dimension: ``D``, the length of a vector.
        spec: :attr:`tagrank.features.backbones.Backbone.spec` of the backbone that computed the vectors; None if the
            file does not say.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        blocks: Sequence["Block"],
        dimension: int,
        spec: dict[str, str] | None,
    ) -> None:
        self.path = path
        self.names = tuple(names)
        self.dimension = dimension
        self.spec = spec
        self._blocks = blocks
        self._starts = torch.tensor([0, *(len(block.features) for block in blocks)]).cumsum(0)
        self._row = {name: row for row, name in enumerate(self.names)}
        self._by_key: dict[str, int] = {}
        if len(self._row) < len(self.names):
            twice = next(name for row, name in enumerate(self.names) if self._row[name] != row)
            raise InputError(f"{path}: expected each image once, but image {twice!r} is there twice")

    def rows(self, names: Sequence[str]) -> Tensor:
        """The vectors of images.

        Args:
            names: ``N`` images, in any spelling (:func:`tagrank.data.spellings.image_key`); repetitions are allowed.

        Returns:
            float32 ``[N, D]``, on the CPU, in the order of ``names``.

        Raises:
            InputError: an image is not there, or its vector is damaged or has NaN or infinite elements.
        """
        numbers = [self._number(name) for name in names]
        absent = [name for name, number in zip(names, numbers, strict=True) if number is None]
        if absent:
            raise InputError(f"{self.path}: no features of {some(absent)}")
        rows = torch.tensor(numbers, dtype=torch.int64)
        output = torch.empty(len(names), self.dimension)
        # Sorted by row, so that each block is indexed once, for all its rows.
        order = rows.argsort()
        block_of, counts = torch.unique_consecutive(
            torch.searchsorted(self._starts, rows[order], right=True) - 1, return_counts=True
        )
        for number, here in zip(block_of.tolist(), order.split(counts.tolist()), strict=True):
            output[here] = self._blocks[number].rows(rows[here] - self._starts[number]).float()
        finite = output.isfinite().all(dim=1)
        if not finite.all():
            broken = [names[row] for row in torch.nonzero(~finite).flatten().tolist()]
            raise InputError(f"{self.path}: expected finite features, got NaN or infinity for {some(broken)}")
        return output

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._number(name) is not None

    def _number(self, name: str) -> int | None:
        number = self._row.get(name)
        if number is None:
            # Most files need no second table: their names are spelled as those that are asked for.
            self._by_key = self._by_key or {image_key(other): row for other, row in self._row.items()}
            number = self._by_key.get(image_key(name))
        return number


@dataclass(frozen=True)
class Block:
    """The vectors of a shard.

    Attributes:
        path: the shard, for error messages.
        features: ``[n, D]``.
        checksums: int64 ``[n]``, the CRC-32 of each row; None if the file has none.
    """

    path: Path
    features: Tensor
    checksums: Tensor | None = None

    def rows(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers.

        Raises:
            InputError: a row is not what was written.
        """
        if self.checksums is not None:
            data, right = self.features.numpy(), self.checksums[numbers].tolist()
            for number, checksum in zip(numbers.tolist(), right, strict=True):
                if zlib.crc32(data[number]) != checksum:
                    raise InputError(
                        f"{self.path}: damaged: row {number} has another checksum than when it was written"
                    )
        return self.features[numbers]


def open_features(path: str | Path) -> Features:
    """Open a feature store, or an ``.npz`` file with ``images`` (names) and ``features`` (``[N, D]``, floating point).

    A store is memory-mapped: only the vectors that :meth:`Features.rows` returns are read. An ``.npz`` file is read as
    a whole, because it may be compressed.

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
    for number, entry in enumerate(shards):
        images, block = _open_shard(path / shard_name(PREFIX, number), entry, dimension)
        names.extend(images)
        blocks.append(block)
    return Features(path, names, blocks, dimension, spec)


class FeatureWriter(ShardWriter):
    """Adds features to a store, which it creates if necessary. A context manager; only one writer at a time.

    To resume after an interruption, leave out the images in :attr:`done`::

        with FeatureWriter(folder, backbone.spec, backbone.feature_size) as writer:
            paths = [path for path in paths if str(path) not in writer.done]

    Args:
        folder: a feature store, an empty folder, or a folder that does not exist yet.
        spec: :attr:`tagrank.features.backbones.Backbone.spec` of the backbone that computes the features.
        dimension: ``D``, the length of a vector.
        rows_per_shard: how many images a shard has, and at most how many are lost if the process is killed.

    Raises:
        InputError: the store holds features of another ``spec`` or ``dimension``, is damaged, another process is
            writing to it, or the folder has other files in it.
    """

    kind = "a feature store"
    prefix = PREFIX
    expected = "images that are not in the store yet"

    def __init__(self, folder: str | Path, spec: dict[str, str], dimension: int, rows_per_shard: int = 1024) -> None:
        if dimension < 1:
            raise ValueError(f"dimension: expected at least 1, got {dimension}")
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
        self.dimension = dimension
        self._spec = dict(spec)
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        super().__init__(folder, rows_per_shard)

    def add(self, names: Sequence[str], features: Tensor) -> None:
        """Add the features of images. They are written when their shard is full, or when the writer is closed.

        Args:
            names: ``n`` names of images that are not in :attr:`done`.
            features: floating point ``[n, D]``, stored in float16.

        Raises:
            ValueError: the shape or the dtype of ``features`` is wrong, an image is there already, or the writer is
                closed.
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
            raise InputError(
                f"expected finite features of at most 65,504 (float16), got NaN, infinity or more for {some(broken)}"
            )
        self._names.extend(names)
        self._rows.append(rows)
        self._added(names)

    def _read(self) -> tuple[list[Entry], set[str]]:
        spec, dimension, shards = _read_index(self.folder)
        if (spec, dimension) != (self._spec, self.dimension):
            raise InputError(
                f"{self.folder}: holds features of {_describe(spec, dimension)}; "
                f"cannot add features of {_describe(self._spec, self.dimension)}; use another folder"
            )
        done: set[str] = set()
        for number, entry in enumerate(shards):
            done.update(_open_shard(self.folder / shard_name(PREFIX, number), entry, dimension)[0])
        return shards, done

    def _index(self, shards: Sequence[Entry]) -> dict[str, Any]:
        entries = [
            {"file": shard_name(PREFIX, number), "rows": rows} | ({} if digest is None else {"sha256": digest})
            for number, (rows, digest) in enumerate(shards)
        ]
        return {"spec": self._spec, "dimension": self.dimension, "shards": entries}

    def _shard(self, count: int) -> tuple[bytes, str]:
        from safetensors.torch import save

        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows)]
        names = json.dumps(self._names[:count], ensure_ascii=False)
        features = self._rows[0][:count].contiguous()
        checksums = torch.tensor([zlib.crc32(row) for row in features.numpy()])
        content = save({"features": features, "crc32": checksums}, metadata={"images": names})
        return content, _digest(names, checksums)

    def _forget(self, count: int) -> None:
        self._names = self._names[count:]
        self._rows = [self._rows[0][count:]]


def _digest(names: str, checksums: Tensor) -> str:
    return hashlib.sha256(names.encode(errors="surrogatepass") + checksums.numpy().astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class _ShardEntry:
    file: str
    rows: Positive
    sha256: str | None = None


@dataclass(frozen=True)
class _Index:
    """The content of ``index.json``."""

    spec: dict[str, str]
    dimension: Positive
    shards: tuple[_ShardEntry, ...]


def _read_index(folder: Path) -> tuple[dict[str, str], int, list[Entry]]:
    """The spec, the dimension, and the shards."""
    path = folder / INDEX
    index = read_as(path, _Index, "the index of a feature store", sealed=True)
    for number, shard in enumerate(index.shards):
        expected = shard_name(PREFIX, number)
        if shard.file != expected:
            raise InputError(f"{path}: shards[{number}].file: expected {expected!r}, got {shard.file!r:.60}")
    return index.spec, index.dimension, [Entry(shard.rows, shard.sha256) for shard in index.shards]


def _open_shard(path: Path, entry: Entry, dimension: int) -> tuple[list[str], Block]:
    """The images of a shard, and their features: a view of the mapped file, of which only pages in use are read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            text = (file.metadata() or {}).get("images", "null")
            images = parse_json(text)
            checksums = None if entry.digest is None else file.get_tensor("crc32")
    except OSError as error:
        raise InputError(f"{path}: missing or unreadable shard ({reason(error)})") from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged shard ({error})") from error
    rows = entry.size
    if features.shape != (rows, dimension) or features.dtype != torch.float16:
        raise InputError(
            f"{path}: features: expected float16 [{rows}, {dimension}] according to the index, "
            f"got {features.dtype} {list(features.shape)}"
        )
    if not isinstance(images, list) or len(images) != rows or not all(isinstance(image, str) for image in images):
        raise InputError(f"{path}: images: expected the names of {rows} images, got {images!r:.60}")
    foreign = [image for image in images if not is_utf8(image)]
    if foreign:
        raise InputError(f"{path}: images: expected names in UTF-8, got {some(foreign)}")
    if checksums is not None:
        if checksums.shape != (rows,) or checksums.dtype != torch.int64:
            raise InputError(f"{path}: crc32: expected int64 [{rows}], got {checksums.dtype} {list(checksums.shape)}")
        if _digest(text, checksums) != entry.digest:
            raise InputError(f"{path}: damaged: its digest is not the one in {INDEX}")
    return images, Block(path, features, checksums)


def _open_npz(path: Path) -> Features:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: expected a feature store or an .npz file, got a single array")
        with archive:
            _check_size(path)
            missing = [key for key in ("images", "features") if key not in archive]
            if missing:
                raise InputError(f"{path}: expected arrays 'images' and 'features', got {some(list(archive))}")
            images, features = archive["images"], archive["features"]
        if not isinstance(images, np.ndarray) or not isinstance(features, np.ndarray):
            raise ValueError("'images' or 'features' is no array")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of exceptions on a damaged file
        raise InputError(f"{path}: not a feature store, and not a readable .npz file ({first_line(error)})") from error
    names = _npz_names(path, images)
    shape, dtype = features.shape, features.dtype
    if dtype.kind != "f" or dtype.itemsize > 8 or features.ndim != 2 or shape[0] != len(images) or shape[1] == 0:
        expected = f"floating point [{len(images)}, D] with D of at least 1"
        raise InputError(f"{path}: features: expected {expected}, got {dtype} {list(shape)}")
    block = torch.from_numpy(features.astype(features.dtype.newbyteorder("="), copy=False))
    return Features(path, names, [Block(path, block)], features.shape[1], None)


def _npz_names(path: Path, images: NDArray[Any]) -> list[str]:
    if images.ndim != 1 or images.dtype.kind != "U":
        raise InputError(f"{path}: images: expected a vector of names, got {images.dtype} {list(images.shape)}")
    codes = np.frombuffer(images.astype(images.dtype.newbyteorder("=")).tobytes(), np.uint32)
    # NumPy would make texts of these that Python fails to read.
    beyond = codes[codes > sys.maxunicode]
    if len(beyond):
        raise InputError(f"{path}: images: expected names in Unicode, got the character {beyond[0]:#x}")
    names: list[str] = images.tolist()
    foreign = [name for name in names if not is_utf8(name)]
    if foreign:
        raise InputError(f"{path}: images: expected names in Unicode, got {some(foreign)}")
    return names


def _check_size(path: Path) -> None:
    """Refuse an archive that is far larger than its file, and would fill the memory. Features hardly compress."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    limit = MAX_INFLATION * path.stat().st_size + (64 << 20)
    if size > limit:
        raise InputError(
            f"{path}: expected arrays of at most {limit >> 20} MB in a file of this size, got {size >> 20} MB"
        )


def _describe(spec: dict[str, str], dimension: int) -> str:
    return ", ".join([f"{key}={value!r}" for key, value in spec.items()] + [f"dimension={dimension}"])
