"""float32 products on GPUs follow cuDNN's setting for RNNs, however the user made it."""

import subprocess
import sys
import timeit
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from tagrank.kernels.variants import Variant
from tagrank.recurrence.backends.triton_kernels import _options
from tagrank.recurrence.precision import float32_precision


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """The defaults, before each test and after it."""

    def defaults() -> None:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")

    defaults()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    defaults()


def for_rnns(value: str) -> None:
    """What ``torch.backends.cudnn.rnn.fp32_precision = value`` does, which some versions of PyTorch hide."""
    torch._C._set_fp32_precision_setter("cuda", "rnn", value)


def set_old_interface(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


def set_generic(value: str) -> None:
    for_rnns("none")
    torch.backends.fp32_precision = value


def set_cudnn(value: str) -> None:
    for_rnns("none")
    torch.backends.cudnn.fp32_precision = value


@pytest.mark.parametrize(
    ("set_to", "exact", "tf32"),
    [
        (set_old_interface, False, True),
        (for_rnns, "ieee", "tf32"),
        (set_generic, "ieee", "tf32"),
        (set_cudnn, "ieee", "tf32"),
    ],
    ids=["allow_tf32", "rnn", "generic", "cudnn"],
)
def test_follows_each_interface(set_to: Callable[[object], None], exact: object, tf32: object) -> None:
    assert float32_precision() == "tf32"
    set_to(exact)
    assert float32_precision() == "tf32x3"
    set_to(tf32)
    assert float32_precision() == "tf32"


def test_both_interfaces_mixed() -> None:
    """PyTorch's own getter of ``allow_tf32`` then raises."""
    for_rnns("ieee")
    with pytest.raises(RuntimeError):
        _ = torch.backends.cudnn.allow_tf32
    assert float32_precision() == "tf32x3"


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("allowed", [True, False])
def test_the_setting_for_matmul_does_not_matter(matmul: str, allowed: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = allowed
    assert float32_precision() == ("tf32" if allowed else "tf32x3")


@pytest.mark.parametrize("allowed", [True, False])
def test_kernels_are_launched_with_it(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    variant = Variant("step", 16, 16, 16, 4)
    assert _options(variant, 64, torch.float32)["PRECISION"] == ("tf32" if allowed else "tf32x3")
    # Kernels of other dtypes are compiled once, whatever the setting is.
    assert _options(variant, 64, torch.float16)["PRECISION"] == "tf32x3"


def test_inside_what_is_compiled() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float32_precision() == "tf32" else x

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert compiled(torch.zeros(())) == 1


@pytest.mark.exhaustive
def test_after_the_import_that_hides_the_public_setting() -> None:
    code = "import torch.backends.cudnn.rnn, tagrank.recurrence.precision as p; print(p.float32_precision())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "tf32\n"


def test_is_cheap() -> None:
    """It is called at each launch. A call takes about 0.2 us; the bound only excludes what is far from it."""
    assert min(timeit.repeat(float32_precision, number=1000, repeat=5)) / 1000 < 10e-6
