"""Compile all that the table can select, without a GPU, and say what it costs: ``python -m tagrank.kernels.offline``.

Prints one JSON object a line: the version of ``triton``; the launch (``kernel``, ``capability``, ``dtype``, variant and
tile sizes, ``hidden`` where the variant is compiled for it, flags); and what the compiler made of it: ``registers`` a
thread; ``spilled``, the bytes of stack and local memory a thread; ``shared_memory``, the bytes a block, with its
``shared_limit``; ``blocks``, how many fit on a multiprocessor; ``matrix_instructions``, the kinds found in the PTX.
Where it does not compile, there is an ``error`` in the place of all these.
Exits with 1 where a kernel does not compile, spills, or needs more shared memory than its rule says.
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
from tagrank.kernels.variants import ALIGNMENT, FULL_GRID, Gpu, Kernel, Rule

CAPABILITIES = ((8, 0), (9, 0))

_FUNCTIONS = {"forward": lstm_forward, "backward": lstm_backward}
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_STATE = ("cells", "carry_c", "carry_x")  # arguments in the dtype of the cell state
_SIZES = ("t0", "steps", "length", "batch", "hidden_over_align", "cell_slots")


#: Of a multiprocessor: registers, threads, blocks.
_REGISTERS, _THREADS, _BLOCKS = 65_536, 2048, 32


@dataclass(frozen=True)
class Case:
    """One compilation: a rule, for one capability, dtype and H, with the kernel's flags."""

    kernel: Kernel
    capability: tuple[int, int]
    dtype: str
    rule: Rule
    hidden: int
    flags: dict[str, Any]


def cases(capability: tuple[int, int], quick: bool = False) -> Iterator[Case]:
    """What the table can select on this capability, each with the flags that make different code of it.

    Where ``quick``, each rule in the last of its dtypes, for its largest H and with its first flags alone.
    """
    gpu = Gpu(capability, FULL_GRID)
    for kernel, rules in RULES.items():
        for rule in rules:
            if not rule.compiles_for(capability):
                continue
            fitting = [h for h in _hidden(rule) if rule.shared_memory(h) <= gpu.shared_memory]
            hidden = sorted({*fitting[:1], *fitting[-1:]})
            dtypes, flags = rule.dtypes, _flags(kernel, rule.variant.name)
            if quick:
                hidden, dtypes, flags = hidden[-1:], dtypes[-1:], flags[:1]
            for h, dtype, flag in itertools.product(hidden, dtypes, flags):
                for precision in ("tf32", "ieee") if dtype == "float32" and not quick else ("ieee",):
                    yield Case(kernel, capability, dtype, rule, h, {**flag, "PRECISION": precision})


def _hidden(rule: Rule) -> tuple[int, ...]:
    """The H to compile for: a grouped variant's code depends on the number of its chunks of U."""
    if rule.variant.name != "grouped":
        return (rule.max_hidden or 512,)
    return tuple(h for h in (256, 512, 768, 1024) if rule.max_hidden is None or h <= rule.max_hidden)


def _flags(kernel: Kernel, variant: str) -> list[dict[str, bool]]:
    constant = [{"CONSTANT": True}, {"CONSTANT": False}]
    if kernel == "backward":
        # In the step variant a varying input only leaves out part of what a constant one does.
        saved = constant[:1] if variant == "step" else constant
        return [{**c, "RECOMPUTE": False} for c in saved] + [{**c, "RECOMPUTE": True} for c in constant]
    if variant == "step":
        # The same goes for a constant input, and for not saving; c is written in any case.
        return [{"CONSTANT": False, "SAVE_GATES": True, "SAVE_CELLS": True}]
    return [{**c, "SAVE_GATES": save, "SAVE_CELLS": save} for c in constant for save in (True, False)]


def compile_case(case: Case) -> CompiledKernel:
    """Compile as a launch would: for T > 1, 16-byte aligned tensors and given initial states."""
    function, variant = _FUNCTIONS[case.kernel], case.rule.variant
    values = {
        **case.flags,
        "ALIGN": ALIGNMENT if case.rule.aligned else 1,
        "VARIANT": variant.name,
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "CHUNKS": variant.chunks(case.hidden),
    }
    if variant.name == "step":
        values["steps"] = 1  # as the launcher passes it, and Triton then takes it for a constant
    signature = dict.fromkeys(function.arg_names, "*" + _TYPES[case.dtype])
    signature |= dict.fromkeys(_STATE, "*fp64" if case.dtype == "float64" else "*fp32") | {"counters": "*i32"}
    signature |= dict.fromkeys(_SIZES, "i32") | dict.fromkeys(values, "constexpr")
    signature = {name: signature[name] for name in function.arg_names}
    divisible = [name for name, kind in signature.items() if kind.startswith("*")]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    major, minor = case.capability
    return triton.compile(
        ASTSource(function, signature, values, attributes),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options=variant.launch_options(),
    )


def report(case: Case) -> dict[str, Any]:
    """Compile, and describe the launch and the result as the module says."""
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
    gpu, threads = Gpu(case.capability, FULL_GRID), 32 * case.rule.variant.num_warps
    # A block takes registers by eight a thread, and 1 KB of shared memory for the driver.
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = (gpu.shared_memory + 1024) // (compiled.metadata.shared + 1024)
    return launch | {
        "registers": registers,
        "spilled": spilled,
        "shared_memory": compiled.metadata.shared,
        "shared_limit": case.rule.shared_memory(case.hidden),
        "blocks": min(by_registers, by_shared, _THREADS // threads, _BLOCKS),
        "matrix_instructions": sorted(set(matrix)),
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of the one kernel in ``cubin``."""
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tagrank.kernels.offline", description=__doc__.splitlines()[0])
    parser.add_argument(
        "capabilities", nargs="*", default=[f"{a}.{b}" for a, b in CAPABILITIES], help="such as 8.0; default: 8.0 9.0"
    )
    parser.add_argument("--quick", action="store_true", help="each rule once: in one dtype, at its largest H")
    arguments = parser.parse_args()
    if not isinstance(lstm_forward, triton.JITFunction):
        parser.error("TRITON_INTERPRET is set, so that there is nothing to compile: unset it")
    chosen = [(int(name.split(".")[0]), int(name.split(".")[1])) for name in arguments.capabilities]
    failed = False
    with ProcessPoolExecutor() as pool:
        for result in pool.map(report, [case for c in chosen for case in cases(c, arguments.quick)]):
            print(json.dumps(result), flush=True)
            failed |= "error" in result or result["spilled"] > 0 or result["shared_memory"] > result["shared_limit"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
