"""``index.json`` of an index: which shards it has, of which model."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tagrank.data.schema import Positive, Rule, Text, read_as
from tagrank.data.shards import INDEX
from tagrank.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """The content of ``index.json``.

    Attributes:
        model: :func:`digest` of the model that made the predictions.
        tags: the model's tags, in the order of its vocabulary.
        positions: ``S`` of the model.
        shards: how many photographs each shard has.
        digests: the digest of each shard; None if an earlier version wrote it.
        removed: the rows of photographs that left the index, in ascending order.
        numbers: the number in each shard's file name. A number is not used again.
        root: the folder that names begin in if they are relative paths; None if it is not known, or they are no paths.
    """

    model: str
    tags: tuple[str, ...]
    positions: int
    shards: tuple[int, ...] = ()
    digests: tuple[str | None, ...] = ()
    removed: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    root: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON. What earlier versions do not know is left out if it says nothing."""
        record = {"format": FORMAT, **vars(self)}
        nothing = {"removed": (), "numbers": tuple(range(len(self.shards))), "root": None}
        return {key: value for key, value in record.items() if key not in nothing or value != nothing[key]}


@dataclass(frozen=True)
class _File:
    format: Literal[1]
    model: str
    tags: Annotated[tuple[Text, ...], Rule("at least one tag", bool)]
    positions: Positive
    shards: tuple[Positive, ...]
    digests: tuple[str | None, ...] | None = None
    removed: tuple[int, ...] = ()
    numbers: tuple[int, ...] | None = None
    root: Text | None = None


def read_contents(folder: Path) -> Contents:
    """Read ``index.json`` of an index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: expected an index of photographs, but {INDEX} is not there")
    file = read_as(path, _File, f"an index of format {FORMAT}", sealed=True)
    tags, shards = file.tags, file.shards
    if len(set(tags)) < len(tags):
        ((twice, _),) = Counter[str](tags).most_common(1)
        raise InputError(f"{path}: tags: expected each tag once, got {twice!r:.60} twice")
    digests = (None,) * len(shards) if file.digests is None else file.digests
    if len(digests) != len(shards):
        raise InputError(f"{path}: digests: expected one for each of {len(shards)} shards, got {len(digests)}")
    removed = file.removed
    if list(removed) != sorted(set(removed)) or (removed and not 0 <= removed[0] <= removed[-1] < sum(shards)):
        raise InputError(f"{path}: removed: expected rows of {sum(shards)} photographs in ascending order")
    numbers = tuple(range(len(shards))) if file.numbers is None else file.numbers
    if len(numbers) != len(shards) or len(set(numbers)) < len(numbers) or min(numbers, default=0) < 0:
        raise InputError(f"{path}: numbers: expected one of its own for each shard, got {list(numbers)!r:.60}")
    return Contents(file.model, tags, file.positions, shards, digests, removed, numbers, file.root)
