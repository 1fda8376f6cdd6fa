"""The index on disk: a model's predictions for each photograph, laid out so that a query reads only its own columns.

An index is a folder that :mod:`tagrank.data.shards` describes, with these files::

    index.json                   {"format": 1, "model": DIGEST, "tags": [...], "positions": S, "shards": [n, n, ...]}
    photos-00000.safetensors     n photographs:
                                   "log_p"    float16 [S, V, n]   log p_t(v), contiguous for one position t and tag v
                                   "gains"    float16 [n, V]      expected gain of each tag, scaled to length 1
                                   "names"    uint8 [...]         the names in UTF-8, one after the other
                                   "offsets"  int64 [n + 1]       where each name begins, and where the last name ends
    ...

A writer that is killed loses at most ``photos_per_shard`` photographs.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.data.files import read_json
from tagrank.data.mapped import map_tensors, will_need
from tagrank.data.shards import INDEX, ShardWriter, shard_name
from tagrank.decode.positions import expected_gains
from tagrank.errors import InputError

FORMAT = 1
PREFIX = "photos"
FLOOR = -100.0
"""The smallest log probability that is stored."""

HalfArray = NDArray[np.float16]


@dataclass(frozen=True)
class Contents:
    """The content of ``index.json``.

    Attributes:
        model: :func:`digest` of the model that made the predictions.
        tags: the model's tags, in the order of its vocabulary.
        positions: ``S`` of the model.
        shards: how many photographs each shard has.
    """

    model: str
    tags: tuple[str, ...]
    positions: int
    shards: tuple[int, ...] = ()


def digest(annotator: Annotator) -> str:
    """A digest of a model's vocabulary and of its ranker's configuration and weights."""
    value = hashlib.sha256(json.dumps([annotator.ranker.config(), annotator.vocabulary.tags]).encode())
    for name, tensor in sorted(annotator.ranker.state_dict().items()):
        value.update(name.encode())
        value.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return value.hexdigest()[:32]


def photo_tables(probabilities: Tensor) -> tuple[HalfArray, HalfArray]:
    """Compute what an index stores for photographs.

    Args:
        probabilities: ``[n, S, V + 1]``, from :meth:`tagrank.annotator.Annotator.probabilities`, without feedback.

    Returns:
        ``log p_t(v)`` ``[n, S, V]``, and the expected gains ``sum_t w_t P(list reaches t) p_t(v)`` ``[n, V]``,
        ``w_t = 1/log2(1+t)``, divided by their Euclidean length; both float16.
    """
    p = probabilities.double().cpu().numpy()
    gains = expected_gains(p)
    gains /= np.maximum(np.linalg.norm(gains, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    log_p = np.log(np.maximum(p[..., :-1], np.exp(FLOOR)))
    return log_p.astype(np.float16), gains.astype(np.float16)


class IndexWriter(ShardWriter):
    """Adds photographs to an index, which it creates if necessary. A context manager; only one writer at a time.

    To resume after an interruption, leave out the photographs in :attr:`done`.

    Args:
        folder: an index, an empty folder, or a folder that does not exist yet.
        annotator: the model. It must be without feedback: with feedback, distributions depend on the chosen tags.
        photos_per_shard: how many photographs a shard has, and at most how many are lost if the process is killed.

    Raises:
        InputError: the model has feedback, the index is of another model or damaged, another process is writing to it,
            or the folder has other files in it.
    """

    kind = "an index"
    prefix = PREFIX
    expected = "photographs that are not there yet"

    def __init__(self, folder: str | Path, annotator: Annotator, photos_per_shard: int = 4096) -> None:
        if photos_per_shard < 1:
            raise ValueError(f"photos_per_shard: expected at least 1, got {photos_per_shard}")
        if annotator.ranker.feedback:
            raise InputError(
                "an index needs distributions that do not depend on chosen tags; this model reads its own tags: train "
                "a model with the image at every step and without feedback"
            )
        self._contents = Contents(digest(annotator), annotator.vocabulary.tags, annotator.ranker.steps)
        self._parts: list[tuple[list[str], HalfArray, HalfArray]] = []
        super().__init__(folder, photos_per_shard)

    def add(self, names: Sequence[str], probabilities: Tensor) -> None:
        """Add photographs. They are written when their shard is full, or when the writer is closed.

        Args:
            names: ``n`` names that are not in :attr:`done`.
            probabilities: ``[n, S, V + 1]``, from :meth:`tagrank.annotator.Annotator.probabilities`.

        Raises:
            ValueError: the shape is wrong, a photograph is there already, or the writer is closed.
            InputError: the disk is full.
        """
        expected = (len(names), self._contents.positions, len(self._contents.tags) + 1)
        if probabilities.shape != expected:
            raise ValueError(f"probabilities: expected shape {list(expected)}, got {list(probabilities.shape)}")
        self._check_new(names)
        self._parts.append((list(names), *photo_tables(probabilities)))
        self._added(names)

    def _read(self) -> tuple[Sequence[int], set[str]]:
        there = read_contents(self.folder)
        if replace(there, shards=()) != self._contents:
            raise InputError(f"{self.folder}: is the index of another model; use another folder")
        names: set[str] = set()
        for number, count in enumerate(there.shards):
            names.update(Shard(self.folder, number, count, there).names())
        return there.shards, names

    def _index(self, shards: Sequence[int]) -> dict[str, Any]:
        return {"format": FORMAT, **vars(self._contents), "shards": shards}

    def _shard(self, count: int) -> bytes:
        from safetensors.numpy import save

        names = [name for part, _, _ in self._parts for name in part]
        log_p = np.concatenate([part for _, part, _ in self._parts])
        gains = np.concatenate([part for _, _, part in self._parts])
        self._parts = [(names, log_p, gains)]
        encoded = [os.fsencode(name) for name in names[:count]]
        return save(
            {
                "log_p": np.ascontiguousarray(log_p[:count].transpose(1, 2, 0)),
                "gains": gains[:count].copy(),
                "names": np.frombuffer(b"".join(encoded), dtype=np.uint8),
                "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
            }
        )

    def _forget(self, count: int) -> None:
        ((names, log_p, gains),) = self._parts
        self._parts = [(names[count:], log_p[count:], gains[count:])]


class Shard:
    """A memory-mapped part of an index: only what is used is read.

    Attributes:
        log_p: float16 ``[S, V, n]``.
        gains: float16 ``[n, V]``.

    Raises:
        InputError: the file is missing or damaged, or does not fit the index.
    """

    def __init__(self, folder: Path, number: int, count: int, contents: Contents) -> None:
        tags = len(contents.tags)
        tensors = map_tensors(
            folder / shard_name(PREFIX, number),
            {
                "log_p": (torch.float16, [contents.positions, tags, count]),
                "gains": (torch.float16, [count, tags]),
                "names": (torch.uint8, [None]),
                "offsets": (torch.int64, [count + 1]),
            },
        )
        self.log_p, self.gains = tensors["log_p"], tensors["gains"]
        self._names, self._offsets = tensors["names"], tensors["offsets"]

    def name(self, row: int) -> str:
        """The name of the photograph with this row number in the shard."""
        start, end = self._offsets[row : row + 2].tolist()
        return os.fsdecode(self._names[start:end].numpy().tobytes())

    def names(self) -> list[str]:
        """The names of all photographs."""
        text, ends = self._names.numpy().tobytes(), self._offsets.tolist()
        return [os.fsdecode(text[a:b]) for a, b in pairwise(ends)]

    def row(self, name: str) -> int | None:
        """The row number of a photograph in the shard, or None if it is not there."""
        wanted = np.frombuffer(os.fsencode(name), dtype=np.uint8)
        offsets = self._offsets.numpy()
        rows = np.flatnonzero(np.diff(offsets) == len(wanted))
        letters = self._names.numpy()[offsets[rows, None] + np.arange(len(wanted))]
        found = rows[(letters == wanted).all(axis=1)]
        return int(found[0]) if len(found) else None

    def fetch(self, positions: Sequence[int], tags: Sequence[int]) -> None:
        """Have the columns ``log_p[positions[i], tags[i]]`` fetched from disk, without waiting for them."""
        for position, tag in zip(positions, tags, strict=True):
            will_need(self.log_p[position, tag])

    def fetch_gains(self) -> None:
        """Have ``gains`` fetched from disk, without waiting for them."""
        will_need(self.gains)

    def fetch_names(self) -> None:
        """Have the names fetched from disk, without waiting for them."""
        will_need(self._names)
        will_need(self._offsets)


def read_contents(folder: Path) -> Contents:
    """Read ``index.json`` of an index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: expected an index of photographs, but {INDEX} is not there")
    record: Any = read_json(path)
    fields = {"format", "model", "tags", "positions", "shards"}
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.keys() != fields:
        raise InputError(f"{path}: expected an index of format {FORMAT}, got {record!r:.60}")
    tags, positions, shards = record["tags"], record["positions"], record["shards"]
    whole = [positions, *shards] if isinstance(shards, list) else [None]
    strings = [record["model"], *tags] if isinstance(tags, list) and tags else [None]
    if not all(type(n) is int and n > 0 for n in whole) or not all(isinstance(s, str) for s in strings):
        raise InputError(
            f"{path}: expected tags, and positive numbers of positions and photographs; got {record!r:.60}"
        )
    return Contents(record["model"], tuple(tags), positions, tuple(shards))
