"""The table compiles for A100, H100 and B200 with hardly a spill and within shared memory. Needs no GPU.

``make test`` compiles a rule of each kind here, and ``make test-all`` each rule once. ``make kernels-report`` compiles
each in all its dtypes and with all its flags, and ``docs/kernels.md`` is what that gave.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagrank.kernels import offline
from tagrank.kernels.choice import RULES
from tagrank.kernels.variants import Gpu

CAPABILITIES = ("8.0", "9.0", "10.0")


def without_interpreter(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=500)


def version(capability: str) -> tuple[int, int]:
    major, minor = map(int, capability.split("."))
    return major, minor


#: Runs ``offline`` on the first case of each variant on each GPU and in each dtype, and of few rows and many.
ONE_OF_EACH_KIND = """
import sys
from tagrank.kernels import offline

every = offline.cases
seen = set()

def one_of_each_kind(capability, quick):
    for case in every(capability, quick):
        variant = case.rule.variant
        kinds = {
            (capability, case.kernel, variant.name),
            (case.kernel, case.dtype, case.rule.aligned),
            (case.kernel, case.dtype, variant.name),
            (capability, variant.block_b >= 64),
        }
        if not kinds <= seen:
            seen.update(kinds)
            yield case

offline.cases = one_of_each_kind
sys.exit(offline.main())
"""


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def reports(request: pytest.FixtureRequest, once: Callable[..., Path]) -> list[dict[str, Any]]:
    def compile_into(folder: Path) -> None:
        program = ("-m", "tagrank.kernels.offline") if request.param == "all" else ("-c", ONE_OF_EACH_KIND)
        result = without_interpreter(*program, "--quick", *CAPABILITIES)
        assert result.stdout, result.stderr
        (folder / "reports.jsonl").write_text(result.stdout)

    folder = once(f"reports-{request.param}", compile_into)
    return [json.loads(line) for line in (folder / "reports.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
def test_hardly_a_spill_and_no_more_shared_memory_than_there_is(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        there = Gpu(version(report["capability"]), 128).shared_memory
        assert report["spilled"] <= offline.MOST_SPILLED, report
        assert 0 < report["registers"] <= 255, report
        assert report["shared_memory"] <= report["shared_limit"] <= there, report
        assert report["shared_memory"] > 0 or report["name"] == "product", report
        assert report["blocks"] >= 1, report


def test_every_kind_was_compiled(reports: list[dict[str, Any]]) -> None:
    for kernel, rules in RULES.items():
        compiled = [report for report in reports if report["kernel"] == kernel]
        for capability in CAPABILITIES:
            names = {rule.variant.name for rule in rules if rule.compiles_for(version(capability))}
            assert {r["name"] for r in compiled if r["capability"] == capability} == names
        assert {(r["dtype"], r["aligned"]) for r in compiled} == {(rule.dtypes[-1], rule.aligned) for rule in rules}


@pytest.mark.exhaustive
@pytest.mark.parametrize("reports", ["all"], indirect=True)
def test_everything_was_compiled(reports: list[dict[str, Any]]) -> None:
    sizes = ("name", "block_b", "block_h", "block_k", "num_warps", "num_stages")
    for capability in CAPABILITIES:
        for kernel, rules in RULES.items():
            compiled = [r for r in reports if (r["capability"], r["kernel"]) == (capability, kernel)]
            assert [tuple(r[size] for size in sizes) for r in compiled] == [
                tuple(getattr(rule.variant, size) for size in sizes)
                for rule in rules
                if rule.compiles_for(version(capability))
            ]


def test_matrix_instructions(reports: list[dict[str, Any]]) -> None:
    """All products are on the tensor cores, in float32 as three TF32 products; 64 rows make a wgmma on Hopper."""
    found = set()
    for report in reports:
        if report["name"] == "product":
            assert report["matrix_instructions"] == [], report
            continue
        if report["capability"] != "8.0" and report["block_b"] >= 64:
            expected = ["wgmma.mma_async" if report["capability"] == "9.0" else "tcgen05.mma"]
        else:
            expected = ["mma.sync"]
        assert report["matrix_instructions"] == expected, report
        found.update(expected)
    assert found == {"mma.sync", "wgmma.mma_async", "tcgen05.mma"}


SAME_CODE = """
import re
from tagrank.kernels.offline import cases, compile_case

