"""Whom a rollout reaches, with which variant, in which stage: worked out when it is created, shown by a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs
from sqlalchemy import Connection, Row, select

from edgeship.rollout import Candidate, DeviceState, draw_stages, named
from edgeship.server.release_sets import ReleaseSet
from edgeship.server.store import devices, goals, identities, joint, releases, rollouts, schema
from edgeship.server.store.joint import Part
from edgeship.server.store.releases import Release
from edgeship.server.store.rollouts import Member, MemberPart
from edgeship_agent.contract.manifest import BundleManifest, Variant, runtime_for
from edgeship_agent.contract.oci import MANIFEST_FILE
from edgeship_agent.contract.wire import read_json

#: The arm of a device that answers what no other arm answers.
MAIN_ARM: Final = "main"


class PlannedPart(Part, frozen=True, kw_only=True):
    """What a rollout will do with one model of one device; fields as in :class:`PlannedDevice`."""

    variant: str = ""
    model_digest: str = ""
    previous_version: str = ""
    previous_digest: str = ""


class PlannedDevice(Struct, frozen=True, kw_only=True):
    """What a rollout will do with one device.

    Attributes:
        state: ``queued``, ``no_variant`` or ``already_running``.
        reason: why it is not reached, or why it may not be a canary; empty otherwise.
        variant: label of the variant that it will take; empty where there is none, or where there are several.
        model_digest: digest of that variant's model file.
        previous_version, previous_digest: what it runs; of a joint release in words, and without a digest.
        parts: the same for each model of the release.
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
    parts: tuple[PlannedPart, ...] = ()


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
    """Known devices that carry every tag, by id; not those that were put out of the fleet."""
    wanted, gone = tags.items(), identities.put_out(connection)
    rows = [row for row in devices.list_all(connection) if row.id not in gone]
    return [row for row in rows if wanted <= devices.effective_tags(row).items()]


def plan(
    connection: Connection, wanted: ReleaseSet, rows: Sequence[Row[Any]], *, needs_base: bool = False
) -> list[PlannedDevice]:
    """What a release means for each device; stages are not drawn yet (all in stage 0).

    Args:
        connection: of any transaction.
        wanted: what is rolled out.
        rows: the devices.
        needs_base: it runs beside the version that a device has, so a device without one is not reached.
    """
    manifests = [(release, _manifest(connection, release)) for release in wanted.releases]
    planned = [_plan_device(connection, wanted, manifests, row) for row in rows]
    return [_with_base(connection, device) for device in planned] if needs_base else planned


def _manifest(connection: Connection, release: Release) -> BundleManifest:
    manifest_bytes = releases.read_files(connection, release.model, release.version).manifest
    return read_json(manifest_bytes, BundleManifest, file=MANIFEST_FILE)


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
        parts=tuple(
            MemberPart(
                model=part.model,
                version=part.version,
                digest=part.digest,
                state=device.state,
                previous_version=part.previous_version,
                previous_digest=part.previous_digest,
            )
            for part in device.parts
        ),
    )


def _plan_device(
    connection: Connection, wanted: ReleaseSet, manifests: Sequence[tuple[Release, BundleManifest]], row: Row[Any]
) -> PlannedDevice:
    found = [
        (release, resolve_variant(manifest, row.target, row.arch, row.runtimes)) for release, manifest in manifests
    ]
    parts = tuple(_plan_part(connection, row, release, variant) for release, variant in found)
    lacking = [
        named(release.model if wanted.label else "", variant) for release, variant in found if isinstance(variant, str)
    ]
    runtimes = "+".join(dict.fromkeys(variant.runtime for _, variant in found if isinstance(variant, Variant)))
    reason = lacking[0] if lacking else _tied(connection, wanted, row.id)
    runs_it = all(part.previous_digest == part.digest for part in parts)
    state = DeviceState.ALREADY_RUNNING if runs_it and not lacking else DeviceState.QUEUED
    alone = len(parts) == 1
    return PlannedDevice(
        device_id=row.id,
        stage_index=0,
        stratum=f"{row.target}/-" if lacking else f"{row.target}/{runtimes}",
        state=DeviceState.NO_VARIANT if reason and state is DeviceState.QUEUED else state,
        reason=reason if state is DeviceState.QUEUED else "",
        variant=parts[0].variant if alone else "",
        model_digest=parts[0].model_digest if alone else "",
        previous_version=parts[0].previous_version if alone else _before_words(connection, wanted, parts),
        previous_digest=parts[0].previous_digest if alone else "",
        parts=parts,
    )


def _plan_part(connection: Connection, row: Row[Any], release: Release, variant: Variant | str) -> PlannedPart:
    version, digest = _running(connection, row, release.model)
    model_file = None if isinstance(variant, str) else variant.file("model")
    return PlannedPart(
        model=release.model,
        version=release.version,
        digest=release.digest,
        variant="" if isinstance(variant, str) else variant.label,
        model_digest="" if model_file is None else model_file.digest,
        previous_version=version,
        previous_digest=digest,
    )


def _tied(connection: Connection, wanted: ReleaseSet, device_id: str) -> str:
    """Why a device cannot take it: it would change one model of a joint release without the others; "" if it can."""
    mine = {part.model for part in wanted.parts}
    together: dict[str, set[str]] = {}
    for assigned in goals.assignments_of(connection, device_id):
        if assigned.release:
            together.setdefault(assigned.release, set()).add(assigned.model)
    for label, models in sorted(together.items()):
        others = sorted(models - mine)
        if models & mine and others and joint.find_label(connection, label) is not None:
            shared = " and ".join(sorted(models & mine))
            verb = "changes" if len(models & mine) == 1 else "change"
            return f"{shared} {verb} only together with {' and '.join(others)} there: it runs {label.replace('@', ' ')}"
    return ""


def _before_words(connection: Connection, wanted: ReleaseSet, parts: Sequence[PlannedPart]) -> str:
    """What a device runs of a joint release's models: the joint release's version, or each model's in words."""
    running = {(part.model, part.previous_digest) for part in parts if part.previous_digest}
    for known in joint.of_name(connection, wanted.name):
        if {(part.model, part.digest) for part in known.parts} == running:
            return known.version
    return " and ".join(f"{part.model} {part.previous_version}" for part in parts if part.previous_digest)


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
