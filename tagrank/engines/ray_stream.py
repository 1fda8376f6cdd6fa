"""Runs a job on a Ray cluster, by Ray Data: one result for each image, in the order of the images.

The images go to the workers in parts, and the results come back to the caller, who alone writes them. If a worker dies,
Ray starts another and gives it the parts that the first had; of a part, the results of one attempt come back.
"""

import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tagrank.allocator import keep_memory
from tagrank.engines.attempts import Attempts
from tagrank.engines.jobs import Job
from tagrank.engines.ray_cluster import Workers
from tagrank.errors import InputError
from tagrank.features.image_sources import ImageSource
from tagrank.features.web_dataset import ShardImage

S = TypeVar("S", bound=ImageSource)
T = TypeVar("T")

PART = {"cpu": 32, "cuda": 1024}
"""How many images a worker gets at a time. On CPUs they fill its batches, so that it computes those of one process."""
ATTEMPTS = 4
"""So many workers may die over a part of the images before the run ends: one of them may be what they die of."""


def run_on_cluster(ray: Any, job: Job[T], images: Iterable[S], workers: Workers) -> Iterator[tuple[S, T | InputError]]:
    """Run a job on the workers of a cluster.

    Args:
        ray: connected: see :func:`tagrank.engines.ray_cluster.connected`.
        job: on the CPU. The workers get a copy.
        images: the images. Files are read by the workers, at the same paths.
        workers: how many, and on what.

    Yields:
        Each image as it was given, in this order, with its result, or with the error that says what is wrong with it.

    Raises:
        InputError: the job failed as a whole, or workers died over the same images again and again.
    """
    sources = list(images)
    if not sources:
        return
    size = PART[workers.device]
    parts = [sources[start : start + size] for start in range(0, len(sources), size)]
    workers = replace(workers, count=min(workers.count, len(parts)))
    for number, row in enumerate(_rows(ray, job, parts, workers)):
        results = pickle.loads(row["results"])
        if isinstance(results, InputError):
            raise results
        if row["number"] != number or len(results) != len(parts[number]):
            raise RuntimeError(f"expected the results of part {number} from Ray, got those of part {row['number']}")
        for source, result in zip(parts[number], results, strict=True):
            yield source, _as_given(source, result) if isinstance(result, InputError) else result


def _rows(ray: Any, job: Job[T], parts: Sequence[Sequence[S]], workers: Workers) -> Iterator[Mapping[str, Any]]:
    """The results of each part, in the order of the parts."""
    from ray.data import ActorPoolStrategy

    attempts = ray.remote(num_cpus=0)(Attempts).remote()
    shared = ray.put(job)  # a worker that is started again needs it
    items = [
        {"number": number, "sources": pickle.dumps([_everywhere(source) for source in part])}
        for number, part in enumerate(parts)
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=(shared, workers, attempts),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=workers.count, initial_size=workers.count),
        num_cpus=workers.cores,
        num_gpus=1 if workers.device == "cuda" else 0,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    yield from dataset.iter_rows()


def _everywhere(source: ImageSource) -> ImageSource:
    """A file by its absolute path: workers may be in another folder."""
    if isinstance(source, (str, Path)):
        return os.path.abspath(source)
    return source.absolute() if isinstance(source, ShardImage) else source


def _as_given(source: ImageSource, error: InputError) -> InputError:
    """The error of an image with the name that the image was given by."""
    return InputError(str(error).replace(str(_everywhere(source)), str(source), 1))


class _Worker:
    """What runs in a process of the cluster."""

    def __init__(self, job: Any, workers: Workers, attempts: Any) -> None:
        import ray
        import torch

        keep_memory()
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Warning)
        torch.set_num_threads(workers.cores)
        self._job = ray.get(job)
        self._job.to(workers.device)
        self._cores = workers.cores
        self._attempts = attempts
        self._get = ray.get

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        (number,), (sources,) = batch["number"], batch["sources"]
        images = pickle.loads(sources)
        results: list[Any] | InputError
        if self._get(self._attempts.begin.remote(int(number))) > ATTEMPTS:
            results = InputError(
                f"{ATTEMPTS} workers died over the same images, one of which may be the reason: "
                f"{images[0]} and the next {len(images) - 1}"
            )
        else:
            try:
                results = [result for _, result in self._job.run(images, self._cores)]
            except InputError as error:
                results = InputError(str(error))
        return {"number": [number], "results": [pickle.dumps(results)]}
