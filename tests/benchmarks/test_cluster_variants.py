"""``python -m benchmarks.cluster_variants`` without a GPU, the variants that it runs, and the model beside its results.

The library is that of the host: each block of a cluster is a thread, and the threads wait for each other where blocks
would (``test_cluster.py`` says what that checks). So all of the benchmark runs here but the GPU's launches and clock.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])
FORWARD = ["present", "full", "matrices", "short", "halves", "parts", "short-halves", "fat"]
QUADS = ["quads", "quad-halves", "quad-quarters"]
BACKWARD = ["present", "full", "stripes", "half", "half-stripes", "half-pairs"]
Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(once: Callable[[str, Callable[[Path], None]], Path]) -> Build:
    """Compiles the variants of one size for the host."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")

    def build(padded: int, tiles: int, *options: str) -> Path:
        name = "-".join(
            ["variants", str(padded), str(tiles), *(option.strip("-").replace("=", "-") for option in options)]
        )

        def compile_into(folder: Path) -> None:
            command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
            command += [
                f"-I{ROOT}/csrc/cuda",
                f"-I{ROOT}/benchmarks",
                f"-DTAGRANK_PADDED={padded}",
                f"-DTAGRANK_TILES={tiles}",
            ]
            command += [*options, f"{ROOT}/tests/recurrence/variants_host.cpp", "-o", str(folder / "variants")]
            done = subprocess.run(command, capture_output=True, text=True)
            if "_Float16" in done.stderr or "tsan" in done.stderr:
                pytest.skip("this compiler has no _Float16, or no thread sanitizer")
            assert done.returncode == 0, done.stderr

        return once(name, compile_into) / "variants"

    return build


@pytest.fixture
def benchmark(load: Callable[[str], ModuleType]) -> Any:
    return load("cluster_variants")


SHARED = ("-shared", "-fPIC")
exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("padded", "tiles", "forward", "backward"),
    [
        (128, 1, FORWARD, ["present", "full", "half"]),
        pytest.param(128, 2, FORWARD[:4], ["present", "full", "half"], marks=exhaustive),
        pytest.param(256, 1, FORWARD, ["present", "full", "half", "half-stripes"], marks=exhaustive),
        pytest.param(256, 2, FORWARD[:4], ["present", "full", "half", "half-stripes"], marks=exhaustive),
        pytest.param(512, 1, ["present", "full", "matrices", "halves", "parts"], BACKWARD[:5], marks=exhaustive),
        pytest.param(512, 4, FORWARD[:3], ["present", "full", "half", "half-stripes"], marks=exhaustive),
        pytest.param(512, 8, FORWARD[:3], [], marks=exhaustive),
        pytest.param(768, 1, ["full", "matrices", *QUADS], ["stripes", "half-stripes", "half-pairs"], marks=exhaustive),
    ],
)
def test_every_variant_is_right(
    benchmark: Any, build: Build, padded: int, tiles: int, forward: list[str], backward: list[str]
) -> None:
    """Beside float64, in all modes, with rows that do not fill the last cluster; also without what may be missing, and
    with rows of U that begin anywhere."""
    library = benchmark.Library(build(padded, tiles, *SHARED))
    names = {"forward": forward, "backward": backward}
    assert [kernel.variant for kernel in library.kernels()] == [f"{x}:{name}" for x in names for name in names[x]]
    for kernel in library.kernels():
        assert (kernel.hidden, kernel.rows) == (padded, 8 * tiles)
        assert kernel.shared <= 227 * 1024, "what a block of compute capability 9.0 has"
        assert kernel.threads <= 512
    absent = {"forward": ["h0", "c0", "addend"], "backward": ["grad_h_n", "grad_c_n", "c0"]}
    for batch, steps, bare in ((8 * tiles + 3, 5, False), (2, 1, False), (3, 4, True)):
        for pass_, problem_of in benchmark.PROBLEMS.items():
            problem = problem_of(batch, padded, steps, "cpu")
            left_out = absent[pass_] if bare else []
            for name in left_out:
                getattr(problem, name).zero_()
            if bare:
                memory = problem.weight_hh.new_empty(problem.weight_hh.numel() + 1)
                problem.weight_hh = memory[1:].view_as(problem.weight_hh).copy_(problem.weight_hh)
                assert problem.weight_hh.data_ptr() % 16
            expected = problem.reference()
            for kernel in library.kernels():
                if kernel.pass_ != pass_:
                    continue

                def run(call: Any, kernel: Any = kernel, left_out: list[str] = left_out) -> None:
                    for name in left_out:
                        setattr(call, name, None)
                    library.launch(kernel, call, 0)

                for mode in problem.modes:
                    error = problem.check(run, expected, mode)
                    assert error < benchmark.TOLERANCE, (kernel.variant, mode, batch, error)


