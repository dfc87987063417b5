"""The canary judge of the ``threshold`` policy: failure is judged before success, and no data is not a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from msgspec import structs

from edgeship.rollout import gates
from edgeship.rollout.evidence import DeviceEvidence, GateResult, Verdict, VerdictKind
from edgeship.rollout.parts import by_device, by_model
from edgeship.rollout.policy import ThresholdPolicy
from edgeship.rollout.states import DeviceState
from edgeship.rollout.wording import counted

#: From this ratio on, a p99 that no limit is set for is named in the verdict.
_REMARKABLE_RATIO: Final = 2.0


def judge(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence], *, elapsed_s: float) -> Verdict:
    """Decide a stage from the evidence of its devices.

    Give it every device that the rollout has reached so far: those of earlier stages too, so that one that regressed
    is seen, and a stratum that earlier canaries covered counts as covered.

    A release of several models has one verdict, the worst of its models': devices, crashes and hard stops are counted
    over all of them, and every limit of a call or a signal holds for each of them.

    Args:
        policy: the limits.
        evidence: one entry per device, or per device and model; the order does not matter.
        elapsed_s: since the stage started.

    Returns:
        ``halt`` where a gate is broken, whatever the others say; ``promote`` where every gate holds and the minimum
        soak is over; ``hold`` while something is undecided; ``pause`` where it still is at the deadline, or where
        nothing more can come.

    >>> verdict = judge(ThresholdPolicy(), [], elapsed_s=10.0)
    >>> verdict.kind.value, verdict.sentence
    ('pause', 'Paused: no device of the stage can show anything')
    """
    ordered = sorted(evidence, key=lambda device: (device.device_id, device.model))
    devices = by_device(ordered)
    results = _gates(policy, ordered, devices)
    broken = [gate for gate in results if gate.holds is False]
    unknown = [gate for gate in results if gate.holds is None]
    ranked = (*broken, *unknown, *(gate for gate in results if gate.holds is True))
    if broken:
        return Verdict(kind=VerdictKind.HALT, sentence=_joined("Halted", broken), gates=ranked)
    if not any(_may_show_something(device) for device in devices):
        sentence = "Paused: no device of the stage can show anything"
        return Verdict(kind=VerdictKind.PAUSE, sentence=sentence + _ends(devices), gates=ranked)
    if unknown and not elapsed_s < policy.deadline_s:
        sentence = _joined(f"Paused undecided after {policy.deadline_s:g} s", unknown)
        return Verdict(kind=VerdictKind.PAUSE, sentence=sentence, gates=ranked)
    if unknown:
        return Verdict(kind=VerdictKind.HOLD, sentence=_joined("Waiting", unknown), gates=ranked)
    if not elapsed_s >= policy.soak_s:
        sentence = f"Waiting: every gate holds; {elapsed_s:.0f} of {policy.soak_s:g} s of soak are over"
        return Verdict(kind=VerdictKind.HOLD, sentence=sentence, gates=ranked)
    return Verdict(kind=VerdictKind.PROMOTE, sentence=_promotion(policy, ordered), gates=ranked)


def _gates(
    policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence], devices: Sequence[DeviceEvidence]
) -> tuple[GateResult, ...]:
    models = by_model(evidence) or {"": []}
    count = len(models)

    def each(gate: Callable[[Sequence[DeviceEvidence]], GateResult | None]) -> list[GateResult]:
        found = [(model, gate(mine)) for model, mine in sorted(models.items())]
        return [_of_model(model, result) for model, result in found if result is not None]

    return (
        gates.hard_stops(evidence),
        *each(partial(gates.prediction_drift, policy)),
        *each(partial(gates.data_drift, policy)),
        *each(lambda mine: gates.failed_calls(policy, mine, count)),
        *each(lambda mine: gates.failed_increase(policy, mine, count)),
        gates.crashes(policy, evidence),
        *each(partial(gates.latency, policy)),
        *each(partial(gates.latency_ratio, policy)),
        gates.failed_devices(policy, devices),
        gates.arrivals(policy, devices),
        *each(partial(gates.traffic, policy)),
    )


def _of_model(model: str, result: GateResult) -> GateResult:
    return structs.replace(result, model=model, sentence=f"{model}: {result.sentence}") if model else result


def _may_show_something(device: DeviceEvidence) -> bool:
    return device.state.is_pending or device.state is DeviceState.SUCCEEDED


def _joined(word: str, results: Sequence[GateResult]) -> str:
    rest = f"; {len(results) - 1} more" if len(results) > 1 else ""
    return f"{word}: {results[0].sentence}{rest}"


def _ends(evidence: Sequence[DeviceEvidence]) -> str:
    ends: dict[str, int] = {}
    for device in evidence:
        word = device.state.value.replace("_", " ")
        ends[word] = ends.get(word, 0) + 1
    return f" ({', '.join(f'{count} {word}' for word, count in sorted(ends.items()))})" if ends else ""


def _promotion(policy: ThresholdPolicy, evidence: Sequence[DeviceEvidence]) -> str:
    judged = [device for device in evidence if device.state is DeviceState.SUCCEEDED]
    calls = sum(device.calls for device in judged)
    failures = sum(device.failures for device in judged)
    unreached = len({d.device_id for d in evidence if d.state is DeviceState.OFFLINE_UNREACHED})
    fleet = counted(len({device.device_id for device in judged}), "device")
    models = {device.model for device in judged}
    fleet += f" for each of {len(models)} models" if len(models) > 1 else ""
    sentence = f"Promoted: every gate holds on {fleet}, {calls} calls, {failures} failed"
    if unreached:
        sentence += f"; {unreached} not reached"
    return sentence + _unjudged_latency(policy, judged)


def _unjudged_latency(policy: ThresholdPolicy, judged: Sequence[DeviceEvidence]) -> str:
    """A change that no limit was set for does not stop the rollout, but it does not pass in silence either."""
    if policy.max_latency_ratio > 0 or policy.latency_p99_ms > 0:
        return ""
    slower = [(ratio, device) for device in judged if (ratio := gates.ratio_of(device) or 0.0) >= _REMARKABLE_RATIO]
    if not slower:
        return ""
    ratio, worst = max(slower, key=lambda pair: pair[0])
    return (
        f"; not judged: p99 {worst.latency_p99_before_ms:.3g} → {worst.latency_p99_ms:.3g} ms"
        f" (×{ratio:.3g}){f' of {worst.model}' if worst.model else ''} on {worst.device_id}, no latency limit is set"
    )
