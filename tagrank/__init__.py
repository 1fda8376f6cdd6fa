"""A fast context-conditioned LSTM for PyTorch, and a ranked image annotator built on it."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagrank.annotator import Annotator
    from tagrank.nn import ContextLSTM, ContextLSTMCell
    from tagrank.nn.conversion import convert
    from tagrank.ranker.tag_ranker import TagRanker
    from tagrank.recurrence import lstm_recurrence
    from tagrank.recurrence.environment import env
    from tagrank.recurrence.translation import onnx_translations

__version__ = "0.1.0"
__all__ = [
    "Annotator",
    "ContextLSTM",
    "ContextLSTMCell",
    "TagRanker",
    "convert",
    "env",
    "lstm_recurrence",
    "onnx_translations",
]

_HOME = {
    "Annotator": "tagrank.annotator",
    "ContextLSTM": "tagrank.nn",
    "ContextLSTMCell": "tagrank.nn",
    "TagRanker": "tagrank.ranker.tag_ranker",
    "convert": "tagrank.nn.conversion",
    "env": "tagrank.recurrence.environment",
    "lstm_recurrence": "tagrank.recurrence",
    "onnx_translations": "tagrank.recurrence.translation",
}


def _leave_the_clone() -> None:
    """Take the modules from where pip installed them, if Python has found a clone's folder ``tagrank`` first.

    Python looks into the folder that it is started in before all others. In a clone, ``tagrank`` lacks the kernels,
    which are beside it, and the C++ library. If nothing is installed, the modules are the clone's own.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.isdir(os.path.join(folder, "kernels")):
        return
    for entry in sys.path:
        installed = os.path.join(entry, "tagrank")
        if os.path.isdir(os.path.join(installed, "kernels")):
            __path__[:] = [installed]
            return
    __path__.append(os.path.dirname(folder))


_leave_the_clone()


def __getattr__(name: str) -> Any:
    # Imported when first used: importing torch takes a second, and `tagrank --help` does not need it.
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    """Register the operators, which programs that torch.export, torch.jit or AOTInductor saved name.

    Not if torch was not imported before: `tagrank --help` must not wait for it.
    """
    # Whoever uses tagrank meets the same error.
    with suppress(Exception):
        import_module("tagrank.recurrence.operators")


if "torch" in sys.modules:
    _register()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
