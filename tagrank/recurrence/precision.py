"""How precisely float32 products are computed on GPUs."""

from typing import Literal

import torch

Precision = Literal["tf32", "tf32x3"]


def precision(dtype: torch.dtype) -> Precision:
    """:func:`float32_precision` for float32. ``"tf32x3"``, which allows no TF32, for other dtypes."""
    return float32_precision() if dtype == torch.float32 else "tf32x3"


def float32_precision() -> Precision:
    """The precision of float32 products, in the recurrence and around it, by the setting that ``nn.LSTM`` obeys.

    The setting is cuDNN's for RNNs. PyTorch has two interfaces to it, ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cudnn.rnn.fp32_precision``, and this function follows both.

    Returns:
        ``"tf32"`` if TF32 is allowed, as it is by default: operands are rounded to 11 significant bits. ``"tf32x3"``
        if it is not: each operand is the sum of two TF32 numbers, and three products of these give float32 results.
    """
    # The public attributes can fail: reading allow_tf32 raises if RNNs and convolutions are set differently, and
    # `import torch.backends.cudnn.rnn` hides rnn.fp32_precision in PyTorch 2.10.
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32" else "tf32x3"


# What torch.compiler.assume_constant_result does, which would import all of torch's compiler. Calls that are traced
# take the setting from when they were traced; the operators of the recurrence are not traced, and read it in each call.
float32_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]
