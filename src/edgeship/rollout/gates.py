"""The gates of the ``threshold`` policy. Each looks at one thing and says True, False or "not known".

The device is the unit: a limit holds for every single device, so one broken runtime is not averaged away by the
healthy ones. A number that is not finite is "not known", never "below the limit".

A release of several models is looked at once per model, so an interval that breaks a gate is as much wider as keeps the
error of all of them together at that of one. What lets a gate hold stays as it is: every model must hold by itself, so
something bad passes no more easily in company than alone. Source: ADR 0024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import structs

from edgeship.rollout.evidence import DeviceEvidence, DriftFigure, GateResult
from edgeship.rollout.parts import named
from edgeship.rollout.policy import ThresholdPolicy
from edgeship.rollout.states import DeviceState
from edgeship.rollout.wording import reason_words
from edgeship.statistics import Change, Interval, confidence_of_look, newcombe_independent, wilson

#: Refusals and ends of a device that say nothing about the release, so nothing is asked of them.
EXCUSED: Final = frozenset(
    {
        DeviceState.NO_VARIANT,
        DeviceState.ALREADY_RUNNING,
        DeviceState.REMOVED,
        DeviceState.OFFLINE_UNREACHED,
        DeviceState.CANCELED,
        DeviceState.SUPERSEDED,
    }
)
#: Devices without which nothing can be known about a stratum: they hold no variant, have it already or are gone.
_NOT_OF_THE_STAGE: Final = frozenset({DeviceState.NO_VARIANT, DeviceState.ALREADY_RUNNING, DeviceState.REMOVED})
#: Devices that may still send what is missing.
_AWAITED: Final = frozenset({DeviceState.QUEUED, DeviceState.OFFERED, DeviceState.IN_PROGRESS, DeviceState.SUCCEEDED})
#: Drift intervals hold for all signals of a device at once. Source: edgeship.drift.compare, FAMILY_ERROR.
_DRIFT_LEVEL_PERCENT: Final = 99
#: A quiet interval passes only if it ends below so many limits: 300 calls against a baseline of 300 reach about 2.
_RESOLUTION_LIMITS: Final = 3.0


def hard_stops(evidence: Sequence[DeviceEvidence]) -> GateResult:
    """One device suffices: NaN output, a constant class, golden mismatch, a digest that nobody offered, ..."""
    found = [(device.device_id, named(device.model, reason)) for device in evidence for reason in _stops_of(device)]
    words = "; ".join(f"{reason_words(reason)} on {device_id}" for device_id, reason in found)
    return _gate(
        "hard_stops",
        "no hard stop on any device",
        holds=not found,
        devices=_unique(device_id for device_id, _ in found),
        sentence=f"hard stop: {words}" if found else "no hard stop",
        figures=_Figures(value=float(len(found)), limit=0.0, n=_device_count(evidence)),
    )


def failed_devices(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult:
    """Too many devices failed: more than a count *and* more than a share of those reached, in one sentence."""
    reached = [device for device in evidence if device.state.is_reached]
    failed = [device for device in reached if device.state.is_failure]
    ratio = len(failed) / len(reached) if reached else 0.0
    broken = len(failed) > policy.max_failed_devices and ratio > policy.max_failed_device_ratio
    interval = wilson(len(failed), len(reached))
    limit = f"more than {policy.max_failed_devices} and more than {policy.max_failed_device_ratio:.0%} of those reached"
    causes = ", ".join(f"{d.device_id} {d.state.value.replace('_', ' ')}{_because(d)}" for d in failed[:3])
    sentence = f"{len(failed)} of {len(reached)} devices reached failed" + (f": {causes}" if causes else "")
    return _gate(
        "failed_devices",
        f"halted when failed devices are {limit}",
        holds=not broken,
        devices=tuple(device.device_id for device in failed),
        sentence=sentence,
        figures=_Figures(ratio, policy.max_failed_device_ratio, len(reached), interval),
    )


def arrivals(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult:
    """Every device has come to its end, and every stratum has a device that took the release."""
    pending = [device.device_id for device in evidence if device.state.is_pending]
    refused = [device for device in evidence if device.state is DeviceState.REJECTED]
    asked = [device for device in evidence if device.state not in _NOT_OF_THE_STAGE]
    succeeded = [device for device in asked if device.state is DeviceState.SUCCEEDED]
    missing = sorted({d.stratum for d in asked} - {d.stratum for d in succeeded})
    missing_devices = tuple(device.device_id for device in asked if device.stratum in missing)
    holds: bool | None = True
    sentence = f"{len(succeeded)} of {len(asked)} devices run it"
    devices: tuple[str, ...] = ()
    if pending:
        holds, devices = None, tuple(pending)
        sentence = f"{len(pending)} of {len(evidence)} devices have not come to an end: {_names(pending)}"
    elif len(refused) > policy.max_failed_devices:
        holds, devices = None, tuple(device.device_id for device in refused)
        sentence = f"{refused[0].device_id} refused it{_because(refused[0])}" + _more(len(refused) - 1)
    elif not succeeded:
        holds, sentence = None, "no device of the stage runs it"
    elif missing:
        holds, devices = None, missing_devices
        sentence = f"no device of {', '.join(missing)} runs it: nothing is known about it there"
    return _gate(
        "arrivals",
        "every device came to an end, and one of every stratum runs it",
        holds=holds,
        devices=devices,
        sentence=sentence,
        figures=_Figures(float(len(succeeded)), None, len(asked)),
    )


def traffic(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult:
    """Every device that took the release has shown it at work: no data is not a pass."""
    judged = [device for device in evidence if device.state is DeviceState.SUCCEEDED]
    short = [(device, reason) for device in judged if (reason := _short_of(policy, device))]
    calls = min((device.calls for device in judged), default=0)
    sentence = f"every device answered at least {calls} calls"
    if not judged:
        sentence = "no device has shown it at work"
    elif short:
        sentence = f"{short[0][0].device_id} {short[0][1]}" + _more(len(short) - 1)
    return _gate(
        "traffic",
        f"at least {policy.min_windows} windows and {policy.min_calls} calls from each device",
        holds=True if judged and not short else None,
        devices=tuple(device.device_id for device, _ in short),
        sentence=sentence,
        figures=_Figures(float(calls), float(policy.min_calls), len(judged)),
    )


def failed_calls(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence], models: int = 1) -> GateResult:
    """Failed calls ÷ calls, of the worst device."""
    level = confidence_of_look(1, claims=models)

    def holds(device: DeviceEvidence) -> bool | None:
        enough = device.calls >= policy.min_calls
        proven = wilson(device.failures, device.calls, level).low > policy.max_failed_ratio
        if proven or (enough and device.failures > policy.max_failed_ratio * device.calls):
            return False
        return True if enough else None

    judged = [device for device in evidence if device.calls > 0]
    return _worst_of(
        "failed_calls",
        f"failed calls ≤ {policy.max_failed_ratio:.2%} on every device",
        judged,
        holds,
        lambda d: _Figures(
            d.failures / d.calls, policy.max_failed_ratio, d.calls, wilson(d.failures, d.calls), as_share=True
        ),
        "failed calls",
    )


def failed_increase(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence], models: int = 1) -> GateResult | None:
    """Failed share after − before on the same device: three answers, as non-inferiority tests have them.

    Broken when it is proven to have grown and grew by more than the limit; open while the interval crosses the limit.
    None where no device has calls from before the update.
    """
    level = confidence_of_look(1, claims=models)
    compared = [device for device in evidence if device.calls > 0 and (device.calls_before or 0) >= policy.min_calls]
    if not compared or policy.max_failed_increase >= 1.0:
        return None
    limit = policy.max_failed_increase

    def holds(device: DeviceEvidence) -> bool | None:
        rise = _increase(device)
        if rise.change > limit and _increase(device, level).low > 0.0:
            return False
        # a device that fails no more often than before is not asked to prove it with thousands of calls
        return True if rise.change <= 0.0 or rise.high <= limit else None

    def figures(device: DeviceEvidence) -> _Figures:
        rise = _increase(device)
        return _Figures(rise.change, limit, device.calls, Interval(low=rise.low, high=rise.high), as_share=True)

    return _worst_of(
        "failed_increase",
        f"failed calls at most {limit:.2%} more than on the same device before",
        compared,
        holds,
        figures,
        "more failed calls than before",
    )


def crashes(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult:
    """Worker crashes over all devices of the stage."""
    crashed = sorted((d for d in evidence if d.crashes > 0), key=lambda d: (-d.crashes, d.device_id))
    total = sum(device.crashes for device in crashed)
    where = ", ".join(f"{d.crashes} {f'of {d.model} ' if d.model else ''}on {d.device_id}" for d in crashed[:3])
    return _gate(
        "crashes",
        f"at most {policy.max_crashes} worker crashes",
        holds=total <= policy.max_crashes,
        devices=_unique(device.device_id for device in crashed),
        sentence=f"{total} worker crashes" + (f": {where}" if where else ""),
        figures=_Figures(float(total), float(policy.max_crashes), _device_count(evidence)),
    )


def latency(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult | None:
    """p99 of the worst device against the budget."""
    if policy.latency_p99_ms <= 0:
        return None
    return _measured(
        "latency_p99_ms",
        f"p99 ≤ {policy.latency_p99_ms:g} ms on every device",
        policy,
        evidence,
        lambda d: None if d.latency_p99_ms is None else _Figures(d.latency_p99_ms, policy.latency_p99_ms, d.calls),
        "p99 latency in ms",
    )


def latency_ratio(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult | None:
    """p99 ÷ the same device's p99 before the update, of the worst device."""
    if policy.max_latency_ratio <= 0:
        return None

    def figures(device: DeviceEvidence) -> _Figures | None:
        ratio = ratio_of(device)
        return None if ratio is None else _Figures(ratio, policy.max_latency_ratio, device.calls)

    return _measured(
        "latency_ratio",
        f"p99 ≤ {policy.max_latency_ratio:g} × the device's own before the update",
        policy,
        evidence,
        figures,
        "p99 latency ÷ before",
    )


