"""Set up for the tests of the recurrence."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def poisoned() -> Iterator[None]:
    """What torch.empty returns is full of NaN, so that an element shows that is read before it is written, or never is.

    For a module, because hypothesis refuses fixtures for one test.
    """
    before = torch.are_deterministic_algorithms_enabled()
    # As a warning: on GPUs cuBLAS would ask for a workspace that is set up before the process begins.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(64).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