@pytest.mark.parametrize("name", ["grad_output", "grad_h_n"])
def test_one_gradient_alone(benchmark: Any, build: Build, name: str) -> None:
    """What is not given counts as zeros: the others, and grad_output with any strides."""
    library = benchmark.Library(build(128, 1, *SHARED))
    problem = benchmark.PROBLEMS["backward"](5, 128, 3, "cpu")
    others = {"grad_output", "grad_h_n", "grad_c_n"} - {name}
    for other in others:
        getattr(problem, other).zero_()
    # One number for all rows and units.
    problem.grad_output = problem.grad_output[:1, :1, :1].expand(3, 5, 128)
    expected = problem.reference()

    def run(call: Any) -> None:
        for other in others:
            setattr(call, other, None)
        library.launch(kernel, call, 0)

    for kernel in library.kernels():
        if kernel.pass_ == "backward":
            assert problem.check(run, expected, "training") < benchmark.TOLERANCE, kernel.variant


@pytest.mark.parametrize("steps", [20, pytest.param(100, marks=exhaustive), pytest.param(1000, marks=exhaustive)])
def test_parts_in_16_bit_lose_little(benchmark: Any, build: Build, steps: int) -> None:
    """d_gates are rounded to 16 bit in any case; an error of each step does not add up over many."""
    library = benchmark.Library(build(128, 1, *SHARED))
    problem = benchmark.PROBLEMS["backward"](8, 128, steps, "cpu")
    problem.reference()
    for mode in ("training", "recompute") if steps < 1000 else ("training",):
        found = {
            kernel.name: problem.found(lambda call, kernel=kernel: library.launch(kernel, call, 0), mode)["d_gates"]
            for kernel in library.kernels()
            if kernel.pass_ == "backward"
        }
        present = found["present"]
        assert torch.equal(found["full"], present), "the same numbers in the same order"
        # Rounding to bfloat16 alone changes d_gates by 1.7e-3.
        assert 1e-3 < (found["half"] - present).norm() / present.norm() < 2.2e-3


def test_gradients_as_the_library_gives_them(benchmark: Any, load: Callable[[str], Any], build: Build) -> None:
    """Two steps; grad_output transposed, as with batch_first; d_gates in the memory of the products; no d_c0."""
    library = benchmark.Library(build(128, 1, *SHARED))
    problem = benchmark.PROBLEMS["backward"](5, 128, 2, "cpu")
    problem.grad_output = problem.grad_output.transpose(0, 1).contiguous().transpose(0, 1)
    expected = problem.reference()
    products = problem.products.clone()

    def run(call: Any) -> None:
        assert call.gates == problem.products.data_ptr()
        problem.products.copy_(products)
        call.d_gates, call.d_c0 = call.gates, None
        library.launch(kernel, call, 0)

    for kernel in library.kernels():
        if kernel.pass_ == "backward":
            found = problem.found(run, "recompute")
            found = {"d_gates": problem.products.double(), "d_gates_x": found["d_gates_x"]}
            each = {name: expected[name] for name in found}
            assert load("cluster_problems").largest(found, each) < benchmark.TOLERANCE, kernel.variant


