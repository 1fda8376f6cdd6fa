"""Set up for all tests, and the account of what ran where at the end."""

import fcntl
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

# Processes that tests start have one thread too: other tests keep the other cores busy. torch reads this when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, and what they start inherits that. Tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

GPU = torch.cuda.is_available()
# The tests' problems are tiny: a second thread would cost more in waiting than it saves.
torch.set_num_threads(1)
if not GPU:
    # Before anything imports triton: its kernels then run in the interpreter, on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# hypothesis: no deadline (kernels compile at first use) and the same examples each time.
from hypothesis import settings

settings.register_profile("tagrank", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tagrank")

from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED, unavailable

_kernels: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def count_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the summary: each kernel that ran in a test counts once for that test."""
    with trace() as kernels:
        yield
    request.node.user_properties.append(("kernels", sorted(set(kernels))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _kernels.update(kernel for name, kernels in report.user_properties if name == "kernels" for kernel in kernels)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.write_line
    terminalreporter.section("backends")
    for name, reason in unavailable().items():
        where = " in the interpreter" if name in FUSED and FUSED[name].interpreted() else ""
        write(f"{name}: {'not here: ' + reason if reason else 'here' + where}")
    for kernel, tests in sorted(_kernels.items()):
        write(f"  {tests:5d} tests ran {kernel}")
    skipped = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, tests in skipped.items():
        write(f"  {tests:5d} tests {reason.replace('Skipped', 'skipped')}")


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, fill)``: the folder ``name``, which the first process that asks for it lets ``fill`` fill.

    This is for what takes long to build or to train. All worker processes share the folder, so tests only read it.
    """
    base = tmp_path_factory.getbasetemp()
    # Each worker of pytest-xdist has a folder of its own in that of the run.
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "once"
    shared.mkdir(exist_ok=True)

    def once(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return once


def _available(name: str) -> str:
    reason = unavailable()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


#: What holds for every backend is tested in float32 and float64. ``test_gpu.py`` has the backends for 16 bit only.
_WIDE = [name for name, backend in FUSED.items() if {torch.float32, torch.float64} <= {*backend.dtypes}]


@pytest.fixture(scope="session", params=_WIDE)
def backend(request: pytest.FixtureRequest) -> str:
    """Each fused backend for float32 and float64, by name."""
    return _available(request.param)


@pytest.fixture(scope="session", params=["eager", *_WIDE])
def any_backend(request: pytest.FixtureRequest) -> str:
    """``eager``, and each fused backend for float32 and float64, by name."""
    return _available(request.param)


@pytest.fixture(scope="module")
def exact_float32() -> Iterator[None]:
    """float32 products on GPUs are as exact as float32, where PyTorch's default for LSTMs allows TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def device_of() -> Callable[[str], str]:
    """The type of device on which the tests run a backend."""
    return lambda name: "cpu" if name == "eager" or FUSED[name].interpreted() else FUSED[name].device


@pytest.fixture(scope="session")
def device(backend: str, device_of: Callable[[str], str]) -> str:
    """Where ``backend`` runs."""
    return device_of(backend)


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The folder of the Flickr8k features and photographs."""
    here = Path(os.environ.get("TAGRANK_FLICKR8K", Path(__file__).parents[2] / "shared" / "data" / "flickr8k"))
    if not (here / "train.jsonl").is_file():
        pytest.skip("the Flickr8k photographs are not here (TAGRANK_FLICKR8K)")
    return here
