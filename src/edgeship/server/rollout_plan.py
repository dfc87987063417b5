"""Whom a rollout reaches, with which variant, in which stage: worked out when it is created, shown by a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs
from sqlalchemy import Connection, Row, select

from edgeship.rollout import Candidate, DeviceState, draw_stages
from edgeship.server.store import devices, goals, releases, rollouts, schema
from edgeship.server.store.releases import Release
from edgeship.server.store.rollouts import Member
from edgeship_agent.contract.manifest import BundleManifest, Variant, runtime_for

#: The arm of a device that answers what no other arm answers.
MAIN_ARM: Final = "main"


class PlannedDevice(Struct, frozen=True, kw_only=True):
    """What a rollout will do with one device.

    Attributes:
        state: ``queued``, ``no_variant`` or ``already_running``.
        reason: why it is not reached, or why it may not be a canary; empty otherwise.
        variant: label of the variant that it will take; empty where there is none.
        model_digest: digest of that variant's model file.
    """

    device_id: str
    stage_index: int
    stratum: str
    state: DeviceState
    reason: str = ""
    variant: str = ""
    model_digest: str = ""
    previous_version: str = ""
    previous_digest: str = ""


def resolve_variant(manifest: BundleManifest, target: str, arch: str, runtimes: Iterable[str]) -> Variant | str:
    """The variant that a device takes: the first for its target whose runtime it has, in the bundle's order.

    Returns:
        The variant, or in words why there is none. The device decides by the same rule.
    """
    for_target = [variant for variant in manifest.variants if variant.target == target]
    if not for_target:
        known = ", ".join(sorted({variant.target for variant in manifest.variants}))
        return f"the bundle has no variant for {target}, only for {known}"
    installed = set(runtimes)
    for variant in for_target:
        if runtime_for(variant.runtime, installed):
            return variant if variant.arch == arch else f"the variant is for {variant.arch}, the device is {arch}"
    wanted = ", ".join(sorted({variant.runtime for variant in for_target}))
    return f"the variant needs {wanted}; the device has {', '.join(sorted(installed)) or 'no runtime'}"


def matching_devices(connection: Connection, tags: Mapping[str, str]) -> list[Row[Any]]:
    """Known devices that carry every tag, by id."""
    wanted = tags.items()
    return [row for row in devices.list_all(connection) if wanted <= devices.effective_tags(row).items()]


def plan(
    connection: Connection,
    release: Release,
    manifest: BundleManifest,
    rows: Sequence[Row[Any]],
    *,
    needs_base: bool = False,
) -> list[PlannedDevice]:
    """What a release means for each device; stages are not drawn yet (all in stage 0).

    Args:
        connection: of any transaction.
        release: what is rolled out.
        manifest: of its bundle.
        rows: the devices.
        needs_base: it runs beside the version that a device has, so a device without one is not reached.
    """
    planned = [_plan_device(connection, release, manifest, row) for row in rows]
    return [_with_base(connection, device) for device in planned] if needs_base else planned


def _with_base(connection: Connection, device: PlannedDevice) -> PlannedDevice:
    if device.state is not DeviceState.QUEUED:
        return device
    if not device.previous_digest:
        reason = "it runs no version of the model that this one could run beside"
    elif releases.find_digest(connection, device.previous_digest) is None:
        reason = f"it runs {device.previous_version}, which is no release of this server"
    else:
        return device
    return structs.replace(device, state=DeviceState.NO_VARIANT, reason=reason)


def draw(
    connection: Connection,
    planned: Sequence[PlannedDevice],
    stages: Sequence[float],
    seed: int,
    existing: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Stage of every device that the rollout will reach; one with an open incident is no canary.

    Args:
        connection: of any transaction.
        planned: all devices; only the queued ones are drawn.
        stages: cumulative shares.
        seed: of the rollout.
        existing: stages drawn before; who is not in there is a late joiner.
    """
    troubled = _with_open_incident(connection)
    candidates = [
        Candidate(
            device_id=device.device_id,
            stratum=device.stratum,
            eligible=device.device_id not in troubled,
            reason="open incident" if device.device_id in troubled else "",
        )
        for device in planned
        if device.state is DeviceState.QUEUED
    ]
    return draw_stages(candidates, stages, seed, existing)


def as_member(device: PlannedDevice, rollout_id: str, stage_index: int, now_s: float) -> Member:
    """A planned device as a row of the rollout."""
    return Member(
        rollout_id=rollout_id,
        device_id=device.device_id,
        stage_index=stage_index,
        stratum=device.stratum,
        state=device.state,
        reason=device.reason if device.state is not DeviceState.QUEUED else "",
        previous_version=device.previous_version,
        previous_digest=device.previous_digest,
        updated_at_s=now_s,
    )


def _plan_device(connection: Connection, release: Release, manifest: BundleManifest, row: Row[Any]) -> PlannedDevice:
    variant = resolve_variant(manifest, row.target, row.arch, row.runtimes)
    version, digest = _running(connection, row, release.model)
    if isinstance(variant, str):
        return PlannedDevice(
            device_id=row.id,
            stage_index=0,
            stratum=f"{row.target}/-",
            state=DeviceState.NO_VARIANT,
            reason=variant,
            previous_version=version,
            previous_digest=digest,
        )
    model_file = variant.file("model")
    return PlannedDevice(
        device_id=row.id,
        stage_index=0,
        stratum=f"{variant.target}/{variant.runtime}",
        state=DeviceState.ALREADY_RUNNING if digest == release.digest else DeviceState.QUEUED,
        variant=variant.label,
        model_digest="" if model_file is None else model_file.digest,
        previous_version=version,
        previous_digest=digest,
    )


def _running(connection: Connection, row: Row[Any], model: str) -> tuple[str, str]:
    """Version and digest that a device runs: what it confirmed for its newest goal, else what its last birth said."""
    assigned = goals.assignment(connection, row.id, model)
    if assigned is not None and assigned.base_version:
        return assigned.base_version, assigned.base_digest  # what is tried beside it comes and goes
    if assigned is not None and _is_confirmed(connection, assigned):
        return assigned.version, assigned.digest
    for arm in row.running:
        if arm["model"] == model and arm["state"] == "committed" and arm["arm"] == MAIN_ARM:
            return arm["version"], arm["digest"]
    return "", ""


def _is_confirmed(connection: Connection, assigned: goals.Assignment) -> bool:
    if assigned.is_rollback:
        return True  # whether or not it is confirmed yet, this is what the device is to go back to
    known = rollouts.member(connection, assigned.deployment, assigned.device_id)
    return known is not None and known.state is DeviceState.SUCCEEDED


def _with_open_incident(connection: Connection) -> set[str]:
    table = schema.incidents
    return set(connection.execute(select(table.c.device_id).where(table.c.state == "open")).scalars())
