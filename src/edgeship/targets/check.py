"""What can be known before anything is built: operators, memory, storage, C library, shapes, types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

from edgeship.targets.knowledge import RUNTIME_MEMORY_BYTES, TFLITE_ROUTE_OPERATORS, WHEEL_GLIBC
from edgeship.targets.model import RuntimeEntry, Target

#: A runtime packs weights anew for its kernels, so that two copies may be in memory while a model is loaded.
_WEIGHT_COPIES: Final = 2
#: A device keeps the active bundle and the one to go back to.
_STORED_COPIES: Final = 2
_SHOWN: Final = 6
_STANDARD_DOMAINS: Final = ("", "ai.onnx")


class OperatorUse(Struct, frozen=True, kw_only=True):
    """An operator of a model.

    Attributes:
        domain: empty for ONNX's own.
        dtypes: types of its inputs, where known.
        max_rank: highest rank of its inputs, 0 where unknown.
    """

    op: str
    domain: str = ""
    count: int = 1
    dtypes: tuple[str, ...] = ()
    max_rank: int = 0

    @property
    def label(self) -> str:
        """``Conv``, or ``com.example::Conv`` outside the standard domain."""
        return self.op if self.domain in _STANDARD_DOMAINS else f"{self.domain}::{self.op}"


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What a float model is made of.

    Attributes:
        weight_bytes: of all constants.
        peak_activation_bytes: largest sum of live tensors for a batch of one; None where shapes are not known.
        dynamic_inputs: inputs with an unknown size besides the batch.
        io_dtypes: types of inputs and outputs.
        unsupported: runtime → labels of operators that the installed runtime does not take; a runtime that could not be
            asked is missing.
    """

    operators: tuple[OperatorUse, ...]
    weight_bytes: int
    peak_activation_bytes: int | None = None
    dynamic_inputs: tuple[str, ...] = ()
    io_dtypes: tuple[str, ...] = ()
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class CheckResult(Struct, frozen=True, kw_only=True):
    """One thing that was checked.

    Attributes:
        runtime: empty where it is about the target as a whole.
        holds: True, False, or None where it could not be told.
        next_step: what to do where it does not hold.
    """

    id: str
    runtime: str = ""
    holds: bool | None
    sentence: str
    next_step: str = ""


def check(target: Target, facts: ModelFacts) -> tuple[CheckResult, ...]:
    """Everything about a model and a target that needs no build.

    >>> from edgeship.targets.model import RuntimeEntry
    >>> pi = Target(id="pi", title="Pi", arch="aarch64", runtimes=(RuntimeEntry(name="litert"),), glibc="2.36",
    ...             memory_bytes=500_000_000, storage_bytes=10**9)
    >>> facts = ModelFacts(operators=(OperatorUse(op="Conv"),), weight_bytes=4_000_000, peak_activation_bytes=1_000_000)
    >>> [(each.id, each.holds) for each in check(pi, facts)]
    [('operators', True), ('memory', True), ('glibc', True), ('storage', True), ('shapes', True), ('types', True)]
    """
    results: list[CheckResult] = []
    for entry in target.runtimes:
        results += [_operators(target, entry, facts), _memory(target, entry, facts), _glibc(target, entry)]
    return (*results, _storage(target, facts), _shapes(target, facts), _types(target, facts))


def _operators(target: Target, entry: RuntimeEntry, facts: ModelFacts) -> CheckResult:
    refused = set(_not_allowed(target, facts))
    known = _unsupported(entry.name, facts)
    wrong = sorted(refused | set(known or ()))
    total = sum(use.count for use in facts.operators)
    if wrong and target.ops.on_unsupported == "error":
        return CheckResult(
            id="operators", runtime=entry.name, holds=False,
            sentence=f"{entry.name} on {target.id} does not take {_list(wrong)}",
            next_step="export the model without them, or choose a target with another runtime: edgeship targets list",
        )  # fmt: skip
    if wrong:
        return CheckResult(id="operators", runtime=entry.name, holds=True,
                           sentence=f"{_list(wrong)} run on {target.ops.on_unsupported} instead")  # fmt: skip
    if known is None:
        return CheckResult(
            id="operators", runtime=entry.name, holds=None, sentence=f"{entry.name} is not installed here to be asked",
            next_step=f"pip install edgeship-agent[{entry.name}]",
        )  # fmt: skip
    route = "the ONNX → TFLite route lowers" if entry.name == "litert" else f"{entry.name} takes"
    return CheckResult(id="operators", runtime=entry.name, holds=True,
                       sentence=f"{route} all {total} operators ({len(facts.operators)} kinds)")  # fmt: skip


def _unsupported(runtime: str, facts: ModelFacts) -> tuple[str, ...] | None:
    if runtime in facts.unsupported:
        return facts.unsupported[runtime]
    if runtime == "litert":
        return tuple(
            use.label
            for use in facts.operators
            if use.domain not in _STANDARD_DOMAINS or use.op not in TFLITE_ROUTE_OPERATORS
        )
    return None


