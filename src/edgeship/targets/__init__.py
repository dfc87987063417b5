"""Hardware targets: what a device has and wants, as data; parsing and checks, pure."""

from edgeship.targets.model import (
    Budgets,
    Compiler,
    Dtypes,
    Measure,
    MetricBudget,
    OperatorRule,
    Operators,
    RuntimeEntry,
    Target,
)
from edgeship.targets.parse import parse, resolve

__all__ = [
    "Budgets",
    "Compiler",
    "Dtypes",
    "Measure",
    "MetricBudget",
    "OperatorRule",
    "Operators",
    "RuntimeEntry",
    "Target",
    "parse",
    "resolve",
]
