"""Photographs to feature vectors: a stream that decodes images while the network runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.images import read_image

#: A path with what was made of it: a tensor, or the error that says why the image cannot be read.
Row = tuple[Path, Tensor | InputError]


def extract_features(
    backbone: Backbone, paths: Iterable[Path], *, batch_size: int = 32, workers: int = 2
) -> Iterator[Row]:
    """Read images and compute their features, in the order of ``paths``.

    Threads decode images while the network runs. At most three batches of images are in memory.

    Args:
        backbone: runs on the device of its parameters, in evaluation mode.
        paths: image files.
        batch_size: images in a run of the network.
        workers: threads that decode.

    Yields:
        For each path the feature, float32 ``[feature_size]`` on the CPU, or the error that says why the image cannot
        be read.

    Raises:
        ValueError: ``batch_size`` or ``workers`` is below 1.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size, workers: expected at least 1, got {batch_size} and {workers}")
    training = backbone.training
    backbone.eval()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        decoded = _decode(executor, backbone, paths, 2 * batch_size)
        while batch := list(islice(decoded, batch_size)):
            features = iter(_run(backbone, [image for _, image in batch if isinstance(image, Tensor)]))
            for path, image in batch:
                yield path, image if isinstance(image, InputError) else next(features)
    finally:
        executor.shutdown(cancel_futures=True)
        backbone.train(training)


def only_features(rows: Iterable[Row]) -> Iterator[tuple[Path, Tensor]]:
    """The rows of :func:`extract_features`, if an image that cannot be read is an error of the whole.

    Raises:
        InputError: the first error of the rows, when it is reached.
    """
    for path, row in rows:
        if isinstance(row, InputError):
            raise row
        yield path, row


def _run(backbone: Backbone, images: list[Tensor]) -> list[Tensor]:
    if not images:
        return []
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        features = backbone(torch.stack(images).to(device)).float().cpu()
    # Clones made outside inference mode are normal tensors, which autograd may save. They keep no batch alive.
    return [feature.clone() for feature in features]


def _decode(executor: ThreadPoolExecutor, backbone: Backbone, paths: Iterable[Path], ahead: int) -> Iterator[Row]:
    """Transformed images in the order of ``paths``. Up to ``ahead`` images are decoded before they are requested."""
    pending: deque[tuple[Path, Future[Tensor]]] = deque()
    remaining = iter(paths)
    while True:
        for path in islice(remaining, ahead - len(pending)):
            pending.append((path, executor.submit(lambda path: backbone.transform(read_image(path)), path)))
        if not pending:
            return
        path, future = pending.popleft()
        try:
            yield path, future.result()
        except InputError as error:
            yield path, error
