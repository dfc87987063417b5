"""Membership over the API: invitations, who is in, approval and revocation."""

from __future__ import annotations

from typing import Any

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Struct, field
from sqlalchemy import Row

from edgeship.server.api.devices import check_tags
from edgeship.server.context import ServerContext
from edgeship.server.store import identities


class InvitationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/invitations``.

    Attributes:
        tags: of the devices that come by it.
        count: how many may.
        valid_s: for how long.
        needs_approval: whether each waits for an operator.
    """

    tags: dict[str, str] = field(default_factory=dict)
    count: int = 1
    valid_s: float = 3600.0
    needs_approval: bool = False


class InvitationAnswer(Struct, frozen=True, kw_only=True):
    """Answer of ``POST /api/v1/invitations``; the token is shown this once."""

    schema_version: int = 1
    id: str
    token: str
    enrol_url: str
    expires_at_s: float


class Identity(Struct, frozen=True, kw_only=True):
    """A device that is in the fleet, or waits to be.

    Attributes:
        state: ``active`` or ``pending``.
        key_sha256: of its public key; the device shows the same figure.
        expires_at_s: of its certificate; 0 while it waits.
    """

    device_id: str
    state: str
    key_sha256: str
    target: str
    tags: dict[str, str]
    invitation: str
    requested_at_s: float
    expires_at_s: float


class IdentityList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/identities``."""

    schema_version: int = 1
    identities: list[Identity]


class Revoked(Struct, frozen=True, kw_only=True):
    """Answer of ``POST /api/v1/devices/{id}/revoke``."""

    schema_version: int = 1
    device_id: str
    certificates: int


@post("/api/v1/invitations", sync_to_thread=True)
def invite(context: NamedDependency[ServerContext], data: JSONBody[InvitationRequest]) -> InvitationAnswer:
    """Invite devices: a token for one, or for many until a day."""
    check_tags(data.tags)
    members = context.members
    made = members.invite(data.tags, data.count, data.valid_s, needs_approval=data.needs_approval)
    return InvitationAnswer(id=made.id, token=made.token, enrol_url=members.places.enrol_url,
                            expires_at_s=made.expires_at_s)  # fmt: skip


@get("/api/v1/identities", sync_to_thread=True)
def list_identities(context: NamedDependency[ServerContext]) -> IdentityList:
    """Every device that is in, or waits."""
    with context.read() as connection:
        return IdentityList(identities=[_identity(row) for row in identities.list_current(connection)])


@post("/api/v1/devices/{device_id:str}/approve", sync_to_thread=True, status_code=200)
def approve(context: NamedDependency[ServerContext], device_id: FromPath[str]) -> Identity:
    """Let a waiting device in."""
    return _identity(context.members.approve(device_id))


@post("/api/v1/devices/{device_id:str}/revoke", sync_to_thread=True, status_code=200)
def revoke(context: NamedDependency[ServerContext], device_id: FromPath[str]) -> Revoked:
    """Put a device out: none of its certificates is good any more, and its connection ends."""
    return Revoked(device_id=device_id, certificates=context.members.revoke(device_id))


def _identity(row: Row[Any]) -> Identity:
    return Identity(**{name: getattr(row, name) for name in Identity.__struct_fields__})


router = [invite, list_identities, approve, revoke]
