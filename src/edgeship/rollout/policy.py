"""What a rollout is judged by: the limits of a ``threshold`` policy, and the stages."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.goal import Probation

THRESHOLD: Final = "threshold"


class ThresholdPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fixed limits per gate. What is missing never passes: it holds, and at the deadline it pauses.

    Attributes:
        max_failed_ratio: failed calls ÷ calls of any one device that activated it, 0–1.
        max_failed_increase: how much that share may exceed the device's own share before the update, 0–1;
            1 for no comparison. Devices without calls before the update are not compared.
        max_failed_devices: a stage is halted when more devices than this fail ...
        max_failed_device_ratio: ... *and* they are more than this share of the devices reached, 0–1.
        max_crashes: worker crashes over all devices of the stage.
        latency_p99_ms: of any one device; 0 for no limit.
        max_latency_ratio: p99 ÷ the same device's p99 before the update; 0 for no limit.
        max_drift: Jensen–Shannon distance of the predictions from the bundle's baseline, 0–1; 0 for no limit.
        max_data_drift: the same of the inputs; 0 for no limit, which is the rule: cameras differ from training data
            on day one, and that is no fault of the release.
        min_windows: telemetry windows that each device must have sent since activation.
        min_calls: calls that each device must have answered since activation.
        soak_s: shortest time from a stage's start to its promotion.
        offer_timeout_s: from the offer to a terminal state of the device.
        judge_timeout_s: from a stage's start to the moment when "undecided" becomes "paused"; 0 for
            ``offer_timeout_s + soak_s``.
        rollback_timeout_s: from a rollback to the moment when devices that did not confirm make it incomplete.
        probation_inferences: calls that a device must have answered with the new version ...
        probation_s: ... and time that must have passed since its activation, before the device commits it.
        probation_deadline_s: where calls are missing by then, golden inputs stand in for them, and the commit is
            marked: it never counts as a pass of the stage.
        shadow_cpu_ratio: of a release that runs as a shadow: part of one processor's time that it may be busy on each
            device, above 0, at most 1. Inputs beyond it are dropped and counted.
        shadow_memory_bytes: most memory that the process of a shadow may hold on each device; 0 for no limit. A device
            stops a shadow that holds more, and says so: a hard stop.
    """

    name: str = THRESHOLD
    max_failed_ratio: float = 0.05
    max_failed_increase: float = 0.01
    max_failed_devices: int = 0
    max_failed_device_ratio: float = 0.0
    max_crashes: int = 0
    latency_p99_ms: float = 0.0
    max_latency_ratio: float = 0.0
    max_drift: float = 0.1
    max_data_drift: float = 0.0
    min_windows: int = 3
    min_calls: int = 100
    soak_s: float = 300.0
    offer_timeout_s: float = 3600.0
    judge_timeout_s: float = 0.0
    rollback_timeout_s: float = 3600.0
    probation_inferences: int = 100
    probation_s: float = 60.0
    probation_deadline_s: float = 600.0
    shadow_cpu_ratio: float = 0.25
    shadow_memory_bytes: int = 0

    @property
    def deadline_s(self) -> float:
        """From a stage's start to the moment when undecided becomes paused; never before the minimum soak."""
        return max(self.soak_s, self.judge_timeout_s or self.offer_timeout_s + self.soak_s)

    def probation(self) -> Probation:
        """What a device is told to prove before it commits."""
        return Probation(
            inferences=self.probation_inferences,
            duration_s=self.probation_s,
            deadline_s=self.probation_deadline_s,
            max_failed_ratio=self.max_failed_ratio,
            latency_p99_ms=self.latency_p99_ms,
        )


_RATIOS: Final = (
    "max_failed_ratio", "max_failed_increase", "max_failed_device_ratio", "max_drift", "max_data_drift",
    "shadow_cpu_ratio",
)  # fmt: skip
_PROBATION_KEYS: Final = {
    "inferences": "probation_inferences",
    "duration_s": "probation_s",
    "deadline_s": "probation_deadline_s",
}
_AT_LEAST_ONE: Final = ("min_windows", "min_calls")


def parse_policy(document: Mapping[str, Any], *, file: object = None) -> ThresholdPolicy:
    """A policy from a TOML or JSON map; read when a rollout is created, so that a gate never fails to fire later.

    A table ``[probation]`` with the keys ``inferences``, ``duration_s`` and ``deadline_s`` is another spelling of the
    three ``probation_…`` keys.

    Raises:
        ConfigError: unknown key or name, wrong type, or a number that would make a gate meaningless.

    >>> parse_policy({"max_failed_ratio": 0.02}).max_failed_ratio
    0.02
    >>> parse_policy({"max_failed_rate": 0.02})
    Traceback (most recent call last):
    edgeship_agent.contract.errors.ConfigError: unreadable policy: Object contains unknown field `max_failed_rate`
    """
    try:
        policy = msgspec.convert(_flat(document), ThresholdPolicy)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"unreadable policy: {error}", file=file) from error
    if policy.name != THRESHOLD:
        raise ConfigError("unknown policy", file=file, key="name", expected=THRESHOLD, got=policy.name)
    for key in policy.__struct_fields__[1:]:
        value = getattr(policy, key)
        lowest = 1 if key in _AT_LEAST_ONE else 0
        highest = 1.0 if key in _RATIOS else float("inf")
        # written so that NaN is refused, and infinity too
        if not (lowest <= value <= highest and value < float("inf")):
            wanted = f"{lowest} … {highest:g}" if key in _RATIOS else f"≥ {lowest}, finite"
            raise ConfigError("limit out of range", file=file, key=key, expected=wanted, got=value)
    if not policy.shadow_cpu_ratio:
        raise ConfigError("a shadow without time", file=file, key="shadow_cpu_ratio", expected="above 0, at most 1",
                          got=0)  # fmt: skip
    return policy


def parse_stages(text: str) -> tuple[float, ...]:
    """Cumulative shares of the fleet from the command line.

    Raises:
        ConfigError: not ascending percentages that end with 100%.

    >>> parse_stages("20%,100%")
    (0.2, 1.0)
    """
    shares = tuple(_share(part.strip(), text) for part in text.split(","))
    if any(later <= earlier for earlier, later in pairwise(shares)) or shares[-1] != 1.0:
        raise ConfigError("stages must grow and end with 100%", key="stages", expected="for example 20%,100%", got=text)
    return shares


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(document)
    probation = flat.pop("probation", {})
    if not isinstance(probation, Mapping):
        raise TypeError("`probation` is not a table")
    for key, value in probation.items():
        name = _PROBATION_KEYS.get(key, f"probation.{key}")
        if name in flat:
            raise TypeError(f"`probation.{key}` and `{name}` are the same limit")
        flat[name] = value
    return flat


def _share(part: str, text: str) -> float:
    number, percent, rest = part.partition("%")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not percent or rest or not 0.0 < value <= 100.0:
        raise ConfigError("not a percentage", key="stages", expected="for example 20%,100%", got=text)
    return value / 100.0
