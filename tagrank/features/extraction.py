"""The stream of features: image files are decoded in threads while the backbone computes.

An image that cannot be read stays in the stream, with an error instead of a feature. The stream keeps the order of the
paths.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.images import use_image

T = TypeVar("T")
U = TypeVar("U")


def extract_features(
    backbone: Backbone, paths: Iterable[Path], *, batch_size: int = 32, workers: int = 2
) -> Generator[tuple[Path, Tensor | InputError], None, None]:
    """Read images and compute their features, in the order of ``paths``.

    At most three batches of images are in memory.

    Args:
        backbone: runs on the device of its parameters, in evaluation mode.
        paths: image files.
        batch_size: how many images go through the backbone at a time.
        workers: how many threads decode images.

    Yields:
        Each path with its feature, float32 ``[feature_size]`` on the CPU, or with the error that says why the image
        cannot be read.

    Raises:
        ValueError: ``batch_size`` or ``workers`` is less than 1.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size, workers: expected at least 1, got {batch_size} and {workers}")
    device = next(backbone.parameters()).device
    training = backbone.training
    backbone.eval()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def compute(images: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            features = backbone(torch.stack(images).to(device)).float().cpu()
        # Cloned outside inference mode: autograd may save these tensors, and none keeps the whole batch in memory.
        return [feature.clone() for feature in features]

    try:
        yield from map_batches(compute, _decode(executor, backbone, paths, 2 * batch_size), batch_size)
    finally:
        executor.shutdown(cancel_futures=True)
        backbone.train(training)


def all_readable(features: Generator[tuple[Path, Tensor | InputError], None, None]) -> Iterator[tuple[Path, Tensor]]:
    """The same stream for callers that need every image.

    Raises:
        InputError: an image cannot be read; the stream is then closed.
    """
    with closing(features):
        for path, feature in features:
            if isinstance(feature, InputError):
                raise feature
            yield path, feature


def map_batches(
    function: Callable[[list[T]], Sequence[U]], items: Iterable[tuple[Path, T | InputError]], batch_size: int
) -> Iterator[tuple[Path, U | InputError]]:
    """Apply a function to the values of a stream, a batch at a time; errors keep their places.

    Args:
        function: returns a result for each value that it gets.
        items: paths, each with a value or an error.
        batch_size: how many values the function gets; fewer in the last batch. Errors do not count.
    """
    batch: list[tuple[Path, T | InputError]] = []
    values: list[T] = []
    for path, value in items:
        if isinstance(value, InputError):
            if not values:  # nothing before it waits for its batch
                yield path, value
                continue
        else:
            values.append(value)
        batch.append((path, value))
        if len(values) == batch_size:
            yield from _in_place(batch, function(values))
            batch, values = [], []
    if values:
        yield from _in_place(batch, function(values))


def _in_place(batch: list[tuple[Path, T | InputError]], results: Sequence[U]) -> Iterator[tuple[Path, U | InputError]]:
    """The batch with results instead of values."""
    remaining = iter(results)
    for path, value in batch:
        yield path, value if isinstance(value, InputError) else next(remaining)


def _decode(
    executor: ThreadPoolExecutor, backbone: Backbone, paths: Iterable[Path], ahead: int
) -> Iterator[tuple[Path, Tensor | InputError]]:
    """Transformed images or errors, in the order of ``paths``; up to ``ahead`` images are decoded in advance."""
    pending: deque[tuple[Path, Future[Tensor]]] = deque()
    remaining = iter(paths)
    while True:
        for path in islice(remaining, ahead - len(pending)):
            pending.append((path, executor.submit(use_image, path, backbone.transform)))
        if not pending:
            return
        path, future = pending.popleft()
        try:
            image: Tensor | InputError = future.result()
        except InputError as error:
            image = error
        yield path, image
