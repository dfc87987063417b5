"""What a message must keep to before it may enter the database: sizes of strings and lists, ranges of numbers.

The decoder vouches for types alone. A number that no column holds, or a name of a megabyte, is as malformed as
bytes that cannot be read, and is told apart here so that nothing behind this line has to think of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import (
    Birth,
    Death,
    Heartbeat,
    OutboxCounters,
    RunningArm,
    UpdateReport,
    Window,
    WindowBatch,
)
from edgeship_agent.contract.profiling import ProfileReport
from edgeship_agent.contract.sketch import MAX_SKETCH_ENTRIES, BinnedSketch, Sketch

#: Longest name (model, version, boot id, reason code, ...), in characters.
MAX_NAME: Final = 256
#: Longest sentence, in characters.
MAX_SENTENCE: Final = 4096
#: Most entries of a list or map in one message.
MAX_ENTRIES: Final = 1024
#: Greatest count: exact as a float and in every JSON reader.
MAX_COUNT: Final = 2**53 - 1
#: Greatest fixed-point sum of a sketch: values are clipped at 2^20 steps, so 2^41 of their squares fit.
MAX_SUM: Final = 2**81

DeviceMessage = Birth | Death | Heartbeat | WindowBatch | UpdateReport | ProfileReport


def admit(device_id: str, message: DeviceMessage) -> None:
    """Check a decoded message that arrived under a device's topic; of windows no more than whose they are.

    What is wrong inside a window costs that window alone: :func:`refused_windows` tells which.

    Raises:
        ContractError: it speaks for another device, or breaks a bound; names the field.

    >>> admit("a", Death(protocol_version=1, device_id="a", session=3))
    """
    if message.device_id != device_id:
        got = message.device_id[:80]
        raise ContractError("speaks for another device", key="device_id", expected=device_id, got=got)
    if isinstance(message, WindowBatch):
        _check_batch(message)
    elif isinstance(message, UpdateReport):
        _check_report(message)
    elif isinstance(message, ProfileReport):
        _check_profile(message)
    elif isinstance(message, Death):
        _count("session", message.session)
    else:
        _check_state(message)


def _check_state(message: Birth | Heartbeat) -> None:
    _count("session", message.session)
    _count("goal_generation", message.goal_generation)
    _check_outbox(message.outbox)
    _check_running(message.running)
    if isinstance(message, Heartbeat):
        _finite("uptime_s", message.uptime_s)
        return
    _finite("sent_at_s", message.sent_at_s)
    for name in ("clock_quality", "agent_version", "target", "arch"):
        _name(name, getattr(message, name))
    _names("isa", message.isa)
    for key in ("runtimes", "tags", "accepts"):
        entries: dict[str, str] = getattr(message, key)
        _names(key, entries)
        _names(key, entries.values())
    _entries("last_reports", message.last_reports)
    for report in message.last_reports:
        if report.device_id != message.device_id:
            raise ContractError("speaks for another device", key="last_reports.device_id")
        _check_report(report)


def _check_running(running: tuple[RunningArm, ...]) -> None:
    _entries("running", running)
    for arm in running:
        said = (arm.model, arm.arm, arm.version, arm.digest, arm.variant, arm.state, arm.retained_version, arm.fallback)
        _names("running", said)


def _check_report(report: UpdateReport) -> None:
    for name in ("deployment", "model", "arm", "version", "digest", "reason", "loaded_digest"):
        _name(name, getattr(report, name))
    _name("detail", report.detail, MAX_SENTENCE)
    for name in ("attempt", "seq", "session"):
        _count(name, getattr(report, name))
    _finite("at_s", report.at_s)
    _names("figures", report.figures)


def _check_profile(report: ProfileReport) -> None:
    _name("job_id", report.job_id)
    _name("label", report.label)
    _name("detail", report.detail, MAX_SENTENCE)
    for name in ("seq", "done", "total"):
        _count(name, getattr(report, name))


def _check_batch(batch: WindowBatch) -> None:
    _name("boot_id", batch.boot_id)
    _count("floor_seq", batch.floor_seq)
    _check_outbox(batch.outbox)
    _entries("windows", batch.windows)
    for window in batch.windows:
        if window.boot_id != batch.boot_id:
            raise ContractError("window of another start of the agent", key="windows.boot_id")
        _check_seq(window)


def _check_seq(window: Window) -> None:
    _count("seq", window.seq)
    if window.seq == 0:
        raise ContractError("out of range", key="seq", expected="≥ 1", got=0)


def refused_windows(batch: WindowBatch) -> dict[int, ContractError]:
    """Windows of an admitted batch that can never be stored, by their number, and why.

    Whoever would refuse the whole batch for one of them would get it again for ever, and nothing that comes after.
    """
    refused = {}
    for window in batch.windows:
        try:
            check_window(window)
        except ContractError as error:
            refused[window.seq] = error
    return refused


def check_window(window: Window) -> None:
    """Check one window.

    Raises:
        ContractError: a bound is broken; names the field.
    """
    for name in ("boot_id", "model", "version", "arm", "digest", "variant", "profile_hash", "clock_quality"):
        _name(name, getattr(window, name))
    for name in ("started_at_s", "ended_at_s"):
        _finite(name, getattr(window, name))
    _check_seq(window)
    for name in ("inferences", "failures", "deadline_misses", "shed", "crashes"):
        _count(name, getattr(window, name))
    _check_sketch("latency_us", window.latency_us)
    if window.stream_delay_us is not None:
        _check_sketch("stream_delay_us", window.stream_delay_us)
    _names("signals", window.signals)
    for name, sketch in window.signals.items():
        _check_sketch(name, sketch)
    _names("schema_faults", window.schema_faults)
    for name, count in window.schema_faults.items():
        _count(name, count)
    _names("gauges", window.gauges)
    _names("hard_stops", window.hard_stops)
    _check_notes(window)


def _check_notes(window: Window) -> None:
    _count("label_unknown", window.label_unknown)
    _count("label_lost", window.label_lost)
    for key, tallies in (("labels", window.labels), ("outcomes", window.outcomes), ("shadow", window.shadow)):
        _entries(key, tallies)
    for label in window.labels:
        _names("labels", (label.version, label.arm, label.digest))
        for name in ("labelled", "correct", "confidence_sum_millionths"):
            _count(f"labels.{name}", getattr(label, name))
        if label.correct > label.labelled:
            raise ContractError("more right than labelled", key="labels.correct", expected=f"≤ {label.labelled}")
        _entries("labels.confusion", label.confusion)
        if any(abs(part) > MAX_COUNT for cell in label.confusion for part in cell):
            raise ContractError("out of range", key="labels.confusion")
        _finite("labels.predicted_from_s", label.predicted_from_s)
        _finite("labels.predicted_until_s", label.predicted_until_s)
    for outcome in window.outcomes:
        _names("outcomes", (outcome.version, outcome.arm, outcome.digest, outcome.name))
        _count("outcomes.count", outcome.count)
        _finite("outcomes.total", outcome.total)
        _finite("outcomes.square_total", outcome.square_total)
    for shadow in window.shadow:
        _names("shadow", (shadow.version, shadow.digest))
        for name in ("compared", "disagreed", "failed", "dropped", "busy_us"):
            _count(f"shadow.{name}", getattr(shadow, name))
        _finite("shadow.error_square_sum", shadow.error_square_sum)
        _finite("shadow.champion_square_sum", shadow.champion_square_sum)


def _check_sketch(name: str, sketch: Sketch) -> None:
    if isinstance(sketch, BinnedSketch):
        counts: Iterable[int] = (*sketch.counts, sketch.missing_count)
        if abs(sketch.sum_fixed) > MAX_SUM or not 0 <= sketch.sum_square_fixed <= MAX_SUM:
            raise ContractError("sum out of range", key=name)
    else:
        counts = sketch.counts.values()
        if any(abs(index) > 2**31 for index in sketch.counts):
            raise ContractError("bucket out of range", key=name)
    counts = tuple(counts)
    _entries(name, counts, MAX_SKETCH_ENTRIES)
    if counts and not (min(counts) >= 0 and sum(counts) <= MAX_COUNT):
        raise ContractError("count out of range", key=name, expected=f"0–{MAX_COUNT}")


def _check_outbox(outbox: OutboxCounters) -> None:
    for name in OutboxCounters.__struct_fields__:
        _count(f"outbox.{name}", getattr(outbox, name))


def _name(key: str, value: str, limit: int = MAX_NAME) -> None:
    if len(value) > limit:
        raise ContractError("too long", key=key, expected=f"≤ {limit} characters", got=len(value))


def _names(key: str, values: Iterable[str]) -> None:
    listed = list(values)
    _entries(key, listed)
    for value in listed:
        _name(key, value)


def _entries(key: str, values: tuple[object, ...] | list[str], limit: int = MAX_ENTRIES) -> None:
    if len(values) > limit:
        raise ContractError("too many entries", key=key, expected=f"≤ {limit}", got=len(values))


def _count(key: str, value: int) -> None:
    if not 0 <= value <= MAX_COUNT:
        raise ContractError("out of range", key=key, expected=f"0–{MAX_COUNT}", got=value)


def _finite(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise ContractError("not a finite number", key=key, got=value)
