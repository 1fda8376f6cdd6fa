"""The one operation of the layer, ``lstm_recurrence``, and the backends that run it.

``eager`` is the oracle, ``native`` the C++ of ``csrc/``, ``triton`` the kernels of ``kernels/``; ``backends`` chooses,
``op`` registers with PyTorch, ``trace`` tells what ran, ``explain`` what would and why, ``environment`` what could.
"""

from tagrank.recurrence.explain import explain
from tagrank.recurrence.op import lstm_recurrence
from tagrank.recurrence.tracing import trace

__all__ = ["explain", "lstm_recurrence", "trace"]
