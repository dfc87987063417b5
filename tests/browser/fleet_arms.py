"""Two versions side by side in the fleet of the browser tests: labels, business figures, a shadow, an A/B test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import structs
from sqlalchemy import Connection, insert, update

from edgeship.rollout import RolloutState, StageState, ThresholdPolicy
from edgeship.server.store import goals, labels, rollouts, schema
from edgeship.server.store.goals import Assignment
from edgeship_agent.contract.messages import LabelTally, OutcomeTally, ShadowTally, Window
from edgeship_agent.contract.sketch import exponential_of
from tests.browser import fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Rollouts of this module: v3 on a share of the traffic, and v3 as a shadow.
AB_ROLLOUT, SHADOW_ROLLOUT = "r4", "r5"
_SHARED_AT_S = fleet.NOW_S - 600.0
_GAUGES = {"memory_bytes": 91_226_112.0, "cpu_ratio": 0.0731, "temperature_c": 54.5}


def add_arms(connection: Connection, profile_hash: str) -> None:
    """An A/B test over three devices, labelled, and a shadow over the others; one device has lost power twice."""
    rng = np.random.default_rng(23)
    for number, device_id in enumerate(fleet.DEVICES):
        is_shadow = device_id not in fleet.CANARIES
        arms: Sequence[tuple[str, str]] = (("main", "v2"), ("shadow" if is_shadow else "b", "v3"))
        found = [_window(device_id, arm, version, 2 * number + at, profile_hash, rng)
                 for at, (arm, version) in enumerate(arms, start=50)]  # fmt: skip
        if is_shadow:
            found[0] = structs.replace(found[0], shadow=(_shadow(number),))
        else:
            found = [_noted(window, number) for window in found]
            delays = exponential_of([12_000.0] * 99 + [50_000.0])
            found[0] = structs.replace(found[0], stream_delay_us=delays)
        _store(connection, device_id, found)
        outbox = {
            "created": 42,
            "acknowledged": 40,
            "evicted": 0,
            "waiting": 2,
            "unclean_ends": 2 if number == 3 else 0,
        }
        running = [_running(device_id, arm, version) for arm, version in arms]
        where = schema.devices.c.id == device_id
        connection.execute(update(schema.devices).where(where).values(outbox=outbox, running=running))
        goals.put_assignment(connection, _assignment(device_id, is_shadow=is_shadow))
    _roll_out(connection, AB_ROLLOUT, share=0.2, mirror=0.0)
    _roll_out(connection, SHADOW_ROLLOUT, share=0.0, mirror=0.1)


def _running(device_id: str, arm: str, version: str) -> dict[str, str]:
    target = fleet.DEVICES[device_id]
    return {
        "model": "digits",
        "arm": arm,
        "version": version,
        "digest": fleet.digest_of(version),
        "state": "committed",
        "variant": f"{target}/{fleet.TARGETS[target]}/int8",
        "retained_version": "v1" if arm == "main" else "",
    }


def _assignment(device_id: str, *, is_shadow: bool) -> Assignment:
    return Assignment(
        device_id=device_id,
        model="digits",
        version="v3",
        digest=fleet.digest_of("v3"),
        size_bytes=900,
        deployment=SHADOW_ROLLOUT if is_shadow else AB_ROLLOUT,
        share=0.0 if is_shadow else 0.2,
        mirror=0.1 if is_shadow else 0.0,
        base_version="v2",
        base_digest=fleet.digest_of("v2"),
        base_size_bytes=900,
    )


def _window(device_id: str, arm: str, version: str, seq: int, profile_hash: str, rng: np.random.Generator) -> Window:
    made = fleet.window(device_id, version, seq, profile_hash, rng)
    start_s = _SHARED_AT_S + 120.0
    return structs.replace(made, arm=arm, started_at_s=start_s, ended_at_s=start_s + 60.0, gauges=_GAUGES)


def _noted(window: Window, number: int) -> Window:
    """Half of the calls labelled, most of them with minutes of rework."""
    right = 46 if window.version == "v2" else 31
    labelled = LabelTally(
        version=window.version,
        arm=window.arm,
        digest=window.digest,
        labelled=50,
        correct=right,
        confusion=((3, 3, right), (3, 5, 50 - right)),
        confidence_sum_millionths=47_000_000,
        predicted_from_s=window.started_at_s,
        predicted_until_s=window.ended_at_s,
    )
    minutes = 40 * (2.0 if window.version == "v2" else 3.5)
    rework = OutcomeTally(
        version=window.version,
        arm=window.arm,
        digest=window.digest,
        name="rework_minutes_per_hundred_parts",
        count=40,
        total=minutes,
        square_total=minutes * 4.5,
    )
    return structs.replace(window, labels=(labelled,), outcomes=(rework,), label_unknown=3, label_lost=number)


def _shadow(number: int) -> ShadowTally:
    return ShadowTally(
        version="v3",
        digest=fleet.digest_of("v3"),
        compared=400,
        disagreed=37 + number,
        failed=1,
        dropped=12,
        error_square_sum=3.2,
        champion_square_sum=410.0,
        busy_us=210_000,
    )


def _store(connection: Connection, device_id: str, found: Sequence[Window]) -> None:
    names = [c.name for c in schema.windows.c if c.name not in {"device_id", "received_at_s", "payload"}]
    for window in found:
        values = {name: getattr(window, name) for name in names}
        payload = msgspec.msgpack.encode(window)
        connection.execute(
            insert(schema.windows).values(
                device_id=device_id, received_at_s=window.ended_at_s + 0.5, payload=payload, **values
            )
        )
    labels.add(connection, device_id, found, found[0].ended_at_s + 0.5)


def _roll_out(connection: Connection, rollout_id: str, *, share: float, mirror: float) -> None:
    policy = ThresholdPolicy(latency_p99_ms=10.0, soak_s=60.0, shadow_memory_bytes=200_000_000 if mirror else 0)
    how = "as a shadow on 10% of the inputs of each" if mirror else "on 20% of the traffic of each"
    made = structs.replace(
        fleet.completed_rollout(int(rollout_id[1:]), "v3", policy),
        state=RolloutState.RUNNING,
        stage_index=0,
        stage_states=(StageState.SOAKING, StageState.PENDING),
        reason=f"digits v3 goes to 6 devices in 2 stages, 3 of them first, {how}",
        created_at_s=_SHARED_AT_S,
        stage_started_s=_SHARED_AT_S,
        updated_at_s=_SHARED_AT_S + 60.0,
        ended_at_s=None,
        share=share,
        mirror=mirror,
    )
    members = [
        structs.replace(member, offered_at_s=_SHARED_AT_S, activated_at_s=_SHARED_AT_S + 30.0)
        for member in fleet.members(rollout_id, "v2")
        if (member.device_id in fleet.CANARIES) == (mirror == 0.0)
    ]
    rollouts.add(connection, made, members)
