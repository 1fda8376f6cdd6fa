"""Compile every kernel that the table can select, without a GPU: ``python -m tagrank.kernels.offline``.

Prints a JSON object for each compilation, one a line. It has

- ``triton``: Triton's version;
- what is launched: ``kernel``, ``capability``, ``dtype``, the fields of ``Variant``, ``aligned``, ``hidden`` (H, which
  only changes the code of grouped variants), and the kernel's flags in lower case;
- ``registers``: registers of a thread;
- ``spilled``: bytes of stack and local memory of a thread;
- ``shared_memory``: bytes of shared memory of a block, and ``shared_limit``, the most that its rule allows;
- ``blocks``: how many blocks fit on a multiprocessor;
- ``matrix_instructions``: the kinds of matrix instructions in the PTX.

If the kernel does not compile, ``error`` replaces all results. The exit status is 1 if a kernel does not compile,
spills more than ``MOST_SPILLED`` bytes, or needs more shared memory than its rule allows.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from tagrank.kernels.backward import lstm_backward
from tagrank.kernels.choice import RULES
from tagrank.kernels.forward import lstm_forward
from tagrank.kernels.variants import ALIGNMENT, FULL_GRID, Gpu, Kernel, Rule, ceil_div

CAPABILITIES = ((8, 0), (9, 0))

#: The most bytes that a thread may spill: a dozen registers, written and read a few times a step in the first-level
#: cache. ptxas leaves out a few registers too many for some flags of tiles that otherwise do not spill.
MOST_SPILLED = 56

_FUNCTIONS = {"forward": lstm_forward, "backward": lstm_backward}
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
#: The kernels' arguments in the accumulation dtype, and those that are integers.
_ACCUMULATED = ("cells", "carry_c", "carry_x", "products")
_SIZES = (
    "step_stride_over_unit",
    "row_stride_over_unit",
    "t0",
    "steps",
    "length",
    "batch",
    "hidden_over_align",
    "cell_slots",
)

#: What a multiprocessor has.
_REGISTERS, _THREADS, _BLOCKS = 65_536, 2048, 32


@dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
        kernel: ``"forward"`` or ``"backward"``.
        capability: the compute capability to compile for.
        dtype: the dtype of the gates.
        rule: the rule whose variant is compiled.
        hidden: H.
        flags: the kernel's flags, which are compiled in.
    """

    kernel: Kernel
    capability: tuple[int, int]
    dtype: str
    rule: Rule
    hidden: int
    flags: dict[str, Any]


def cases(capability: tuple[int, int], quick: bool = False) -> Iterator[Case]:
    """All that the table can select on this capability, with all flags that change the code.

    If ``quick``, each rule once: in the last of its dtypes, for its largest H and with the first of its flags.
    """
    for kernel, rules in RULES.items():
        for rule in rules:
            if not rule.compiles_for(capability):
                continue
            limit = _gpu(capability).shared_memory
            fitting = [h for h in _hidden(rule) if rule.shared_memory(h) <= limit]
            hidden = sorted({*fitting[:1], *fitting[-1:]})
            dtypes, flags = rule.dtypes, _flags(kernel, rule.variant.name)
            if quick:
                hidden, dtypes, flags = hidden[-1:], dtypes[-1:], flags[:1]
            for h, dtype, flag in itertools.product(hidden, dtypes, flags):
                # The precision matters to float32 only. Three products of TF32 numbers take the most registers.
                for precision in ("tf32", "tf32x3") if dtype == "float32" and not quick else ("tf32x3",):
                    yield Case(kernel, capability, dtype, rule, h, {**flag, "PRECISION": precision})


def _gpu(capability: tuple[int, int]) -> Gpu:
    """A GPU of this capability that is large enough for every rule."""
    return Gpu(capability, FULL_GRID)


def _hidden(rule: Rule) -> tuple[int, ...]:
    """The H to compile for: several for a grouped variant, whose code depends on how many chunks its part of U has."""
    if rule.variant.name != "grouped":
        return (rule.max_hidden or 512 if rule.aligned else 500,)
    return tuple(h for h in (256, 512, 768, 1024) if rule.max_hidden is None or h <= rule.max_hidden)


