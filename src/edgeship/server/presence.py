"""Who is there: births, heartbeats, wills and silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from edgeship.server import clones, device_reports
from edgeship.server.context import ServerContext
from edgeship.server.store import devices, identities
from edgeship_agent.contract.messages import Birth, Death, Heartbeat, RunningArm


def on_birth(context: ServerContext, connection: Connection, birth: Birth, *, retained: bool) -> bool:
    """Take in a device's full state.

    Returns:
        Whether it counts: a birth that the broker kept from an older session does not. Any other one does, also with
        a lower session number, since a device whose state directory was wiped starts to count anew.
    """
    now_s = context.clock()
    row = devices.find(connection, birth.device_id)
    if row is not None and retained and birth.session < row.session:
        return False
    devices.save_birth(connection, birth, now_s)
    if not retained:
        _watch_for_clones(context, connection, birth)
    subject = f"device/{birth.device_id}"
    data = {"session": birth.session, "target": birth.target}
    if row is None:
        _join_group(connection, birth.device_id)
        sentence = f"{birth.device_id} is new: {birth.target} ({birth.arch})"
        context.record(connection, "device_registered", subject, sentence, data)
    elif not row.online:
        context.record(connection, "device_online", subject, f"{birth.device_id} is online again", data)
    _record_fallbacks(context, connection, birth.device_id, row.running if row else [], birth.running)
    return True


def on_heartbeat(context: ServerContext, connection: Connection, heartbeat: Heartbeat) -> bool:
    """A device is alive.

    Returns:
        Whether the device is known.
    """
    row = devices.find(connection, heartbeat.device_id)
    if row is None or not devices.save_heartbeat(connection, heartbeat, context.clock()):
        return False
    if row.running != devices.running_rows(heartbeat.running):
        _record_fallbacks(context, connection, heartbeat.device_id, row.running, heartbeat.running)
        device_reports.on_running(context, connection, heartbeat.device_id, heartbeat.running)
    if not row.online:
        _record_return(context, connection, heartbeat.device_id)
    return True


def on_message(context: ServerContext, connection: Connection, device_id: str) -> None:
    """A device said something else, so it is there."""
    row = devices.find(connection, device_id)
    if row is None:
        return
    devices.save_seen(connection, device_id, context.clock())
    if not row.online:
        _record_return(context, connection, device_id)


def on_death(context: ServerContext, connection: Connection, death: Death) -> bool:
    """The broker lost a device's connection.

    Returns:
        Whether it counts: the will of a session that a newer birth has replaced does not.
    """
    row = devices.find(connection, death.device_id)
    if row is None or death.session < row.session:
        return False
    if row.online:
        devices.save_offline(connection, death.device_id)
        sentence = f"{death.device_id} lost its connection"
        context.record(connection, "device_offline", f"device/{death.device_id}", sentence, {"cause": "will"})
    return True


def _record_fallbacks(
    context: ServerContext,
    connection: Connection,
    device_id: str,
    before: Iterable[Mapping[str, str]],
    running: Iterable[RunningArm],
) -> None:
    """A device began to serve full precision, since what the build chose is not right on it: said once."""
    known = {(arm["model"], arm["arm"], arm["digest"]) for arm in before if arm.get("fallback")}
    for arm in running:
        if arm.fallback and (arm.model, arm.arm, arm.digest) not in known:
            why = arm.fallback.replace("_", " ")
            served = f"{device_id} serves {arm.model} {arm.version} as {arm.variant}"
            sentence = f"{served}: the variant of the build failed there ({why})"
            data = {"model": arm.model, "version": arm.version, "variant": arm.variant, "reason": arm.fallback}
            context.record(connection, "fallback_served", f"device/{device_id}", sentence, data)


def sweep(context: ServerContext, connection: Connection, listening_since_s: float) -> None:
    """Mark devices offline that were not heard for ``silence_s``.

    Args:
        context: the server's parts.
        connection: of a writing transaction.
        listening_since_s: since when devices could be heard without a break; silence before that is the server's own.
    """
    limit_s = context.config.silence_s
    now_s = context.clock()
    if now_s - listening_since_s < limit_s:
        return
    for device_id, sentence in clones.close_quiet(connection, context.clones, now_s):
        context.record(connection, "incident_closed", f"device/{device_id}", sentence, {})
    for row in devices.silent_since(connection, now_s - limit_s):
        devices.save_offline(connection, row.id)
        sentence = f"{row.id} was not heard for {now_s - row.last_seen_s:.0f} s (limit {limit_s:g} s)"
        context.record(connection, "device_offline", f"device/{row.id}", sentence, {"cause": "silence"})


def _watch_for_clones(context: ServerContext, connection: Connection, birth: Birth) -> None:
    opened = clones.judge_birth(connection, context.clones, birth, context.clock())
    if opened is not None:
        number, sentence = opened
        context.record(connection, "incident_opened", f"device/{birth.device_id}", sentence, {"incident": number})


def _join_group(connection: Connection, device_id: str) -> None:
    """A device that was invited into a group belongs to it from its first word on, whatever it says of itself."""
    tags = {name: value for row in identities.current(connection, device_id) for name, value in row.tags.items()}
    if tags:
        devices.save_operator_tags(connection, device_id, tags)


def _record_return(context: ServerContext, connection: Connection, device_id: str) -> None:
    sentence = f"{device_id} is online again"
    context.record(connection, "device_online", f"device/{device_id}", sentence, {})