def _not_allowed(target: Target, facts: ModelFacts) -> list[str]:
    """Operators that the target's own rules refuse."""
    rules = {rule.op: rule for rule in target.ops.allow}
    refused = []
    for use in facts.operators:
        rule = rules.get(use.label)
        wrong_type = rule and rule.dtypes and use.dtypes and not set(use.dtypes) <= set(rule.dtypes)
        wrong_rank = rule and rule.max_rank and use.max_rank > rule.max_rank
        if use.label in target.ops.deny or (rules and rule is None) or wrong_type or wrong_rank:
            refused.append(use.label)
    return refused


def _memory(target: Target, entry: RuntimeEntry, facts: ModelFacts) -> CheckResult:
    needed = RUNTIME_MEMORY_BYTES[entry.name] + _WEIGHT_COPIES * facts.weight_bytes + (facts.peak_activation_bytes or 0)
    sentence = (
        f"about {_megabytes(needed)} for a worker in fp32 (runtime {_megabytes(RUNTIME_MEMORY_BYTES[entry.name])}, "
        f"weights {_megabytes(facts.weight_bytes)} twice, activations "
        f"{'unknown' if facts.peak_activation_bytes is None else _megabytes(facts.peak_activation_bytes)}); "
        f"{target.id} gives {_megabytes(target.memory_bytes)}"
    )
    if needed > target.memory_bytes:
        return CheckResult(id="memory", runtime=entry.name, holds=False, sentence=sentence,
                           next_step="use a smaller model, or a target with more memory")  # fmt: skip
    holds = None if facts.peak_activation_bytes is None else True
    hint = "" if holds else "give every input a fixed shape to have activations estimated"
    return CheckResult(id="memory", runtime=entry.name, holds=holds, sentence=sentence, next_step=hint)


def _glibc(target: Target, entry: RuntimeEntry) -> CheckResult:
    if not target.glibc:
        return CheckResult(id="glibc", runtime=entry.name, holds=True, sentence=f"does not apply to {target.os}")
    needed = WHEEL_GLIBC.get((entry.name, target.arch))
    if needed is None:
        return CheckResult(id="glibc", runtime=entry.name, holds=not target.agent and None,
                           sentence=f"{entry.name} has no wheel for {target.arch}",
                           next_step="choose another runtime for this target")  # fmt: skip
    wanted = ".".join(map(str, needed))
    if tuple(map(int, target.glibc.split("."))) >= needed:
        return CheckResult(id="glibc", runtime=entry.name, holds=True,
                           sentence=f"{target.glibc} there, the wheel of {entry.name} asks for {wanted}")  # fmt: skip
    return CheckResult(id="glibc", runtime=entry.name, holds=False,
                       sentence=f"the wheel of {entry.name} asks for {wanted}, {target.id} has {target.glibc}",
                       next_step="upgrade the devices' system, or choose another runtime")  # fmt: skip


def _storage(target: Target, facts: ModelFacts) -> CheckResult:
    needed = _STORED_COPIES * facts.weight_bytes
    sentence = f"{_megabytes(needed)} for two versions in fp32; {target.id} gives {_megabytes(target.storage_bytes)}"
    holds = needed <= target.storage_bytes
    return CheckResult(id="storage", holds=holds, sentence=sentence, next_step="" if holds else "use a smaller model")


def _shapes(target: Target, facts: ModelFacts) -> CheckResult:
    if not facts.dynamic_inputs:
        return CheckResult(id="shapes", holds=True, sentence="every input has one shape")
    names = _list(list(facts.dynamic_inputs))
    if target.static_shapes:
        return CheckResult(id="shapes", holds=False, sentence=f"{target.id} needs fixed shapes, not those of {names}",
                           next_step="export the model with fixed input shapes")  # fmt: skip
    return CheckResult(id="shapes", holds=True, sentence=f"sizes of {names} vary; {target.id} takes that")


def _types(target: Target, facts: ModelFacts) -> CheckResult:
    foreign = sorted(set(facts.io_dtypes) - set(target.dtypes.io)) if target.dtypes.io else []
    if foreign:
        return CheckResult(id="types", holds=False, sentence=f"{target.id} takes no {_list(foreign)} at its inputs and "
                           f"outputs, only {', '.join(target.dtypes.io)}",
                           next_step="cast inside the application, or export the model with another type")  # fmt: skip
    words = ", ".join(facts.io_dtypes) or "as the target takes them"
    return CheckResult(id="types", holds=True, sentence=f"inputs and outputs are {words}")


def _list(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _megabytes(size_bytes: int) -> str:
    """Decimal megabytes, with a digit after the point where it says something."""
    value = size_bytes / 1e6
    return f"{value:,.0f} MB" if value >= 10 else f"{value:.1f} MB" if value >= 0.1 else f"{size_bytes / 1e3:.0f} kB"