def test_one_row_that_is_wrong_shows(load: Callable[[str], Any]) -> None:
    """As it would be if a message of one block came too late in one step."""
    problems = load("cluster_problems")
    right = torch.randn(20, 256, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = right.clone()
    found[7, 100] *= 1.04
    assert (found - right).norm() / right.norm() < 1e-3
    assert problems.largest({"x": found}, {"x": right}) == pytest.approx(0.04, rel=0.2)
    # A row of nearly nothing need not be right to as many digits.
    right[3, 4] *= 1e-6
    found = right.clone()
    found[3, 4] += 1e-6
    assert problems.largest({"x": found}, {"x": right}) < 1e-5


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_what_does_not_repeat_shows(benchmark: Any, pass_: str) -> None:
    problem = benchmark.PROBLEMS[pass_](3, 16, 2, "cpu")
    problem.reference()
    last = next(iter(problem.results.values()))
    bits = iter((1.0, 1.0, 1.0, 1.0078125))
    repeats = [problem.repeats(lambda call: last[-1, -1, -1:].fill_(next(bits)), problem.modes[0]) for _ in range(2)]
    assert repeats == [True, False]


def test_a_kernel_that_the_gpu_refuses_is_left_out(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kernels = [benchmark.Kernel(i, "backward", "full", 128, 8 * (i + 1), 4, 256, 1000, 16) for i in range(3)]

    class Refuses(benchmark.Library):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

        def kernels(self) -> list[Any]:
            return kernels

        def active(self, kernel: Any) -> int:
            if kernel.rows == 8:
                raise RuntimeError("invalid cluster size")
            return 4

    assert Refuses().choose("backward:full", 128, 60) is kernels[1]
    assert "rows=8" in (err := capsys.readouterr().err)
    assert "does not run here: invalid cluster size" in err


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_what_is_not_written_shows(benchmark: Any, pass_: str) -> None:
    problem = benchmark.PROBLEMS[pass_](3, 16, 2, "cpu")
    expected = problem.reference()
    assert problem.check(lambda call: None, expected, problem.modes[0]) == float("inf")


@pytest.mark.parametrize(
    ("padded", "pass_", "names"),
    [
        pytest.param(128, "forward", ["parts"], marks=exhaustive),
        pytest.param(128, "forward", ["full", "matrices", "short", "halves", "short-halves", "fat"], marks=exhaustive),
        pytest.param(128, "backward", ["full", "half"], marks=exhaustive),
        pytest.param(512, "forward", ["halves"], marks=exhaustive),
        pytest.param(512, "backward", ["half-stripes"], marks=exhaustive),
        pytest.param(768, "forward", ["quad-quarters"], marks=exhaustive),
        pytest.param(768, "backward", ["half-pairs"], marks=exhaustive),
    ],
)
def test_blocks_do_not_race(build: Build, padded: int, pass_: str, names: list[str]) -> None:
    """The thread sanitizer sees every access to another block's memory that no mailbox orders."""
    for options, waits in (((), True), (("-DTAGRANK_WITHOUT_WAITS",), False)):
        program = build(padded, 1, "-fsanitize=thread", "-DTAGRANK_MAIN", *options)
        for name in names:
            done = subprocess.run([program, pass_, name], capture_output=True, text=True)
            if "unexpected memory mapping" in done.stderr:
                pytest.skip("the thread sanitizer does not run on this kernel")
            # One block waits for nobody.
            right = waits or (name == "fat" and padded == 128)
            assert (done.returncode == 0) == right, (name, done.stderr)
            assert ("data race" in done.stderr) != right, name


def test_all_of_it_on_the_host(build: Build, tmp_path: Path) -> None:
    library, path = build(128, 1, *SHARED), tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.cluster_variants",
        "--library",
        library,
        "--device",
        "cpu",
        "--json",
        path,
    ]
    command += ["--only", "present", "parts", "-B", "3", "-H", "128", "-T", "1", "2", "4", "--seconds", "200"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_bytes())
    assert result["ended"] == {"variants": "finished"}
    assert {"environment", "commit", "sources"} <= result.keys()
    cases = [(row["pass"], row["variant"], row["mode"]) for row in result["rows"]]
    forward = [("forward", name, mode) for mode in ("inference", "training") for name in ("present", "parts")]
    assert cases == [*forward, ("backward", "present", "training")]
    for row in result["rows"]:
        assert row["right"]
        assert row["error"] < 1e-2
        assert set(row["us"]) == {"1", "2", "4"}
    assert "forward  H=128  B=3    inference" in done.stdout
    assert "backward H=128  B=3    training   present; predicted: " in done.stdout


def test_without_a_gpu_it_says_so(refuses: Callable[..., str], build: Build) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    library = str(build(128, 1, *SHARED))
    assert "PyTorch sees no GPU here; --dry-run does what needs none" in refuses(
        "cluster_variants", "--library", library
    )


def test_a_dry_run_lists_the_kernels(
    benchmark: Any, build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--dry-run", "--library", str(build(128, 1, *SHARED))])
    assert benchmark.main() == 0
    out = capsys.readouterr().out
    assert out.count("Kernel(") == len(FORWARD) + 3
    assert "pass_='forward', name='parts', hidden=128, rows=8, blocks=4" in out
    assert "pass_='backward', name='half', hidden=128, rows=8, blocks=4" in out


WORKER = """
import json, os, sys, time
names = sys.argv[sys.argv.index("--worker") + 1 : sys.argv.index("--done")]
done = sys.argv[sys.argv.index("--done") + 1 :]
for name in names:
    for batch in (1, 2):
        row = {"pass": "forward", "variant": name.partition(":")[2], "B": batch, "H": 128}
        row |= {"mode": "inference", "rows": 8}
        if "{pass}:{variant}:{B}:{H}:{mode}".format(**row) in done:
            continue
        print(json.dumps({**row, "state": "starting"}), flush=True)
        if name == "forward:hangs" and batch == 2:
            time.sleep(60)
        if name == "forward:dies":
            os._exit(7)
        print(json.dumps({**row, "state": "done", "right": True}), flush=True)
"""


def test_a_variant_that_hangs_or_dies_does_not_stop_the_others(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "PATIENCE", 1.0)
    rows: list[dict[str, Any]] = []
    names = ["forward:dies", "forward:hangs", "forward:works"]
    ended = benchmark.supervise([sys.executable, "-c", WORKER], names, 60.0, rows.append)
    assert ended == "finished"
    assert [(row["variant"], row["B"], row["state"]) for row in rows] == [
        ("dies", 1, "ended with 7"),
        ("hangs", 1, "done"),
        ("hangs", 2, "said nothing for 1 s"),
        ("works", 1, "done"),
        ("works", 2, "done"),
    ]
    assert benchmark.supervise([sys.executable, "-c", WORKER], ["forward:hangs"], 2.0, rows.append) != "finished"
    broken = [sys.executable, "-c", "raise SystemExit(3)"]
    assert benchmark.supervise(broken, ["forward:x"], 20.0, rows.append).startswith("failed")


def test_the_order_is_told_beside_the_prediction(benchmark: Any) -> None:
    row = {"pass": "forward", "H": 128, "B": 1, "mode": "inference", "right": True}
    rows = [
        row | {"variant": "a", "us_a_step": 2.0, "predicted": 1.0},
        row | {"variant": "b", "us_a_step": 1.0, "predicted": 1.5},
        row | {"variant": "c", "right": False},
    ]
    assert list(benchmark.orders(rows)) == ["forward  H=128  B=1    inference  b, a; predicted: a, b"]


LISTING = """
\t\tFunction : first
        /*0000*/                   LDS.128 R4, [R2] ;                          /* 0x0000000002047984 */
                                                                              /* 0x000e620000000c00 */
        /*0010*/              @!P0 BRA 0x30 ;                                  /* 0x0000000000007947 */
                                                                              /* 0x004fca0003800000 */
        /*0020*/                   FADD R1, R1, R2 ;                           /* 0x0000000201017221 */
                                                                              /* 0x002fc80000000000 */
"""


def test_what_the_machine_code_says(load: Callable[[str], Any]) -> None:
    ((load_, branch, add),) = load("sass").parse(LISTING.splitlines()).values()
    assert (load_.name, load_.stall, load_.written, load_.read, load_.waits) == ("LDS.128", 1, 1, None, ())
    assert (branch.name, branch.conditional, branch.target, branch.waits) == ("BRA", True, 0x30, (2,))
    assert (add.name, add.stall, add.waits) == ("FADD", 4, (1,))


def program(sass: Any, *lines: tuple[str, int, tuple[int, ...], int | None, int | None]) -> list[Any]:
    return [sass.Instruction(16 * i, *line) for i, line in enumerate(lines)]


def test_the_clocks_of_known_programs(load: Callable[[str], Any]) -> None:
    sass, chain = load("sass"), load("chain")
    add = ("FADD R1, R1, R2", 4, (), None, None)
    alone = program(sass, add, ("LDS R3, [R1]", 1, (), 0, None), ("FADD R4, R3, R3", 4, (0,), None, None))
    assert chain.simulate(alone, 1).clocks == 4 + 29 + 4
    # Two warps of one scheduler hide each other's waits; eight matrix instructions of two warps keep the pipe busy.
    assert chain.simulate(alone, 8).clocks < 2 * (4 + 29 + 4)
    meet = ("BAR.SYNC.DEFER_BLOCKING 0x0", 6, (), None, None)
    matrix = program(sass, *[("HMMA.16816.F32 R4, R8, R2, R4", 1, (), None, None)] * 8, meet)
    assert chain.simulate(matrix, 8).clocks == pytest.approx(2 * 8 * 6.4 + chain.BARRIER, abs=7)
    # A message and its packets come on top of the instructions; and packets bound a step.
    wait = ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]", 2, (), 0, None)
    send = ("STAS [R2.64], R1", 2, (), None, 1)
    exchange = program(sass, wait, ("FADD R1, R1, R2", 4, (0,), None, None), send)
    few = chain.simulate(exchange, 1, packets=8).clocks
    assert few == pytest.approx(26 + 4 + 8 * chain.PACKET + chain.MESSAGE, abs=4)
    assert chain.simulate(exchange, 1, packets=108).clocks == pytest.approx(few + 100 * chain.PACKET, abs=1)
    # With two mailboxes a warp awaits the second send after it has worked on what the first one brought.
    work = ("FADD R1, R1, R2", 14, (0,), None, None)
    one = chain.simulate(program(sass, wait, work, work, send, send), 1, packets=40).clocks
    two = chain.simulate(program(sass, wait, work, wait, work, send, send), 1, packets=40, boxes=2).clocks
    assert one == pytest.approx(26 + 28 + 80 * chain.PACKET + chain.MESSAGE, abs=4)
    assert two == pytest.approx(26 + 14 + 80 * chain.PACKET + chain.MESSAGE, abs=4)
    assert chain.simulate(program(sass, add, meet), 4).clocks == pytest.approx(4 + chain.BARRIER, abs=1)
    # Of eight warps four meet at a barrier, or two. What a warp reads of a mailbox in two turns it awaits in two.
    for threads in ("0x80", "0x40"):
        some = (f"BAR.SYNC.DEFER_BLOCKING R3, {threads}", 6, (), None, None)
        assert chain.simulate(program(sass, add, some), 8).clocks == pytest.approx(4 + chain.BARRIER, abs=2)
        turns = chain.simulate(program(sass, wait, add, wait, add, some, send, send), 4, packets=40, boxes=2)
        assert turns.clocks == pytest.approx(4 + chain.BARRIER + 4 * 2 * 40 * chain.PACKET + chain.MESSAGE, abs=4)


def test_the_path_of_a_step(load: Callable[[str], Any]) -> None:
    sass = load("sass")
    store = ("STG.E R2", 1, (), None, None)
    body = program(
        sass,
        ("HMMA.16816.F32 R4, R8, R2, R4", 6, (), None, None),
        ("@P0 BRA 0x70", 5, (), None, None),
        *[store] * 5,
        ("@!P1 BRA 0x0", 5, (), None, None),
        ("BRA 0x0", 5, (), None, None),
    )
    assert sass.loop(body) == body[:-1]
    assert len(list(sass.path(body[:-1], training=True))) == 8
    assert len(list(sass.path(body[:-1], training=False))) == 3
    with pytest.raises(ValueError, match="it has none"):
        sass.loop(body[1:3])


def test_the_path_of_a_step_backward(load: Callable[[str], Any]) -> None:
    """It computes no gates again, and runs a loop over tiles as often as there are some."""
    sass = load("sass")
    special, tensor = ("MUFU.TANH R1, R2", 1, (), None, None), ("HMMA.16816.F32 R4, R8, R2, R4", 6, (), None, None)
    load_ = ("LDG.E.U16 R1, [R2]", 1, (), None, None)
    body = program(
        sass,
        ("@P0 BRA 0x50", 5, (), None, None),
        *[special] * 4,
        ("@P0 BRA 0xa0", 5, (), None, None),
        *[load_] * 4,
        ("@P1 BRA 0x100", 5, (), None, None),  # no loads of gates alone
        *[load_] * 4,
        ("LDG.E R1, [R2]", 1, (), None, None),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]", 2, (), 0, None),
        tensor,
        ("@P2 BRA 0x110", 5, (), None, None),
        ("@!P1 BRA 0x0", 5, (), None, None),
    )
    assert sass.loop(body) == body, "not the loop over tiles, which looks at no mailbox"
    for tiles in (1, 2, 4):
        names = [one.name.split(".")[0] for one in sass.backward_path(body, tiles)]
        assert names.count("MUFU") == 0
        assert names.count("LDG") == 5
        assert names.count("HMMA") == tiles
        assert len(names) == 10 + 2 * tiles


