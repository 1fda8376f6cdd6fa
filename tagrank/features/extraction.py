"""The stream of features: threads decode image files, and on CPUs compute features too.

An image that cannot be read stays in the stream, with an error instead of a feature. The stream keeps the order of the
images.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from tagrank.cores import cores
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone
from tagrank.features.computing import Computation
from tagrank.features.image_sources import ImageSource, use_source

S = TypeVar("S", bound=ImageSource)
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")


def extract_features(
    backbone: Backbone, images: Iterable[S], *, batch_size: int | None = None, workers: int | None = None
) -> Generator[tuple[S, Tensor | InputError], None, None]:
    """Read images and compute their features, in the order of ``images``.

    A few batches of images are in memory: four on a GPU; on a CPU one and some images for each worker.

    Args:
        backbone: runs on the device of its parameters, in evaluation mode: see :mod:`tagrank.features.computing`.
        images: image files, or images in memory.
        batch_size: how many images go through the backbone at a time; by default what suits the device. If a GPU's
            memory does not suffice, it is halved.
        workers: how many threads decode images, and compute if the backbone is on a CPU; by default as many as there
            are cores. A single image is computed by the caller's thread, with all cores.

    Yields:
        Each image as it was given, with its feature, float32 ``[feature_size]`` on the CPU, or with the error that says
        why the image cannot be read.

    Raises:
        ValueError: ``batch_size`` or ``workers`` is less than 1.
        InputError: a GPU has not enough memory for a single image.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    remaining = iter(images)
    first = list(islice(remaining, 2))
    alone = len(first) < 2
    workers = 1 if alone else workers or cores()
    training = backbone.training
    backbone.eval()
    executor = single_core_threads(workers)
    computation = Computation(backbone, batch_size) if alone else Computation(backbone, batch_size, executor, workers)

    def in_advance() -> int:
        return 2 * max(computation.batch_size, workers)

    try:
        decoded = _decode(executor, backbone, chain(first, remaining), in_advance)
        yield from _in_batches(computation.start, decoded, lambda: computation.batch_size, computation.ahead)
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
    function: Callable[[list[T]], Sequence[U]], items: Iterable[tuple[K, T | InputError]], batch_size: int
) -> Iterator[tuple[K, U | InputError]]:
    """Apply a function to the values of a stream, a batch at a time; errors keep their places.

    Args:
        function: returns a result for each value that it gets.
        items: keys such as paths, each with a value or an error.
        batch_size: how many values the function gets; fewer in the last batch. Errors do not count.
    """

    def start(values: list[T]) -> Callable[[], Sequence[U]]:
        results = function(values)
        return lambda: results

    yield from _in_batches(start, items, lambda: batch_size, 1)


def _in_batches(
    start: Callable[[list[T]], Callable[[], Sequence[U]]],
    items: Iterable[tuple[K, T | InputError]],
    batch_size: Callable[[], int],
    ahead: int,
) -> Iterator[tuple[K, U | InputError]]:
    """Like :func:`map_batches`, but a batch is started, and finished when ``ahead`` batches have been started."""
    started: deque[tuple[list[tuple[K, T | InputError]], Callable[[], Sequence[U]]]] = deque()
    batch: list[tuple[K, T | InputError]] = []
    values: list[T] = []

    def finished(most: int) -> Iterator[tuple[K, U | InputError]]:
        while len(started) > most:
            places, finish = started.popleft()
            yield from _in_place(places, finish())

    for key, value in items:
        if isinstance(value, InputError):
            if not values:  # it need not wait for a batch
                yield from finished(0)
                yield key, value
                continue
        else:
            values.append(value)
        batch.append((key, value))
        if len(values) >= batch_size():
            started.append((batch, start(values)))
            batch, values = [], []
            yield from finished(ahead - 1)
    if values:
        started.append((batch, start(values)))
    yield from finished(0)


def _in_place(batch: list[tuple[K, T | InputError]], results: Sequence[U]) -> Iterator[tuple[K, U | InputError]]:
    """The batch with results instead of values."""
    remaining = iter(results)
    for key, value in batch:
        yield key, value if isinstance(value, InputError) else next(remaining)


def single_core_threads(workers: int) -> ThreadPoolExecutor:
    """Threads in which PyTorch takes one core each.

    Elsewhere its operations share their work among as many threads as there are cores, and would do so in each of
    these. What a thread sets for itself is also what threads that begin later start with, so the caller sets it back.
    """
    threads = torch.get_num_threads()
    everyone = Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over what others have set when it first asks, and only then
        torch.set_num_threads(1)
        everyone.wait()

    executor = ThreadPoolExecutor(workers, thread_name_prefix="features")
    for _ in range(workers):
        executor.submit(begin)
    everyone.wait()
    torch.set_num_threads(threads)
    return executor


def pixels_needed(backbone: Backbone) -> int:
    """How many pixels of an image's shorter side a backbone's preprocessing needs (:func:`use_image`).

    Preprocessing makes the image smaller, and takes the centre. If the image has two and a half times the pixels that
    the network sees, it is still made smaller by two or more, after what JPEG's transform has averaged.
    """
    from PIL import Image

    height, width = backbone.transform(Image.new("RGB", (64, 64))).shape[1:]
    return 5 * min(height, width) // 2


def _decode(
    executor: ThreadPoolExecutor, backbone: Backbone, images: Iterable[S], in_advance: Callable[[], int]
) -> Iterator[tuple[S, Tensor | InputError]]:
    """Transformed images or errors, in the order of ``images``; up to ``in_advance()`` are decoded in advance."""
    at_least = pixels_needed(backbone)
    pending: deque[tuple[S, Future[Tensor]]] = deque()
    remaining = iter(images)
    while True:
        for source in islice(remaining, max(0, in_advance() - len(pending))):
            pending.append((source, executor.submit(use_source, source, backbone.transform, at_least)))
        if not pending:
            return
        source, future = pending.popleft()
        try:
            image: Tensor | InputError = future.result()
        except InputError as error:
            image = error
        yield source, image
