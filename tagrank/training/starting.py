"""How the processes of a training come to be: torchrun started them, or this one starts its helpers."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore

from tagrank.cores import cores
from tagrank.errors import InputError
from tagrank.features.devices import find_device
from tagrank.training.processes import ALONE, FOREVER, LostError, Processes
from tagrank.training.train_options import TrainOptions

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torchrun_numbers() -> Mapping[str, int] | None:
    """What torchrun says of its processes, if it started this one."""
    if not all(name in os.environ for name in TORCHRUN):
        return None
    return {name: int(os.environ[name]) for name in TORCHRUN[:4]}


def rank() -> int:
    """The number of this process: 0 for the one that reads and writes."""
    numbers = torchrun_numbers()
    return 0 if numbers is None else numbers["RANK"]


def check_processes(options: TrainOptions) -> None:
    """Check how many processes are to train, before anything is read.

    Raises:
        InputError: options contradict each other or what torchrun started, there are too few GPUs, or the model cannot
            be trained by several processes.
    """
    if options.strategy not in ("auto", "ddp"):
        raise InputError(f"strategy: expected auto or ddp, got {options.strategy!r:.60}")
    for name, value in (("devices", options.devices), ("num_nodes", options.num_nodes)):
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    numbers = torchrun_numbers()
    if numbers is None:
        size = here = options.devices or 1
        if (options.num_nodes or 1) > 1:
            raise InputError(
                f"num_nodes: to train on {options.num_nodes} machines, start the command on each by `torchrun "
                f"--nnodes {options.num_nodes} --nproc-per-node {here} ... -m tagrank train ...`"
            )
    else:
        size, here = numbers["WORLD_SIZE"], numbers["LOCAL_WORLD_SIZE"]
        if options.devices not in (None, here):
            raise InputError(f"devices: torchrun started {here} processes on this machine, got {options.devices}")
        if options.num_nodes not in (None, size // here):
            raise InputError(f"num_nodes: torchrun started {size // here} machines, got {options.num_nodes}")
    if size == 1:
        return
    if options.feedback or options.conditioning == "initial":
        raise InputError(
            f"devices: a model that reads its own tags (--feedback, --conditioning initial) is trained by one process, "
            f"got {size}"
        )
    device = find_device(options.device)
    if str(device) not in ("cpu", "cuda"):
        raise InputError(f"device: {size} processes train on auto, cpu or cuda, got {options.device!r:.60}")
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"devices: {here} processes need a GPU each, and there are {torch.cuda.device_count()}")


@contextmanager
def started(options: TrainOptions) -> Iterator[Processes]:
    """The processes of a training with these options, which :func:`check_processes` has checked.

    If the block ends with an error in process 0, the others end too.
    """
    numbers = torchrun_numbers()
    devices = options.devices or 1
    if (devices if numbers is None else numbers["WORLD_SIZE"]) == 1:
        yield ALONE
    elif numbers is not None:
        with joined(None, Processes(numbers["RANK"], numbers["WORLD_SIZE"])) as processes:
            yield processes
    else:
        with (
            TemporaryDirectory() as folder,
            _helpers(Path(folder, "store"), devices),
            joined(Path(folder, "store"), Processes(0, devices, threads_of(devices))) as processes,
        ):
            yield processes


@contextmanager
def joined(store: Path | None, processes: Processes) -> Iterator[Processes]:
    """Connect with the other processes, until all have come to the end of the block.

    If the block ends with an error in process 0, those that wait for it are told.

    Args:
        store: a file by which they find each other; None if torchrun says how.
        processes: the processes.
    """
    # Its functions have the processes' group of the moment of the import as a default, and would keep it: its threads
    # would then still run when Python ends, which can abort.
    importlib.import_module("torch.distributed.nn")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    found = None if store is None else FileStore(str(store), processes.size)
    rank, size = (-1, -1) if found is None else (processes.rank, processes.size)
    distributed.init_process_group(backend, store=found, rank=rank, world_size=size, timeout=FOREVER)
    try:
        yield processes
        with suppress(LostError):  # all is done: that another process ends first does no harm
            processes.meet()
    except Exception as error:
        # Not after Ctrl-C, which may have come in the middle of sending something else.
        if processes.rank == 0 and not processes.busy and not isinstance(error, LostError):
            with suppress(LostError):
                processes.send(None)
        raise
    finally:
        with suppress(RuntimeError):
            distributed.destroy_process_group()


def threads_of(size: int) -> int:
    """How many threads each of so many processes on this machine has."""
    return max(1, cores() // size)


@contextmanager
def _helpers(store: Path, size: int) -> Iterator[None]:
    """Processes that help this one. They end with the block, or with this process, whose pipe then closes.

    Raises:
        InputError: one of them cannot start.
    """
    command = [sys.executable, "-m", "tagrank.training.helper", str(store)]
    helpers: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_of(size))}
    try:
        for number in range(1, size):
            arguments = [*command, str(number), str(size)]
            pipe = subprocess.PIPE
            helpers.append(subprocess.Popen(arguments, stdin=pipe, stdout=pipe, env=environment))
        for helper in helpers:
            assert helper.stdout is not None
            if not helper.stdout.readline():  # one that cannot even begin would be waited for in vain
                raise InputError(f"devices: expected {size} processes, but one of them ended while it started")
        yield
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
