"""Who gets a release when: canaries drawn at random within strata, stable for a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError


class Candidate(Struct, frozen=True, kw_only=True):
    """A device that a rollout may reach.

    Attributes:
        stratum: what devices are drawn within, such as ``raspberry-pi-5/litert``.
        eligible: may be a canary; a device with an open incident may not, and comes with the last stage.
        reason: why it is not eligible.
    """

    device_id: str
    stratum: str
    eligible: bool = True
    reason: str = ""


def draw_stages(
    devices: Iterable[Candidate],
    shares: Sequence[float],
    seed: int,
    existing: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Draw every device's stage at random within its stratum.

    The order within a stratum is that of a hash of seed and device id, so the draw is the same wherever and however
    often it is made, another seed gives other canaries, and who was online first has no say.

    Args:
        devices: who the rollout may reach, ids unique.
        shares: cumulative share of the fleet per stage, ascending, the last 1. Each stage holds
            ``ceil(share × devices in the stratum)`` of every stratum by then, so the first at least one.
        seed: of the rollout.
        existing: stages drawn before; they are kept, and whoever is not in them is a late joiner: last stage.

    Returns:
        Device id → index into ``shares``. A stage may be empty (see :func:`empty_stages`).

    Raises:
        ConfigError: no stages, or a device named twice.

    >>> fleet = [Candidate(device_id=f"d{i}", stratum=("a", "b", "c")[i % 3]) for i in range(6)]
    >>> sorted(draw_stages(fleet, (0.2, 1.0), seed=7).values())
    [0, 0, 0, 1, 1, 1]
    """
    if not shares:
        raise ConfigError("a rollout needs a stage", key="stages", expected="for example 20%,100%")
    last = len(shares) - 1
    strata: dict[str, list[Candidate]] = {}
    drawn: dict[str, int] = {}
    for device in devices:
        if device.device_id in drawn:
            raise ConfigError("a device is named twice", key=device.device_id)
        drawn[device.device_id] = last
        strata.setdefault(device.stratum, []).append(device)
    if existing is not None:
        return {device_id: existing.get(device_id, last) for device_id in drawn}
    for stratum in strata.values():
        order = sorted((d.device_id for d in stratum if d.eligible), key=lambda device_id: _rank(seed, device_id))
        start = 0
        for stage, share in enumerate(shares[:-1]):
            # the small subtraction keeps 0.1 × 30 = 3.0000000000000004 at 3
            end = math.ceil(share * len(stratum) - 1e-9)
            drawn |= dict.fromkeys(order[start:end], stage)
            start = max(start, end)
    return drawn


def empty_stages(assignment: Mapping[str, int], stage_count: int) -> tuple[int, ...]:
    """Stages that nobody was drawn for: there is nothing to judge in them, so they are left out, not passed.

    >>> empty_stages({"a": 0, "b": 2}, 3)
    (1,)
    """
    return tuple(stage for stage in range(stage_count) if stage not in set(assignment.values()))


def _rank(seed: int, device_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{device_id}".encode()).digest()
