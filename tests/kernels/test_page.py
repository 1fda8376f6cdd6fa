"""``docs/kernels.md`` is what its generator writes for the present table."""

from pathlib import Path

import pytest

from tagrank.kernels.choice import RULES
from tagrank.kernels.offline import MOST_SPILLED
from tagrank.kernels.page import HEAD, MODEL, compiled, modelled, modelled_clusters, reasons
from tagrank.kernels.variants import Gpu

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
REPORT = {
    "triton": "3.8.0",
    "kernel": "forward",
    "capability": "9.0",
    "dtype": "float16",
    "name": "grouped",
    "block_b": 16,
    "block_h": 16,
    "block_k": 128,
    "num_warps": 4,
    "num_stages": 1,
    "aligned": True,
    "registers": 80,
    "spilled": 0,
    "shared_memory": 65536,
    "blocks": 3,
    "matrix_instructions": ["mma.sync"],
}


def test_the_worst_over_the_flags_is_shown() -> None:
    worse = REPORT | {"registers": 90, "spilled": 4, "shared_memory": 131072, "blocks": 1}
    (line,) = list(compiled([REPORT, worse]))[2:]
    assert line == ("| 9.0 | forward | grouped 16 x 16 x 128 | 4, 1 | float16 | 90 | 4 | 128 | 1 | mma.sync |")
    (line,) = list(compiled([REPORT, REPORT | {"error": "too large"}]))[2:]
    assert "does not compile with 3.8.0: too large" in line


def test_a_figure_for_each_version_if_they_differ() -> None:
    (line,) = list(compiled([REPORT, REPORT | {"triton": "3.6.0", "registers": 96}]))[2:]
    assert line == "| 9.0 | forward | grouped 16 x 16 x 128 | 4, 1 | float16 | 96 / 80 | 0 | 64 | 3 | mma.sync |"


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_the_page_has_each_entry_and_hardly_one_spills(capability: tuple[int, int]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if "|" in line]
    dotted = f"{capability[0]}.{capability[1]}"
    found = {(row[1], row[2], row[3], row[4]): row for row in rows if row[0] == dotted}
    expected = set()
    for kernel, rules in RULES.items():
        for rule in rules:
            v = rule.variant
            smallest = rule.shared_memory(256) if v.cooperative else rule.shared
            if not rule.compiles_for(capability) or smallest > Gpu(capability, 128).shared_memory:
                continue
            tile = f"{v.name} {v.block_b} x {v.block_h} x {v.block_k}" + ("" if rule.aligned else ", any H")
            # For 10.0, each rule was compiled in only one dtype.
            dtypes = rule.dtypes[-1:] if capability == (10, 0) else rule.dtypes
            expected |= {(kernel, tile, f"{v.num_warps}, {v.num_stages}", dtype) for dtype in dtypes}
    assert found.keys() == expected, "run make kernels-report"
    for row in found.values():
        registers, spilled, shared, blocks = ([int(one) for one in cell.split(" / ")] for cell in row[5:9])
        assert max(registers) <= 255, row
        assert max(spilled) <= MOST_SPILLED, row
        assert max(shared) * 1024 <= Gpu(capability, 128).shared_memory, row
        assert min(blocks) >= 1, row


def test_the_page_is_that_of_this_table() -> None:
    text = PAGE.read_text()
    assert HEAD.format(versions="3.6.0 and 3.8.0") in text
    assert MODEL in text
    for line in (*modelled(), *reasons()):
        assert line.strip() in text, "run make kernels-report"
    assert "It says nothing about the speed that they have" in text


def test_the_page_of_the_cluster_has_the_present_model() -> None:
    text = (PAGE.parent / "cluster.md").read_text()
    assert "\n".join(modelled_clusters()) in text
