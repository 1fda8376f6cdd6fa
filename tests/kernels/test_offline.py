"""Every entry of the table compiles for A100 and H100 without a spill and within shared memory. Needs no GPU."""

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

SHARED_LIMIT = {"8.0": 166_912, "9.0": 232_448}


def offline(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, "-m", "tagrank.kernels.offline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    result = offline()
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines, result.stderr
    return lines


@pytest.mark.timeout(600)
def test_no_spill_and_no_more_shared_memory_than_there_is(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["spilled"] == 0, report
        assert 0 < report["registers"] <= 255, report
        assert 0 < report["shared_memory"] <= report["shared_limit"] <= SHARED_LIMIT[report["capability"]], report


def test_everything_was_compiled(reports: list[dict[str, Any]]) -> None:
    from tagrank.kernels.choice import RULES

    for capability in SHARED_LIMIT:
        for kernel, rules in RULES.items():
            expected = Counter(dtype for rule in rules for dtype in rule.dtypes)
            compiled = {
                (r["dtype"], r["name"], r["block_b"], r["block_h"], r["block_k"], r["aligned"])
                for r in reports
                if (r["capability"], r["kernel"]) == (capability, kernel)
            }
            assert Counter(dtype for dtype, *_ in compiled) == expected


def test_matrix_instructions(reports: list[dict[str, Any]]) -> None:
    """All products are on the tensor cores, but for float32 without TF32; 64 rows make a wgmma on Hopper."""
    for report in reports:
        if report["dtype"] == "float32" and report["precision"] == "ieee":
            expected = []
        elif report["capability"] == "9.0" and report["block_b"] == 64:
            expected = ["wgmma.mma_async"]
        else:
            expected = ["mma.sync"]
        assert report["matrix_instructions"] == expected, report


def test_the_interpreter_compiles_nothing() -> None:
    result = offline("9.0", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "TRITON_INTERPRET is set" in result.stderr
