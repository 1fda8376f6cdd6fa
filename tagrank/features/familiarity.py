"""How unlike the training photographs a photograph is: a distance between features, calibrated on validation.

The distance of a photograph is one minus the cosine between its feature and the K-th most similar feature of training
(Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022). It is compared with the
distances of the validation photographs, which were not trained on: this is the conformal test of an anomaly. Of
photographs that come from where the training photographs come from, at most a share 1 - :data:`UNKNOWN` is unknown.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tagrank.errors import InputError

K = 10
MEMORY = 4096
"""How many features of training are kept, and how many of validation are compared with them; others are left out."""
UNKNOWN = 0.99
"""A photograph is called unknown if it is this unlike the training photographs."""
BATCH = 1024

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Familiarity:
    """Some features of training, and the distances of validation.

    Attributes:
        memory: float16 ``[M, D]``, features of training photographs, of length 1.
        distances: float64 ``[N]``, ascending, of the validation photographs.
    """

    memory: Tensor
    distances: FloatArray

    @classmethod
    def fit(cls, train: Tensor, val: Tensor) -> "Familiarity":
        """Of the features ``[M, D]`` of training and ``[N, D]`` of validation."""
        memory = F.normalize(_spread(train).float()).half().cpu()
        return cls(memory, np.sort(_distances(_spread(val), memory)))

    def unlike(self, features: Tensor) -> FloatArray:
        """The share of validation photographs that are nearer to the training photographs, ``[B]`` in [0, 1).

        Args:
            features: ``[B, D]``.
        """
        # One more than there are, because the photograph itself may be as any of them: hence never 1.
        nearer = np.searchsorted(self.distances, _distances(features, self.memory))
        share: FloatArray = nearer / (len(self.distances) + 1)
        return share

    def encoded(self) -> bytes:
        """The content of a safetensors file."""
        from safetensors.torch import save

        return save({"memory": self.memory.contiguous(), "distances": torch.from_numpy(self.distances)})

    @classmethod
    def load(cls, path: Path, dimension: int) -> "Familiarity":
        """Read what :meth:`encoded` returned.

        Args:
            path: the file.
            dimension: ``D``.

        Raises:
            InputError: the file is damaged, or has features of another length.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            memory, distances = tensors["memory"], tensors["distances"].numpy()
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{path}: damaged: {error}") from error
        if memory.dtype != torch.float16 or memory.dim() != 2 or memory.shape[1] != dimension or not len(memory):
            raise InputError(f"{path}: memory: expected float16 [M, {dimension}], got {list(memory.shape)}")
        ascending = distances.dtype == np.float64 and distances.ndim == 1 and (np.diff(distances) >= 0).all()
        if not ascending or not np.isfinite(distances).all() or not memory.isfinite().all():
            raise InputError(f"{path}: damaged: expected finite features, and float64 distances in ascending order")
        return cls(memory, distances)


def _spread(features: Tensor) -> Tensor:
    """At most :data:`MEMORY` rows, evenly spaced."""
    count = min(len(features), MEMORY)
    return features[torch.arange(count) * len(features) // count]


@torch.no_grad()
def _distances(features: Tensor, memory: Tensor) -> FloatArray:
    k = min(K, len(memory))
    keys = memory.float().t()
    parts = [(F.normalize(batch.float().cpu()) @ keys).topk(k).values[:, -1] for batch in features.split(BATCH)]
    found: FloatArray = 1.0 - torch.cat(parts).double().numpy()
    return found
