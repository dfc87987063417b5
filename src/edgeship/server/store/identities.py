"""Invitations and the identities that devices were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from edgeship.server.store import schema

PENDING: Final = "pending"
ACTIVE: Final = "active"
REPLACED: Final = "replaced"
REVOKED: Final = "revoked"
#: What a rollout says of a device that was revoked.
PUT_OUT: Final = "put out of the fleet"
_invitations = schema.invitations
_identities = schema.identities


def add_invitation(connection: Connection, values: Mapping[str, Any]) -> str:
    """Keep an invitation; its id."""
    newest = connection.execute(select(func.max(_invitations.c.number))).scalar_one_or_none()
    number = (newest or 0) + 1
    connection.execute(insert(_invitations).values(id=f"e{number}", number=number, device_count=0, **values))
    return f"e{number}"


def find_invitation(connection: Connection, secret_sha256: str) -> Row[Any] | None:
    """The invitation of a secret."""
    query = select(_invitations).where(_invitations.c.secret_sha256 == secret_sha256)
    return connection.execute(query).one_or_none()


def count_device(connection: Connection, invitation: str) -> None:
    """One more device came by an invitation."""
    query = update(_invitations).where(_invitations.c.id == invitation)
    connection.execute(query.values(device_count=_invitations.c.device_count + 1))


def current(connection: Connection, device_id: str) -> list[Row[Any]]:
    """What a device is or waits to be: its active and pending identities, the newest first."""
    query = select(_identities).where(_identities.c.device_id == device_id)
    query = query.where(_identities.c.state.in_((PENDING, ACTIVE))).order_by(_identities.c.id.desc())
    return list(connection.execute(query))


def revocable(connection: Connection, device_id: str) -> list[Row[Any]]:
    """Everything by which a device could come in: waiting, active, or replaced and perhaps still good."""
    query = select(_identities).where(_identities.c.device_id == device_id, _identities.c.state != REVOKED)
    return list(connection.execute(query.order_by(_identities.c.id)))


def list_current(connection: Connection) -> list[Row[Any]]:
    """Every active and pending identity by device."""
    query = select(_identities).where(_identities.c.state.in_((PENDING, ACTIVE)))
    return list(connection.execute(query.order_by(_identities.c.device_id, _identities.c.id)))


def find_serial(connection: Connection, serial: int) -> Row[Any] | None:
    """The identity of a certificate."""
    return connection.execute(select(_identities).where(_identities.c.serial == str(serial))).one_or_none()


def add(connection: Connection, values: Mapping[str, Any]) -> Row[Any]:
    """Keep an identity."""
    key = connection.execute(insert(_identities).values(**values)).inserted_primary_key
    assert key is not None, "an integer primary key is always known"
    return connection.execute(select(_identities).where(_identities.c.id == key[0])).one()


def change(connection: Connection, identity: int, values: Mapping[str, Any]) -> Row[Any]:
    """Change an identity; as it is afterwards."""
    connection.execute(update(_identities).where(_identities.c.id == identity).values(**values))
    return connection.execute(select(_identities).where(_identities.c.id == identity)).one()


def put_out(connection: Connection) -> frozenset[str]:
    """Devices that were revoked and have not been let in again; empty where devices come without an identity."""
    query = select(_identities.c.device_id, _identities.c.state).where(_identities.c.state.in_((REVOKED, ACTIVE)))
    states: dict[str, set[str]] = {REVOKED: set(), ACTIVE: set()}
    for device_id, state in connection.execute(query):
        states[state].add(device_id)
    return frozenset(states[REVOKED] - states[ACTIVE])


def dead_serials(connection: Connection) -> list[int]:
    """Serial numbers of every certificate that was revoked."""
    query = select(_identities.c.serial).where(_identities.c.state == REVOKED, _identities.c.serial != "")
    return [int(serial) for serial in connection.execute(query).scalars()]
