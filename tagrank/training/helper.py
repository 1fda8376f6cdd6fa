"""A process that takes part in the training of another: ``python -m tagrank.training.helper STORE RANK SIZE``."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tagrank.errors import InputError
from tagrank.training.loop import Fit, assist
from tagrank.training.processes import LostError, Processes
from tagrank.training.starting import joined, threads_of


def help_train(processes: Processes) -> Any:
    """Take part in all that process 0 trains, and return what it sends last: the model.

    Ctrl-C is process 0's to answer, which then leaves the others.

    Raises:
        InputError: process 0 gave up, and has said why; or it has ended.
        KeyboardInterrupt: it ended after Ctrl-C.
    """
    interrupted = threading.Event()
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        while isinstance(message := processes.receive(), Fit):
            assist(message, processes)
    except LostError as error:
        if interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    if message is None:
        raise InputError("process 0 of the training gave up")
    return message


def _end_with_parent() -> None:
    """End when the process that started this one closes its pipe, or is killed."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    store, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print("ready", flush=True)
    try:
        with joined(store, Processes(rank, size, threads_of(size))) as processes:
            help_train(processes)
    except (InputError, RuntimeError, KeyboardInterrupt):
        sys.exit(1)  # process 0 says why


if __name__ == "__main__":
    main()
