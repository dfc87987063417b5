"""Releases of several models, which switch together: the joint_releases table."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, insert, select, update

from edgeship.server.store import schema
from edgeship.server.store.releases import AVAILABLE, BLOCKED


class Part(Struct, frozen=True, kw_only=True):
    """One model of a release."""

    model: str
    version: str
    digest: str


class JointRelease(Struct, frozen=True, kw_only=True):
    """Releases of several models that switch together.

    Attributes:
        digest: of the name, the version and the parts, for whoever compares two servers.
        parts: by model.
        state: ``available`` or ``blocked``.
        blocked_by: id of the rollout that blocked it, or a part of it; empty otherwise.
    """

    name: str
    version: str
    digest: str
    parts: tuple[Part, ...]
    added_at_s: float
    state: str = AVAILABLE
    blocked_reason: str = ""
    blocked_by: str = ""

    @property
    def label(self) -> str:
        """How goals name it."""
        return f"{self.name}@{self.version}"


_TABLE: Final = schema.joint_releases
_COLUMNS: Final = tuple(_TABLE.c[name] for name in JointRelease.__struct_fields__)


def find(connection: Connection, name: str, version: str) -> JointRelease | None:
    """The joint release of that name and version, or None."""
    query = select(*_COLUMNS).where(_TABLE.c.name == name, _TABLE.c.version == version)
    row = connection.execute(query).one_or_none()
    return None if row is None else _release(row)


def find_label(connection: Connection, label: str) -> JointRelease | None:
    """The joint release that goals name so, or None."""
    name, _, version = label.rpartition("@")
    return find(connection, name, version) if name else None


def list_all(connection: Connection) -> list[JointRelease]:
    """Every joint release, newest first."""
    query = select(*_COLUMNS).order_by(_TABLE.c.added_at_s.desc(), _TABLE.c.id.desc())
    return [_release(row) for row in connection.execute(query)]


def of_name(connection: Connection, name: str) -> list[JointRelease]:
    """The versions of a joint release, newest first."""
    return [known for known in list_all(connection) if known.name == name]


def holding(connection: Connection, model: str, version: str = "") -> list[JointRelease]:
    """Joint releases with some version of a model, or with the one that is named; newest first."""
    return [
        known
        for known in list_all(connection)
        if any(part.model == model and version in ("", part.version) for part in known.parts)
    ]


def add(connection: Connection, release: JointRelease) -> None:
    """Insert a joint release that is not there yet."""
    values: dict[str, Any] = msgspec.to_builtins(release)
    connection.execute(insert(_TABLE).values(**values))


def block(connection: Connection, release: JointRelease, *, reason: str, rollout_id: str) -> None:
    """Never offer it again."""
    where = (_TABLE.c.name == release.name, _TABLE.c.version == release.version)
    values = {"state": BLOCKED, "blocked_reason": reason, "blocked_by": rollout_id}
    connection.execute(update(_TABLE).where(*where).values(**values))


def _release(row: Row[Any]) -> JointRelease:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, JointRelease)
