"""The dtypes of the recurrence, and whether autocast changes them."""

import torch

#: Those of ``gates_x``, the weight and the states.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: The types of device that autocast does not know: ``torch.is_autocast_enabled`` raises for them.
#: ``torch.amp.is_autocast_available`` says the same, but torch.compile cannot trace it before torch 2.12.
_WITHOUT_AUTOCAST = frozenset(
    {"meta", "fpga", "hip", "ideep", "lazy", "mkldnn", "opencl", "opengl", "ve", "vulkan"},
)


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the cell state for gates of ``dtype``: at least float32, because it is a sum over time."""
    return torch.promote_types(dtype, torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return device not in _WITHOUT_AUTOCAST and torch.is_autocast_enabled(device)
