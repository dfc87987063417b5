"""Releases over REST."""

from __future__ import annotations

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Struct
from sqlalchemy import Connection

from edgeship.server.context import ServerContext
from edgeship.server.release_sets import JoinedRelease, JoinRequest, join
from edgeship.server.releases import AddedRelease, ReleaseRequest, register
from edgeship.server.store import joint, rollouts
from edgeship.server.store import releases as store
from edgeship.server.store.joint import JointRelease
from edgeship.server.store.releases import Release
from edgeship.server.version_table import VariantRow, VersionRow, variant_rows, version_rows


class ReleaseList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/releases``.

    Attributes:
        joint: releases of several models that switch together.
    """

    schema_version: int = 1
    releases: list[Release]
    joint: list[JointRelease]


class ReleaseDetail(Release, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/releases/{model}/{version}``: the release's own fields, and what is known about it.

    Attributes:
        variants: what was claimed for each variant when it was built.
        versions: every version of the model beside this one: accuracy, latency, status, traffic share.
        joined_in: the joint releases that hold it.
    """

    schema_version: int = 1
    variants: list[VariantRow]
    versions: list[VersionRow]
    joined_in: list[JointRelease]


class JointDetail(JointRelease, frozen=True, kw_only=True):
    """The same answer for a joint release.

    Attributes:
        members: the releases that it holds, by model.
        versions: every version of it, the newest first.
        rollouts: ids of its rollouts, the newest first.
    """

    schema_version: int = 1
    members: list[Release]
    versions: list[JointRelease]
    rollouts: list[str]


@post("/api/v1/releases", sync_to_thread=True)
def add_release(data: JSONBody[ReleaseRequest], context: NamedDependency[ServerContext]) -> AddedRelease:
    """Register a bundle whose blobs were uploaded; exactly the same bundle again changes nothing."""
    return register(context, data)


@post("/api/v1/releases/join", sync_to_thread=True)
def join_releases(data: JSONBody[JoinRequest], context: NamedDependency[ServerContext]) -> JoinedRelease:
    """Make releases of several models one that switches together; exactly the same again changes nothing."""
    return join(context, data)


@get("/api/v1/releases", sync_to_thread=True)
def list_releases(context: NamedDependency[ServerContext], model: FromQuery[str] = "") -> ReleaseList:
    """Every release, newest first; of one model those with it."""
    with context.read() as connection:
        joined = joint.holding(connection, model) if model else joint.list_all(connection)
        return ReleaseList(releases=store.list_all(connection, model), joint=joined)


@get("/api/v1/releases/{model:str}/{version:str}", sync_to_thread=True)
def show_release(
    model: FromPath[str], version: FromPath[str], context: NamedDependency[ServerContext]
) -> ReleaseDetail | JointDetail:
    """One release: claims per variant, and the version table of its model; or what a joint release holds."""
    with context.read() as connection:
        joined = joint.find(connection, model, version)
        if joined is not None:
            return _joint_detail(connection, joined)
        release = store.find(connection, model, version)
        if release is None:
            raise NotFoundException(f"no release {model} {version}; `edgeship releases list` names all")
        manifest = store.read_files(connection, model, version).manifest
        versions = version_rows(connection, model, context.clock())
        holders = joint.holding(connection, model, version)
    fields = msgspec.structs.asdict(release)
    return ReleaseDetail(**fields, variants=variant_rows(manifest), versions=versions, joined_in=holders)


def _joint_detail(connection: Connection, joined: JointRelease) -> JointDetail:
    held = [store.find(connection, part.model, part.version) for part in joined.parts]
    rolled_out = [
        each.id for each in rollouts.list_all(connection) if (each.model, each.version) == (joined.name, joined.version)
    ]
    return JointDetail(
        **msgspec.structs.asdict(joined),
        members=[release for release in held if release is not None],
        versions=joint.of_name(connection, joined.name),
        rollouts=rolled_out,
    )


@get("/api/v1/releases/{model:str}/{version:str}/{document:str}", sync_to_thread=True)
def read_document(
    model: FromPath[str], version: FromPath[str], document: FromPath[str], context: NamedDependency[ServerContext]
) -> Response[bytes]:
    """``build.json``, ``report.html`` or ``edgeship.json`` as it came along."""
    with context.read() as connection:
        found = store.find(connection, model, version) is not None
        files = store.read_files(connection, model, version) if found else None
    documents = {} if files is None else _documents(files)
    data, media_type = documents.get(document, (None, ""))
    if data is None:
        raise NotFoundException(f"no {document} of release {model} {version}")
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}
    return Response(data, media_type=media_type, headers=headers)


def _documents(files: store.ReleaseFiles) -> dict[str, tuple[bytes | None, str]]:
    return {
        "edgeship.json": (files.manifest, "application/json"),
        "build.json": (files.build, "application/json"),
        "report.html": (files.report, "text/html; charset=utf-8"),
    }


router = [add_release, join_releases, list_releases, show_release, read_document]
