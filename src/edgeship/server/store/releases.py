"""The releases table and the author keys that each model trusts."""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from edgeship.server.store import schema

AVAILABLE: Final = "available"
BLOCKED: Final = "blocked"


class Release(Struct, frozen=True, kw_only=True):
    """One version of a model that the server can ship.

    Attributes:
        digest: of the bundle's nested image index.
        size_bytes: length of that index.
        state: ``available`` or ``blocked``.
        blocked_by: id of the rollout that blocked it; empty otherwise.
    """

    model: str
    version: str
    digest: str
    size_bytes: int
    author_key: str
    added_at_s: float
    state: str = AVAILABLE
    blocked_reason: str = ""
    blocked_by: str = ""


class ReleaseFiles(Struct, frozen=True, kw_only=True):
    """The documents of a release: its manifest, and what came along with it.

    Attributes:
        manifest: ``edgeship.json``.
        build: ``build.json``, or None.
        report: ``report.html``, or None.
    """

    manifest: bytes
    build: bytes | None = None
    report: bytes | None = None


_COLUMNS = tuple(schema.releases.c[name] for name in Release.__struct_fields__)


def find(connection: Connection, model: str, version: str) -> Release | None:
    """The release of that model and version, or None."""
    table = schema.releases
    row = connection.execute(select(*_COLUMNS).where(table.c.model == model, table.c.version == version)).one_or_none()
    return None if row is None else _release(row)


def find_digest(connection: Connection, digest: str) -> Release | None:
    """The release with that bundle digest, or None."""
    row = connection.execute(select(*_COLUMNS).where(schema.releases.c.digest == digest)).first()
    return None if row is None else _release(row)


def list_all(connection: Connection, model: str = "") -> list[Release]:
    """Every release, newest first; of one model where it is named."""
    table = schema.releases
    query = select(*_COLUMNS).order_by(table.c.added_at_s.desc(), table.c.id.desc())
    if model:
        query = query.where(table.c.model == model)
    return [_release(row) for row in connection.execute(query)]


def read_files(connection: Connection, model: str, version: str) -> ReleaseFiles:
    """Manifest, build.json and report.html of a release that exists."""
    table = schema.releases
    row = connection.execute(
        select(table.c.manifest, table.c.build, table.c.report).where(
            table.c.model == model, table.c.version == version
        )
    ).one()
    return ReleaseFiles(manifest=row.manifest, build=row.build, report=row.report)


def add(connection: Connection, release: Release, files: ReleaseFiles) -> None:
    """Insert a release that is not there yet."""
    values = {name: getattr(release, name) for name in Release.__struct_fields__}
    connection.execute(
        insert(schema.releases).values(**values, manifest=files.manifest, build=files.build, report=files.report)
    )


def replace_documents(connection: Connection, release: Release, files: ReleaseFiles) -> None:
    """Keep the newer build.json and report.html of the same bundle; what did not come along stays as it was."""
    values = {name: data for name, data in (("build", files.build), ("report", files.report)) if data is not None}
    if values:
        connection.execute(update(schema.releases).where(*_is(release.model, release.version)).values(**values))


def block(connection: Connection, model: str, version: str, *, reason: str, rollout_id: str) -> None:
    """Never offer this release again."""
    connection.execute(
        update(schema.releases)
        .where(*_is(model, version))
        .values(state=BLOCKED, blocked_reason=reason, blocked_by=rollout_id)
    )


def trusted_keys(connection: Connection, model: str) -> set[str]:
    """Author keys (hex) that may sign releases of this model."""
    table = schema.author_keys
    return set(connection.execute(select(table.c.key).where(table.c.model == model)).scalars())


def trust_key(connection: Connection, model: str, key: str, at_s: float) -> None:
    """Let a key sign releases of this model."""
    connection.execute(insert(schema.author_keys).values(model=model, key=key, trusted_at_s=at_s))


def _is(model: str, version: str) -> tuple[ColumnElement[bool], ...]:
    return (schema.releases.c.model == model, schema.releases.c.version == version)


def _release(row: Row[tuple[object, ...]]) -> Release:
    return Release(**row._asdict())