def prediction_drift(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult | None:
    """Distance of the predictions from the bundle's baseline, of the worst device."""
    return _drift("prediction_drift", policy.max_drift, policy, evidence, lambda d: d.prediction_drift)


def data_drift(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> GateResult | None:
    """Distance of the inputs from the bundle's baseline, of the worst device."""
    return _drift("data_drift", policy.max_data_drift, policy, evidence, lambda d: d.data_drift)


def ratio_of(device: DeviceEvidence) -> float | None:
    """p99 after ÷ before, or None where one of them is missing or zero."""
    before, after = device.latency_p99_before_ms, device.latency_p99_ms
    return None if not before or after is None else after / before


def _resolves(figures: _Figures) -> bool:
    """Whether an effect of some limits' size would lie outside the interval: a wide interval is no pass."""
    if figures.interval is None or figures.limit is None:
        return True
    return figures.interval.high <= _RESOLUTION_LIMITS * figures.limit


class _Figures:
    """Numbers of a gate result."""

    def __init__(
        self,
        value: float | None = None,
        limit: float | None = None,
        n: int = 0,
        interval: Interval | None = None,
        *,
        as_share: bool = False,
        level_percent: int = 95,
    ) -> None:
        self.value, self.limit, self.n, self.interval, self.as_share = value, limit, n, interval, as_share
        self.level_percent = level_percent
        self.proven: float | None = None  # what must exceed the limit, where that is not the interval's lower end

    def words(self) -> str:
        """The value with its interval and n."""
        if self.value is None:
            return "not measured"
        shown = self._number(self.value)
        if self.interval is None:
            return shown
        low, high = self._number(self.interval.low), self._number(self.interval.high)
        return f"{shown} ({self.level_percent} % {low}…{high}, n = {self.n})"

    def limit_words(self) -> str:
        """The limit, in the form of the value."""
        return "none" if self.limit is None else self._number(self.limit)

    def _number(self, value: float) -> str:
        return f"{value:.2%}" if self.as_share else f"{value:.3g}"


def _gate(
    gate_id: str, rule: str, *, holds: bool | None, devices: tuple[str, ...], sentence: str, figures: _Figures
) -> GateResult:
    return GateResult(
        id=gate_id,
        rule=rule,
        value=figures.value,
        limit=figures.limit,
        low=None if figures.interval is None else figures.interval.low,
        high=None if figures.interval is None else figures.interval.high,
        n=figures.n,
        holds=holds,
        devices=devices,
        sentence=sentence,
        level_percent=figures.level_percent,
    )


def _drift(
    gate_id: str,
    limit: float,
    policy: ThresholdPolicy,
    evidence: Sequence[DeviceEvidence],
    figure_of: Callable[[DeviceEvidence], DriftFigure | None],
) -> GateResult | None:
    if limit <= 0:
        return None

    def figures(device: DeviceEvidence) -> _Figures | None:
        figure = figure_of(device)
        if figure is None:
            return None
        interval = Interval(low=figure.low, high=figure.high)
        found = _Figures(figure.value, limit, figure.n, interval, level_percent=_DRIFT_LEVEL_PERCENT)
        found.proven = figure.proven
        return found

    result = _measured(
        gate_id,
        f"{gate_id.replace('_', ' ')} ≤ {limit:g} on every device",
        policy,
        evidence,
        figures,
        gate_id.replace("_", " "),
    )
    worst = next((d for d in evidence if result.devices and d.device_id == result.devices[0]), None)
    figure = None if worst is None else figure_of(worst)
    if figure is None:
        return result
    return structs.replace(result, sentence=f"{result.sentence} [{figure.signal}, {figure.statistic}]")


def _measured(
    gate_id: str,
    rule: str,
    policy: ThresholdPolicy,
    evidence: Sequence[DeviceEvidence],
    figures_of: Callable[[DeviceEvidence], _Figures | None],
    noun: str,
) -> GateResult:
    """A limit on a measured number: broken beyond its interval, open where it is there but not proven beyond it."""

    def holds(device: DeviceEvidence) -> bool | None:
        figures = figures_of(device)
        if figures is None or figures.value is None or figures.limit is None or not math.isfinite(figures.value):
            return None
        if device.calls < policy.min_calls:
            return None
        low = figures.value if figures.interval is None else figures.interval.low
        if (low if figures.proven is None else figures.proven) > figures.limit:
            return False
        # nothing there, or nothing that is told from chance: but only data that could have told it says so
        quiet = figures.value <= figures.limit or low <= 0.0
        return True if quiet and _resolves(figures) else None

    judged = [device for device in evidence if device.calls > 0]
    return _worst_of(gate_id, rule, judged, holds, lambda d: figures_of(d) or _Figures(), noun)


def _worst_of(
    gate_id: str,
    rule: str,
    judged: Sequence[DeviceEvidence],
    holds_of: Callable[[DeviceEvidence], bool | None],
    figures_of: Callable[[DeviceEvidence], _Figures],
    noun: str,
) -> GateResult:
    """Apply a rule to each device and show the worst: broken before unknown before kept, then the larger value."""
    if not judged:
        sentence = f"{noun}: no device has sent data"
        return _gate(gate_id, rule, holds=None, devices=(), sentence=sentence, figures=_Figures())
    answers = {device.device_id: holds_of(device) for device in judged}
    # whoever failed or left cannot be waited for: its data may break a gate, its silence holds up nobody
    judged = [d for d in judged if answers[d.device_id] is not None or d.state in _AWAITED]
    if not judged:
        return _worst_of(gate_id, rule, (), holds_of, figures_of, noun)
    severity = {False: 0, None: 1, True: 2}

    def order(device: DeviceEvidence) -> tuple[int, float, str]:
        value = figures_of(device).value
        return severity[answers[device.device_id]], -(value if value is not None else math.inf), device.device_id

    ranked = sorted(judged, key=order)
    worst, holds = ranked[0], answers[ranked[0].device_id]
    same = tuple(device.device_id for device in ranked if answers[device.device_id] is holds)
    figures = figures_of(worst)
    sentence = (
        f"{noun} {figures.words()} on {worst.device_id} {_verb(holds, figures)} the limit {figures.limit_words()}"
    )
    if figures.value is None:
        sentence = f"{noun} is not measured yet on {worst.device_id}"
    if holds is not True and len(judged) > 1:
        sentence += f" ({len(same)} of {len(judged)} devices)"
    return _gate(gate_id, rule, holds=holds, devices=same, sentence=sentence, figures=figures)


def _verb(holds: bool | None, figures: _Figures) -> str:
    if holds is None:
        return "is not decided against"
    if not holds:
        return "exceeds"
    beyond = figures.value is not None and figures.limit is not None and figures.value > figures.limit
    return "is not told from chance;" if beyond else "keeps to"


def _increase(device: DeviceEvidence, level: float = 0.95) -> Change:
    before = (device.failures_before or 0, device.calls_before or 0)
    return newcombe_independent(*before, device.failures, device.calls, level)


def _device_count(evidence: Sequence[DeviceEvidence]) -> int:
    return len({device.device_id for device in evidence})


def _short_of(policy: ThresholdPolicy, device: DeviceEvidence) -> str:
    if device.without_field_traffic:
        return "was committed on golden inputs alone, without field traffic"
    if device.loaded_digest_matches is None:
        return "has not said which digest it has loaded"
    if device.windows < policy.min_windows:
        return f"sent {device.windows} of {policy.min_windows} windows"
    if device.calls < policy.min_calls:
        return f"answered {device.calls} of {policy.min_calls} calls"
    return ""


def _stops_of(device: DeviceEvidence) -> tuple[str, ...]:
    wrong = device.state is DeviceState.SUCCEEDED and device.loaded_digest_matches is False
    return (*device.hard_stops, *(("another digest is loaded",) if wrong else ()))


def _because(device: DeviceEvidence) -> str:
    return f" ({reason_words(named(device.model, device.reason))})" if device.reason else ""


def _more(count: int) -> str:
    return f", and {count} more" if count > 0 else ""


def _names(device_ids: Sequence[str]) -> str:
    return ", ".join(device_ids[:3]) + _more(len(device_ids) - 3)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
