"""``--engine`` and ``--address``: where the work of a command runs."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from tagrank.cli.terminal import complain
from tagrank.errors import InputError

if TYPE_CHECKING:
    from tagrank.engines.jobs import Job

Run: TypeAlias = Callable[["Job[Any]", Iterable[Any]], Iterator[tuple[Any, Any]]]
"""Runs a job: each image with its result or its error, in the order of the images."""


class Engine(str, Enum):
    """Where the work runs."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    Engine, typer.Option(help="Where the work runs: in this process, or on the machines of a Ray cluster.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster: HOST:PORT, auto, or local for one of this machine's cores. Default: RAY_ADDRESS, or "
        "local.",
        show_default=False,
    ),
]


def check_engine(engine: Engine, address: str | None, compile: bool) -> None:
    """Check, before anything is loaded, that the engine is installed and goes with the other options.

    Raises:
        InputError: it is not, or does not.
    """
    if engine is Engine.ray:
        from tagrank.engines.ray_cluster import import_ray

        if compile:
            raise InputError("--compile: expected --engine local; the workers of a Ray cluster do not compile")
        import_ray()
    elif address is not None:
        raise InputError("--address goes with --engine ray")


@contextmanager
def start_engine(engine: Engine, address: str | None, device: str) -> Iterator[Run]:
    """What runs a command's job. Ray is shut down at the end.

    Ray prints on stdout what happens to its workers. Within the block this goes to stderr, as does all else, so results
    go to the stdout of before the block.

    Args:
        engine: where.
        address: of a Ray cluster.
        device: on the engine ray: auto, cpu or cuda, of the workers. Elsewhere the job is on its device already.

    Raises:
        InputError: no cluster answers, or it has no such device.
    """
    if engine is Engine.local:
        yield lambda job, images: job.run(images)
        return
    from tagrank.engines.ray_cluster import connected, find_workers
    from tagrank.engines.ray_stream import run_on_cluster

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        ray = stack.enter_context(connected(address))
        workers = find_workers(ray, device)
        complain(f"computing on {workers} of a Ray cluster")
        yield lambda job, images: run_on_cluster(ray, job, images, workers)