def test_the_links_of_a_step_backward(load: Callable[[str], Any]) -> None:
    sass, chain = load("sass"), load("chain")
    work = ("FADD R1, R1, R2", 10, (), None, None)
    body = program(
        sass,
        *[work] * 60,
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]", 2, (), 0, None),
        ("LDS R3, [R1]", 1, (0,), 1, None),
        ("STS.64 [R1], R3", 1, (1,), None, None),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 6, (), None, None),
        ("LDS.128 R4, [R1]", 1, (), 0, None),
        ("HMMA.16816.F32 R4, R8, R2, R4", 24, (0,), None, None),
        ("STAS.64 [R2.64], R4", 2, (), None, 1),
        ("HMMA.16816.F32 R4, R8, R2, R4", 24, (), None, None),
        ("STAS.64 [R2.64], R4", 2, (), None, 1),
        ("@!P1 BRA 0x0", 5, (), None, None),
    )
    found = chain.backward_chain(body, 4, 8, tiles=1)
    assert list(found.links.values())[:2] == [26, 29]
    assert sum(found.links.values()) == round(found.clocks)
    # 600 clocks of its own work are more than the message takes.
    assert found.links["other work of the warp"] == pytest.approx(600 - found.links["packets and the message"], abs=12)
    assert found.links["packets and the message"] > chain.MESSAGE


