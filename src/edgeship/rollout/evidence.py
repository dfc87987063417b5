"""What the judge looks at and what it answers. All of it is stored with the decision, so that it can be replayed."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from edgeship.rollout.states import DeviceState


class DriftFigure(Struct, frozen=True, kw_only=True):
    """The worst distance of a device's signals from what the release declares as normal.

    Attributes:
        signal: name of the signal, such as ``output/class``.
        statistic: such as ``js_distance``.
        value: the distance, freed of the bias of small samples, 0–1.
        low, high: its interval; only a ``low`` beyond the limit breaks the gate.
        n: samples of the device.
        proven: the lower end that breaks the gate where several models are compared at once, at the level that all of
            them share; None where one model alone is compared: then ``low`` is it.
    """

    signal: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    proven: float | None = None


class DeviceEvidence(Struct, frozen=True, kw_only=True):
    """One device of the stage, from its reports and from its windows of the new version since activation.

    A release of several models has one entry for each model on each device.

    Attributes:
        reason: short code of a failure or refusal.
        windows, calls, failures, crashes: since activation; ``calls`` = answered + failed.
        latency_p99_ms: None where nothing was measured.
        calls_before, failures_before, latency_p99_before_ms: the same device on its previous version; None where it
            had none (then it is not compared with itself).
        prediction_drift, data_drift: None where nothing could be compared.
        hard_stops: reasons for which one device suffices: ``nan_output``, ``golden_mismatch``, ...
        without_field_traffic: committed on golden inputs alone: never counts as a pass.
        loaded_digest_matches: the digest that the device says is loaded is the release's; None where it has not said.
        model: which model of the release it is about; empty where the release is one model.
    """

    device_id: str
    stratum: str
    state: DeviceState
    reason: str = ""
    windows: int = 0
    calls: int = 0
    failures: int = 0
    crashes: int = 0
    latency_p99_ms: float | None = None
    latency_p99_before_ms: float | None = None
    calls_before: int | None = None
    failures_before: int | None = None
    prediction_drift: DriftFigure | None = None
    data_drift: DriftFigure | None = None
    hard_stops: tuple[str, ...] = ()
    without_field_traffic: bool = False
    loaded_digest_matches: bool | None = None
    model: str = ""


class GateResult(Struct, frozen=True, kw_only=True):
    """One rule applied to the evidence.

    Attributes:
        id: names the gate, such as ``failed_calls``.
        rule: the rule in words, with its limit.
        value, limit: of the worst device or of the stage; None where there is nothing to compare.
        low, high: interval of ``value`` where there is one.
        n: what ``value`` was made from: calls, samples or devices, as the rule says.
        holds: True, False, or None where the data does not decide it.
        devices: whom it is about, the worst first.
        sentence: the finding for a person.
        level_percent: confidence level of the interval.
        model: which model of the release it is about; empty for all of them, or where there is one.
    """

    id: str
    rule: str
    value: float | None
    limit: float | None
    low: float | None
    high: float | None
    n: int
    holds: bool | None
    devices: tuple[str, ...]
    sentence: str
    level_percent: int = 95
    model: str = ""


class VerdictKind(StrEnum):
    """What the server shall do."""

    PROMOTE = "promote"
    HOLD = "hold"
    PAUSE = "pause"
    HALT = "halt"


class Verdict(Struct, frozen=True, kw_only=True):
    """The judge's answer.

    Attributes:
        sentence: the verdict in words, with its number and its limit.
        gates: every gate, the broken ones first, then the undecided ones.
    """

    kind: VerdictKind
    sentence: str
    gates: tuple[GateResult, ...]
