"""The one operation of the layer, ``lstm_recurrence``, and the backends that run it.

``op`` checks the arguments and ``operators`` registers both passes with PyTorch. ``backends`` has the class that a
backend derives from, the backends, and the choice among them: ``eager`` is the oracle, ``native`` the C++ of ``csrc/``,
``cluster`` the CUDA C++ of ``csrc/cuda``, ``triton`` the kernels of ``kernels/``. ``trace`` lists the kernels that ran,
``explain`` says which would run and why, ``environment`` which could.
"""

from tagrank.recurrence.explain import explain
from tagrank.recurrence.op import lstm_recurrence
from tagrank.recurrence.tracing import trace

__all__ = ["explain", "lstm_recurrence", "trace"]
