"""Hardware targets: what a device has and wants, as data; parsing and checks, pure."""

from edgeship.targets.check import blocking, check
from edgeship.targets.facts import CheckResult, ModelFacts, OperatorUse, Partitions
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
    "CheckResult",
    "Compiler",
    "Dtypes",
    "Measure",
    "MetricBudget",
    "ModelFacts",
    "OperatorRule",
    "OperatorUse",
    "Operators",
    "Partitions",
    "RuntimeEntry",
    "Target",
    "blocking",
    "check",
    "parse",
    "resolve",
]
