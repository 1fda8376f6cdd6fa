"""A fast context-conditioned LSTM for PyTorch, and a ranked image annotator built on it."""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagrank.nn import ContextLSTM, ContextLSTMCell
    from tagrank.ranker.tag_ranker import TagRanker
    from tagrank.recurrence import lstm_recurrence
    from tagrank.recurrence.environment import env

__version__ = "0.1.0"
__all__ = ["ContextLSTM", "ContextLSTMCell", "TagRanker", "env", "lstm_recurrence"]

_HOME = {
    "ContextLSTM": "tagrank.nn",
    "ContextLSTMCell": "tagrank.nn",
    "TagRanker": "tagrank.ranker.tag_ranker",
    "env": "tagrank.recurrence.environment",
    "lstm_recurrence": "tagrank.recurrence",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: importing torch takes a second, and `tagrank --help` does not need it.
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    """Register the operators: programs that torch.export, torch.jit or AOTInductor saved name them."""
    # Whoever uses tagrank meets the same error.
    with suppress(Exception):
        import_module("tagrank.recurrence.operators")


class _AfterTorch(MetaPathFinder):
    """Registers the operators when torch has been imported, for callers that import it after tagrank."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _register()

            loader.exec_module = exec_module
        return spec


if "torch" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterTorch())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
