"""The XMP file beside a photograph: which one it is, and whether it is the photograph's own."""

import os
from collections import Counter
from enum import Enum
from pathlib import Path

from tagrank.errors import InputError
from tagrank.features.folders import OTHERS, SUFFIXES


class Naming(str, Enum):
    """How a new sidecar of ``a.jpg`` is named."""

    full = "full"
    """``a.jpg.xmp``, as digiKam and darktable name it. Each photograph has one of its own."""
    stem = "stem"
    """``a.xmp``, as Adobe's programs name it. ``a.jpg`` and ``a.dng`` would share it."""


class Sidecars:
    """Finds the sidecars of photographs. Each folder is looked at once.

    Args:
        naming: of new sidecars. One that is there already is used, whatever its name is.
    """

    def __init__(self, naming: Naming = Naming.full) -> None:
        self._naming = naming
        self._pictures: dict[Path, Counter[str]] = {}

    def of(self, photograph: Path) -> Path:
        """The sidecar of a photograph, which need not exist.

        Raises:
            InputError: it would be named after several pictures in the folder.
            OSError: the folder cannot be read.
        """
        full, stem = photograph.with_name(photograph.name + ".xmp"), photograph.with_suffix(".xmp")
        if full.exists():
            return full
        alone = self._same_stem(photograph) <= 1
        if self._naming is Naming.full:
            return stem if stem.exists() and alone else full
        if not alone:
            raise InputError(
                f"{photograph}: {stem.name} would be the sidecar of other pictures too; use --sidecar-name full"
            )
        return stem

    def _same_stem(self, photograph: Path) -> int:
        """How many pictures in the folder have the photograph's name without the suffix."""
        folder = photograph.parent
        if folder not in self._pictures:
            names = (os.path.splitext(name) for name in os.listdir(folder))
            self._pictures[folder] = Counter(stem for stem, suffix in names if suffix.lower() in (*SUFFIXES, *OTHERS))
        return self._pictures[folder][photograph.stem]
