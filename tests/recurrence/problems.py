"""Problems for the recurrence, and what is right: the eager loop in float64. For the tests of this folder."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tagrank.recurrence.backends.eager import lstm_loop

#: Of the norm of the reference, for results and gradients. In 16 bit, h and the gates are rounded at each step.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
#: Below this H, 16 bit has NARROW_FACTOR times the tolerance. Rounding errors of so few units do not average out, and
#: some problems are ill-conditioned. In bfloat16 over 20 steps the eager loop has errors up to 0.07 at H = 1 in all but
#: a few of 100 seeds, and up to 0.01 at H = 16 in all. A wrong index or mask gives an error near 1.
NARROW, NARROW_FACTOR = 16, 5
#: gates_x, weight_hh, h0, c0
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
RESULTS = ("output", "c_n", "gates_x", "weight_hh", "h0", "c0")


def tolerance(dtype: torch.dtype, hidden: int) -> float:
    """The largest relative error of a right result."""
    return TOLERANCE[dtype] * (NARROW_FACTOR if hidden < NARROW and dtype.itemsize == 2 else 1)


def make_inputs(
    batch: int, hidden: int, steps: int | None, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> Inputs:
    """Inputs that require gradients; ``gates_x`` is constant if ``steps`` is ``None``.

    The spread of U keeps gradients from exploding.
    """
    generator = torch.Generator(device).manual_seed(seed)
    gates = (batch, 4 * hidden) if steps is None else (steps, batch, 4 * hidden)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(size, generator=generator, device=device) * scale
        return values.to(dtype).requires_grad_()

    states = normal(batch, hidden), normal(batch, hidden)
    return normal(*gates), normal(4 * hidden, hidden, scale=hidden**-0.5), *states


def results(output: Tensor, c_n: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """Both outputs, and the gradients of a sum in which each of their elements has a weight of its own."""
    weights = [grad_weights(t.shape, t.dtype, t.device) for t in (output, c_n)]
    return [output, c_n, *torch.autograd.grad([output, c_n], inputs, weights, retain_graph=retain_graph)]


@lru_cache(maxsize=8)
def grad_weights(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same each time. Cached, because nothing can be drawn while a CUDA graph is captured."""
    generator = torch.Generator(device).manual_seed(1)
    # Short mantissas, so that the numbers are the same in every dtype.
    weights = torch.randn(shape, generator=generator, device=device).bfloat16().to(dtype)
    if device.type == "cuda":
        # Other streams use it too.
        torch.cuda.synchronize()
    return weights


def errors(got: Sequence[Tensor], inputs: Inputs, steps: int) -> dict[str, float]:
    """The relative error, in the norm, of each of ``results``; those of states may be left out."""
    gates_x, weight_hh, h0, c0 = (t.detach().double().requires_grad_() for t in inputs)
    exact = gates_x, weight_hh, h0, c0
    reference = results(*lstm_loop(*exact, steps), exact)
    assert len(got) in (len(RESULTS), len(RESULTS) - 2)
    found = {}
    for name, result, want in zip(RESULTS, got, reference, strict=False):
        assert result.shape == want.shape, name
        assert result.dtype == inputs[0].dtype, name
        error, norm = (result.double() - want).norm().item(), want.norm().item()
        found[name] = error / norm if norm else error
    return found


def assert_matches_the_oracle(
    got: Sequence[Tensor], inputs: Inputs, steps: int, tolerance: float, **others: float
) -> None:
    """Each of ``results`` is within ``tolerance``, or within that of ``others`` which has its name."""
    for name, error in errors(got, inputs, steps).items():
        assert error <= others.get(name, tolerance), f"{name}: {error}"
