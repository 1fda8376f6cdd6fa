"""The connection to a Ray cluster, or a cluster of this machine's cores for as long as it is needed."""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tagrank.data.files import first_line
from tagrank.errors import InputError

LOCAL = "local"


@dataclass(frozen=True)
class Workers:
    """The workers that a cluster has room for.

    Attributes:
        count: how many there are at most.
        device: where each computes: ``"cpu"`` or ``"cuda"``.
        cores: how many cores each has.
    """

    count: int
    device: str
    cores: int

    def __str__(self) -> str:
        what = "GPU" if self.device == "cuda" else "core"
        return f"up to {self.count} {what}{'s' if self.count > 1 else ''}"


def import_ray() -> Any:
    """Ray with Ray Data, which sends no usage statistics from here.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would write an error for each worker: that its arguments are in the object store, where Ray Data put them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        importlib.import_module("ray.data")
    except ImportError as error:
        raise InputError(
            f"the engine ray needs packages that are not installed ({first_line(error)}): pip install 'tagrank[ray]'"
        ) from error
    return importlib.import_module("ray")


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster.

    If the caller has connected already (``ray.init``), that connection serves, and stays.

    Args:
        address: of the cluster: ``HOST:PORT``; ``"auto"`` for the one that this machine belongs to; ``"local"`` for one
            of this machine's cores, which ends with the block. By default what the variable ``RAY_ADDRESS`` says, or
            ``"local"``.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if "://" in address:
        raise InputError(
            f"address: expected HOST:PORT, auto or local, got {address!r:.60}; from outside of a cluster, submit the "
            "command to it with `ray job submit`"
        )
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Ray will change one day
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"address: no Ray cluster answers at {address!r:.60}: {first_line(error)}") from error
    # What goes wrong is raised. What else Ray Data has to tell would be of parts and operators.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        ray.shutdown()


def find_workers(ray: Any, device: str = "auto") -> Workers:
    """The workers that a cluster has room for: one for each of its GPUs, or for each of its cores.

    Args:
        ray: a connected module.
        device: ``"auto"`` (GPUs if the cluster has some), ``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: the device is none of these, or the cluster has none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: with the engine ray, expected auto, cpu or cuda, got {device!r:.60}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpus:
        raise InputError("device: cuda: the Ray cluster has no GPUs")
    if with_gpus and device != "cpu":
        cores = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus)
        return Workers(sum(int(node["GPU"]) for node in with_gpus), "cuda", max(1, cores))
    count = sum(int(node.get("CPU", 0)) for node in nodes)
    if not count:
        raise InputError("the Ray cluster has no CPUs")
    return Workers(count, "cpu", 1)
