"""What a build has to say to continuous integration: one finding a rule that does not hold, one a target. Pure."""

from __future__ import annotations

import os
from pathlib import PurePath

from msgspec import Struct

from edgeship.build.schema import BuildDocument, GateReport, TargetVerdict


class Finding(Struct, frozen=True, kw_only=True):
    """Something that a person should see.

    Attributes:
        rule: id of the rule, or ``target`` for a target's verdict.
        where: ``target/runtime/precision``, or the target.
        level: ``error`` (a target fails), ``warning`` (it is inconclusive) or ``note`` (refused, and something else
            ships).
        text: one sentence.
        next: what would mend it.
    """

    rule: str
    where: str
    level: str
    text: str
    next: str = ""


def label(gate: GateReport) -> str:
    """``target/runtime/precision``."""
    return f"{gate.target}/{gate.runtime}/{gate.precision}"


def findings(document: BuildDocument) -> tuple[Finding, ...]:
    """Targets that do not pass, then every rule that is broken or undecided."""
    verdicts = {each.target: each.verdict for each in document.targets}
    found = [
        Finding(rule="target", where=each.target, level=_LEVELS[each.verdict], text=f"{each.target}: {each.reason}")
        for each in document.targets
        if each.verdict != "pass"
    ]
    for gate in document.gates:
        if gate.holds:
            continue
        verdict = verdicts.get(gate.target, document.verdict)
        level = _LEVELS[verdict] if verdict == "pass" or gate.holds is False else "warning"
        found.append(Finding(rule=gate.id, where=label(gate), level=level, text=gate.sentence, next=gate.next))
    return tuple(found)


#: Verdict of a target → how loud what happened there is.
_LEVELS = {"pass": "note", "fail": "error", "inconclusive": "warning"}


def chosen_text(document: BuildDocument, target: TargetVerdict) -> str:
    """What ships to a target, in one line; latency only where it was measured on the target's ISA class."""
    variant = next((each for each in document.variants if each.chosen and each.target == target.target), None)
    if variant is None:
        return f"{target.target}: {target.verdict}, nothing ships: {target.reason}"
    metric = variant.metric
    latency = (
        f"p99 {variant.latency_p99_ms:.3g} ms" if variant.on_target else f"latency not measured on {target.target}"
    )
    return (
        f"{target.target}: {variant.runtime} {variant.precision} ships, {variant.size_bytes:,} bytes, {metric.name} "
        f"{metric.value:.4g} (95 %: {metric.low:.4g} to {metric.high:.4g}), {latency}"
    )


def source_path(document: BuildDocument, folder: str | None = None) -> str:
    """The source relative to the working folder where it lies in it, with forward slashes; else its name.

    Args:
        document: the build.
        folder: the working folder; None for this process's own.
    """
    if document.source is None:
        return ""
    path = PurePath(document.source.file)
    try:
        return path.relative_to(folder or os.getcwd()).as_posix()  # noqa: PTH109 (a string is wanted)
    except ValueError:
        return path.name