def _flags(kernel: Kernel, variant: str) -> list[dict[str, Any]]:
    """The flags to compile a variant with."""
    # The addend of a layer with a context is a bias; one that also has an input adds the context's share of the gates.
    constant: list[dict[str, Any]] = [{"CONSTANT": True}, {"CONSTANT": False}]
    if kernel == "backward":
        constant = [{**flag, "SUM": flag["CONSTANT"], "GRAD_STRIDE": 1} for flag in constant]
        # Step, with saved gates: the code for a varying input is that for a constant input without some of its parts.
        stepwise = variant in ("step", "product")
        saved = constant[:1] if stepwise else constant
        return [{**c, "RECOMPUTE": False} for c in saved] + [{**c, "RECOMPUTE": True} for c in constant]
    constant = [{**flag, "ADDEND": "row" if flag["CONSTANT"] else "rows"} for flag in constant]
    if variant in ("step", "product"):
        # The code for other flags is this code without some of its parts. Step variants always save c.
        return [{**constant[1], "SAVE_GATES": True, "SAVE_CELLS": True}]
    return [{**c, "SAVE_GATES": save, "SAVE_CELLS": save} for c in constant for save in (True, False)]


def compile_case(case: Case) -> CompiledKernel:
    """Compile as a launch would if T > 1, all tensors are aligned to 16 bytes, and initial states are given."""
    function, variant = _FUNCTIONS[case.kernel], case.rule.variant
    constants = {
        **case.flags,
        "ALIGN": ALIGNMENT if case.rule.aligned else 1,
        "VARIANT": variant.name,
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "CHUNKS": variant.chunks(case.hidden),
    }
    if variant.stepwise:
        constants["steps"] = 1  # the launcher passes 1, and Triton makes an argument that is 1 a constant
    types = dict.fromkeys(function.arg_names, "*" + _TYPES[case.dtype])
    types |= dict.fromkeys(_ACCUMULATED, "*fp64" if case.dtype == "float64" else "*fp32") | {"counters": "*i32"}
    types |= dict.fromkeys(_SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    major, minor = case.capability
    return triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options=variant.launch_options(),
    )


def report(case: Case) -> dict[str, Any]:
    """Compile, and describe the launch and the result in the format that the module's docstring lists."""
    launch = {
        "triton": triton.__version__,
        "kernel": case.kernel,
        "capability": ".".join(map(str, case.capability)),
        "dtype": case.dtype,
        **asdict(case.rule.variant),
        "aligned": case.rule.aligned,
        "hidden": case.hidden,
        **{name.lower(): value for name, value in case.flags.items()},
    }
    try:
        compiled = compile_case(case)
    except (RuntimeError, triton.TritonError) as error:
        return launch | {"error": " ".join(str(error).split())[:100]}
    registers, spilled = _resources(compiled.asm["cubin"])
    matrix = re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", compiled.asm["ptx"])
    return launch | {
        "registers": registers,
        "spilled": spilled,
        "shared_memory": compiled.metadata.shared,
        "shared_limit": case.rule.shared_memory(case.hidden),
        "blocks": _blocks(case, registers, compiled.metadata.shared),
        "matrix_instructions": sorted(set(matrix)),
    }


def _blocks(case: Case, registers: int, shared: int) -> int:
    """How many blocks fit on a multiprocessor, by the registers of a thread and the shared memory of a block."""
    threads = 32 * case.rule.variant.num_warps
    # A thread gets registers in groups of eight. The driver takes 1 KB of shared memory for each block.
    by_registers = _REGISTERS // (ceil_div(registers, 8) * 8 * threads)
    by_shared = (_gpu(case.capability).shared_memory + 1024) // (shared + 1024)
    return min(by_registers, by_shared, _THREADS // threads, _BLOCKS)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of stack and local memory of a thread, for the single kernel in ``cubin``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage: expected a line with REG, STACK and LOCAL, got {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _capability(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a compute capability such as 9.0, got {text!r}")
    return int(found[1]), int(found[2])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tagrank.kernels.offline", description=__doc__.splitlines()[0])
    parser.add_argument(
        "capabilities",
        nargs="*",
        type=_capability,
        default=CAPABILITIES,
        help="compute capabilities to compile for (default: 8.0 9.0)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile each rule once: one dtype, one set of flags, its largest H",
    )
    arguments = parser.parse_args()
    if not isinstance(lstm_forward, triton.JITFunction):
        parser.error("TRITON_INTERPRET is set, so that kernels are interpreted and not compiled: unset it")
    failed = False
    with ProcessPoolExecutor() as pool:
        for result in pool.map(report, [case for c in arguments.capabilities for case in cases(c, arguments.quick)]):
            print(json.dumps(result), flush=True)
            failed |= (
                "error" in result
                or result["spilled"] > MOST_SPILLED
                or result["shared_memory"] > result["shared_limit"]
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
