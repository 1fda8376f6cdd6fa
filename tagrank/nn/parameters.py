"""The parameters of an LSTM whose input has a context beside it, for the layer and its cell."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lstm_parameters(
    features: int,
    hidden_size: int,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    proj_size: int = 0,
) -> dict[str, nn.Parameter]:
    """New parameters, not initialised, by the names and in the order of ``nn.LSTMCell(features, hidden_size)``.

    With a projection, ``weight_hr`` is the last one, as in a layer of ``nn.LSTM``.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (4 * hidden_size, features),
        "weight_hh": (4 * hidden_size, proj_size or hidden_size),
    }
    if bias:
        shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)}
    if proj_size:
        shapes["weight_hr"] = (proj_size, hidden_size)
    return {name: nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for name, shape in shapes.items()}


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Replace all parameters of a module by copies of another one's, which may be attributes of it only."""
    for name in [name for name, _ in target.named_parameters()]:
        tensor: Tensor = getattr(source, name)
        setattr(target, name, nn.Parameter(tensor.detach().clone(), tensor.requires_grad))


def initialise(module: nn.Module, hidden_size: int) -> None:
    """Draw all parameters uniformly from ``(-1/sqrt(H), 1/sqrt(H))``, as nn.LSTM and nn.LSTMCell do."""
    bound = 1.0 / math.sqrt(hidden_size)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)


def add_bias(bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """The sum of the two biases of an LSTM, as which they enter the gates."""
    return None if bias_ih is None or bias_hh is None else bias_ih + bias_hh


def context_share(
    context: Tensor, weight_ih: Tensor, input_size: int, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The context's share of the gates, and the weight of the input.

    Args:
        context: ``[..., C]``.
        weight_ih: ``[4H, I + C]``, the columns ordered input, then context.
        input_size: ``I``.
        bias: ``[4H]``.

    Returns:
        ``[..., 4H]`` with the bias added, and ``[4H, I]``, or ``None`` if ``I`` is 0.
    """
    if input_size == 0:
        return F.linear(context, weight_ih, bias), None
    # One split and not two slices: in backward, each slice fills and adds a gradient of the whole weight's size.
    of_input, of_context = weight_ih.split([input_size, weight_ih.shape[1] - input_size], dim=1)
    return F.linear(context, of_context, bias), of_input
