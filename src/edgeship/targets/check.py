"""What can be known before anything is built: operators, pieces, memory, C library, Python, storage, shapes, types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.targets import micro
from edgeship.targets.facts import OTHER_FLOATS, STANDARD_DOMAINS, CheckResult, ModelFacts
from edgeship.targets.knowledge import TFLITE_ROUTE_OPERATORS
from edgeship.targets.limits import memory, storage
from edgeship.targets.model import RuntimeEntry, Target
from edgeship.targets.system import agent, file_format, glibc, python
from edgeship.targets.wording import listed

#: How a custom operator of a TFLite file is called.
_CUSTOM: Final = "CUSTOM::"


def check(target: Target, facts: ModelFacts) -> tuple[CheckResult, ...]:
    """Everything about a model and a target that needs no build.

    >>> from edgeship.targets.facts import OperatorUse
    >>> pi = Target(id="pi", title="Pi", arch="aarch64", runtimes=(RuntimeEntry(name="litert"),), glibc="2.36",
    ...             memory_bytes=500_000_000, storage_bytes=10**9)
    >>> facts = ModelFacts(operators=(OperatorUse(op="Conv"),), weight_bytes=4_000_000, peak_activation_bytes=1_000_000)
    >>> [each.id for each in check(pi, facts) if each.holds]
    ['operators', 'memory', 'glibc', 'agent', 'storage', 'shapes', 'types']
    """
    results: list[CheckResult] = []
    for entry in target.runtimes:
        results.append(_operators(target, entry, facts))
        results += _pieces(entry, facts)
        results.append(micro.arena(target, facts) if entry.is_micro else memory(target, entry, facts))
        results.append(glibc(target, entry))
        results += python(target, entry)
        results += file_format(target, entry, facts)
    return (*results, agent(target), storage(target, facts), _shapes(target, facts), _types(target, facts))


def blocking(target: Target, results: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
    """The failures that make a build pointless: of the target as a whole, or one of each of its runtimes.

    >>> from edgeship.targets.model import RuntimeEntry
    >>> two = Target(id="t", title="T", arch="aarch64", memory_bytes=1, storage_bytes=1,
    ...              runtimes=(RuntimeEntry(name="litert"), RuntimeEntry(name="onnxruntime")))
    >>> first = CheckResult(id="operators", runtime="litert", holds=False, sentence="no", sure=True)
    >>> other = CheckResult(id="operators", runtime="onnxruntime", holds=False, sentence="no", sure=True)
    >>> len(blocking(two, [first])), len(blocking(two, [first, other]))
    (0, 2)
    """
    certain = [each for each in results if each.holds is False and each.sure]
    whole = [each for each in certain if not each.runtime]
    if whole:
        return tuple(whole)
    firsts = [next((each for each in certain if each.runtime == entry.name), None) for entry in target.runtimes]
    found = tuple(each for each in firsts if each is not None)
    return found if len(found) == len(firsts) else ()


def _operators(target: Target, entry: RuntimeEntry, facts: ModelFacts) -> CheckResult:
    if facts.format == "tflite" and facts.quantized and entry.name != "litert":
        return CheckResult(
            id="operators", runtime=entry.name, holds=False, sure=True,
            sentence="a quantized TFLite file is passed through to LiteRT alone: build from its float model",
            next_step="build from its float model, or choose a target with LiteRT: edgeship targets list",
        )  # fmt: skip
    if facts.shape_options and entry.name == "litert" and not entry.is_micro:
        return CheckResult(
            id="operators", runtime=entry.name, holds=None,
            sentence=f"sizes of {listed(facts.dynamic_inputs)} are free: what litert takes is known once they are set",
            next_step=f"give them to the build: {' '.join(facts.shape_options)}",
        )  # fmt: skip
    refused = set(_not_allowed(target, facts))
    known = _unsupported(entry, facts)
    wrong = sorted(refused | set(known or ()))
    total = sum(use.count for use in facts.operators)
    name = "TensorFlow Lite Micro" if entry.is_micro else entry.name
    if wrong and target.ops.on_unsupported == "error":
        return CheckResult(
            # what one route lowers, another may; what the runtime itself or the target refuses stays refused
            id="operators", runtime=entry.name, holds=False, sure=bool(refused) or not _route(entry, facts),
            sentence=f"{name} on {target.id} does not take {listed(wrong)}",
            next_step="export the model without them, or choose a target with another runtime: edgeship targets list",
        )  # fmt: skip
    if wrong:
        return CheckResult(id="operators", runtime=entry.name, holds=True,
                           sentence=f"{listed(wrong)} run on {target.ops.on_unsupported} instead")  # fmt: skip
    if known is None:
        return _not_asked(entry, facts)
    kinds = f"{len(facts.operators)} kind{'' if len(facts.operators) == 1 else 's'}"
    through = _route(entry, facts)
    later = f"; what {name} takes is checked on the result" if through and entry.is_micro else ""
    return CheckResult(id="operators", runtime=entry.name, holds=True,
                       sentence=f"{through or name + ' takes'} all {total} operators ({kinds}){later}")  # fmt: skip


def _not_asked(entry: RuntimeEntry, facts: ModelFacts) -> CheckResult:
    if facts.format == "tflite" and entry.name == "onnxruntime":
        if custom := sorted(use.label for use in facts.operators if use.op.startswith(_CUSTOM)):
            return CheckResult(
                id="operators", runtime=entry.name, holds=False, sure=True,
                sentence=f"{listed(custom)} cannot be converted to ONNX",
                next_step="export the model without them, or choose a target with another runtime: "
                          "edgeship targets list",
            )  # fmt: skip
        return CheckResult(id="operators", runtime=entry.name, holds=None,
                           sentence="what onnxruntime takes is known once the file is converted to ONNX",
                           next_step="edgeship build converts the file and compares the answers")  # fmt: skip
    return CheckResult(
        id="operators", runtime=entry.name, holds=None, sentence=f"{entry.name} is not installed here to be asked",
        next_step=f"pip install edgeship-agent[{entry.name}]",
    )  # fmt: skip


def _unsupported(entry: RuntimeEntry, facts: ModelFacts) -> tuple[str, ...] | None:
    key = "tflm" if entry.is_micro else entry.name
    if key in facts.unsupported:
        return facts.unsupported[key]
    if _route(entry, facts):
        return tuple(
            use.label
            for use in facts.operators
            if use.domain not in STANDARD_DOMAINS or use.op not in TFLITE_ROUTE_OPERATORS
        )
    return None


def _route(entry: RuntimeEntry, facts: ModelFacts) -> str:
    """Words for the conversion that stands between the model and the runtime, empty where there is none."""
    return "the ONNX → TFLite route lowers" if entry.name == "litert" and facts.format == "onnx" else ""


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


def _pieces(entry: RuntimeEntry, facts: ModelFacts) -> list[CheckResult]:
    """How the delegate splits the model: it costs time and never correctness, so it holds however many there are."""
    found = facts.partitions.get(entry.name)
    if found is None or entry.is_micro:
        return []
    if found.refused:
        return [CheckResult(id="partitions", runtime=entry.name, holds=None, sentence=found.refused)]
    total = found.inside + sum(found.outside.values())
    pieces = f"{found.count} piece{'' if found.count == 1 else 's'}"
    sentence = f"{found.provider} takes {found.inside} of {total} operators in {pieces}"
    if found.outside:
        names = [f"{name} ×{count}" if count > 1 else name for name, count in found.outside.items()]
        sentence += f"; outside: {listed(names)}"
    return [CheckResult(id="partitions", runtime=entry.name, holds=True, sentence=sentence)]


def _shapes(target: Target, facts: ModelFacts) -> CheckResult:
    if not facts.dynamic_inputs:
        return CheckResult(id="shapes", holds=True, sentence="every input has one shape")
    names, options = listed(facts.dynamic_inputs), " ".join(facts.shape_options)
    if target.static_shapes:
        return CheckResult(id="shapes", holds=False, sentence=f"{target.id} needs fixed shapes, not those of {names}",
                           next_step=options or "export the model with fixed input shapes")  # fmt: skip
    if options:
        return CheckResult(id="shapes", holds=None, sentence=f"sizes of {names} are free, and are fixed by the build",
                           next_step=f"give them to the build: {options}")  # fmt: skip
    return CheckResult(id="shapes", holds=True, sentence=f"sizes of {names} vary; {target.id} takes that")


def _types(target: Target, facts: ModelFacts) -> CheckResult:
    words = ", ".join(facts.io_dtypes) or "as the target takes them"
    taken = set(target.dtypes.io)
    written = {"float32" if each in OTHER_FLOATS else each for each in facts.io_dtypes}
    became = (
        [f"; float32 in the build's files instead of {listed(others)}"]
        if (others := sorted(set(facts.io_dtypes) - written))
        else []
    )
    foreign = sorted(written - taken) if taken else []
    if "float32" in foreign and "int8" in taken and not facts.quantized:
        foreign.remove("float32")
        became.append("; quantized, they are int8")
    if foreign:
        return CheckResult(id="types", holds=False, sure=True,
                           sentence=f"{target.id} takes no {listed(foreign)} at its inputs and outputs, only "
                                    f"{', '.join(target.dtypes.io)}",
                           next_step="export the model with such types at its ends; inside it may cast")  # fmt: skip
    return CheckResult(id="types", holds=True, sentence=f"inputs and outputs are {words}{''.join(became)}")