def test_the_model_explains_what_was_measured(benchmark: Any) -> None:
    """In the cases of the kernel that the library launches which an H100 has measured with 8 rows of a cluster."""
    predicted, _ = benchmark.predictions()
    measured = json.loads((ROOT / "benchmarks" / "results" / "cluster-steps-9.0.json").read_bytes())["results"]
    name = {128: "whole-approximate-16", 256: "whole-approximate-16", 512: "pairs-approximate-4"}
    for hidden in (128, 256, 512):
        row = next(
            row for row in measured if (row["variant"], row["batch"], row["hidden"]) == (name[hidden], 16, hidden)
        )
        found = predicted["forward", "present", hidden, 8, "inference"]
        assert found["us_a_step"] == pytest.approx(row["inference"]["us_a_step"], rel=0.2)
        assert sum(found["links"].values()) == pytest.approx(found["clocks"], abs=10)
        # Backward with one row: loads of the saved gates cost the model nothing.
        name_of = "backward-direct-approximate"
        row = next(row for row in measured if (row["variant"], row["batch"], row["hidden"]) == (name_of, 1, hidden))
        found = predicted["backward", "present", hidden, 8, "training"]
        assert 0.7 < found["us_a_step"] / row["training"]["us_a_step"] < 1.1
        assert sum(found["links"].values()) == pytest.approx(found["clocks"], abs=10)
        # Nothing spills: a few registers in local memory would be in nobody's model.
    assert all(row["stack"] == 0 for row in predicted.values())


def test_the_page_has_the_figures_of_the_file(benchmark: Any) -> None:
    predicted, _ = benchmark.predictions()
    page = (ROOT / "docs" / "cluster.md").read_text()
    for table in benchmark.tables([*predicted.values()]).split("\n\n"):
        assert table in page
