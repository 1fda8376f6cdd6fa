"""What runs the recurrence: a module for each backend on ``base``, and ``registry``, which chooses among them."""

from tagrank.recurrence.backends.base import Backend, BackwardInputs
from tagrank.recurrence.backends.registry import (
    FUSED,
    check_name,
    choose,
    names,
    passed_over,
    register,
    unavailable,
    unregister,
)

__all__ = [
    "FUSED",
    "Backend",
    "BackwardInputs",
    "check_name",
    "choose",
    "names",
    "passed_over",
    "register",
    "unavailable",
    "unregister",
]
