"""What runs the recurrence: one module for each backend, and ``registry``, which chooses among them."""

from tagrank.recurrence.backends.registry import FUSED, NAMES, check_name, choose, passed_over, refusal, unavailable

__all__ = ["FUSED", "NAMES", "check_name", "choose", "passed_over", "refusal", "unavailable"]