def without_locations(code):
    lines = [line for line in code.splitlines() if not line.startswith("#loc")]
    return [re.sub(r" loc[(].*", "", line) for line in lines]

found = {}
for case in cases((8, 0)):
    variant = case.rule.variant
    # Only the smallest tile of each variant: the code of larger tiles differs only in sizes.
    key = (case.kernel, variant.name, *case.flags.items())
    if variant.name == "product":
        continue  # it has no product of its own
    if case.dtype not in ("float16", "bfloat16") or found.get(key, (variant,))[0] != variant or case.hidden > 256 * 2:
        continue
    if any(case.flags.get(name) == wanted for name, wanted in (("RECOMPUTE", True), ("SAVE_GATES", False))):
        continue
    code = without_locations(compile_case(case).asm["ttir"])
    found.setdefault(key, (variant, {}))[1].setdefault(case.hidden, {})[case.dtype] = code
for key, (_, by_hidden) in found.items():
    for codes in by_hidden.values():
        assert codes["float16"] != codes["bfloat16"], key
        assert any("tt.dot" in line for line in codes["float16"]), key
        assert codes["float16"] == [line.replace("bf16", "f16") for line in codes["bfloat16"]], key
    print(*key[:2])
"""


@pytest.mark.timeout(600)
def test_bfloat16_differs_from_float16_only_in_the_dtype() -> None:
    """The interpreter cannot multiply bfloat16. The code is the same, so its results for float16 hold for bfloat16."""
    result = without_interpreter("-c", SAME_CODE)
    assert result.returncode == 0, result.stderr
    expected = {f"{kernel} {name}" for kernel in ("forward", "backward") for name in ("resident", "grouped", "step")}
    assert set(result.stdout.splitlines()) == expected


BARRIER = """
from tagrank.kernels.offline import cases, compile_case

for case in cases((9, 0), quick=True):
    if case.rule.variant.cooperative and case.rule.variant.block_b == 16:
        compiled = compile_case(case)
        assert compiled.metadata.launch_cooperative_grid
        ptx = compiled.asm["ptx"]
        loop = ptx[ptx.index("ld.global.gpu.acquire"):]
        # After the wait, loads bypass the first-level cache. All threads have stored before one thread releases.
        assert loop.index("ld.global.cg") < loop.index("mma.sync") < loop.index("st.global"), case
        release = loop.index("atom.global.gpu.release.add")
        between = loop[loop.rindex("st.global", 0, release):release]
        assert "bar.sync" in between, case
        print(case.kernel)
"""


def test_the_barrier_in_the_code() -> None:
    result = without_interpreter("-c", BARRIER)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.splitlines()) == {"forward", "backward"}


def test_the_interpreter_compiles_nothing() -> None:
    result = without_interpreter("-m", "tagrank.kernels.offline", "9.0", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "TRITON_INTERPRET is set" in result.stderr


@pytest.mark.parametrize("capability", ["9", "9.x", "sm_90", "90.10"])
def test_refuses_what_is_no_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capability: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["offline", "8.0", capability])
    with pytest.raises(SystemExit) as end:
        offline.main()
    assert end.value.code == 2
    assert f"expected a compute capability such as 9.0, got '{capability}'" in capsys.readouterr().err


#: Compiles the kernel of ``test_arithmetic.py``, which the tests otherwise only interpret where there is no GPU.
KERNEL_OF_THE_TESTS = """
import runpy, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

evaluate = runpy.run_path(sys.argv[1])["evaluate"]
for dtype in ("fp32", "fp64"):
    types = dict.fromkeys(("x", "tanh_x", "sigmoid_x"), "*" + dtype) | {"SIZE": "constexpr"}
    triton.compile(ASTSource(evaluate, types, {"SIZE": 1024}), target=GPUTarget("cuda", 90, 32))
"""


def test_the_kernel_of_the_tests_compiles() -> None:
    done = without_interpreter("-c", KERNEL_OF_THE_TESTS, str(Path(__file__).with_name("test_arithmetic.py")))
    assert done.returncode == 0, done.stderr
