"""How likely a list is to reach each of its positions."""

from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

P = TypeVar("P", Tensor, "npt.NDArray[np.float64]")


def reach(p: P) -> P:
    """The probability that a list reaches each position, ``r_t = prod_{s<t} (1 - p_s(END))``.

    Args:
        p: ``[B, S, V + 1]``, the distribution over tags and END at each position, END last: a tensor or an array.

    Returns:
        ``[B, S]``.
    """
    reached = 1 - p[..., -1]
    reached[:, 1:] = reached[:, :-1].cumprod(1)
    reached[:, 0] = 1
    return reached
