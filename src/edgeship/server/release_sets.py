"""What a rollout brings to devices: one release, or several that switch together. One is the set of one."""

from __future__ import annotations

import hashlib

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.rollout.wording import counted
from edgeship.server.context import ServerContext
from edgeship.server.store import joint, releases
from edgeship.server.store.joint import JointRelease, Part
from edgeship.server.store.releases import AVAILABLE, Release
from edgeship_agent.contract.errors import ConfigError, VerificationError
from edgeship_agent.contract.oci import canonical_json

#: A joint release of one model would be that release under another name.
_FEWEST_MODELS = 2
_LONGEST_NAME = 100


class ReleaseSet(Struct, frozen=True, kw_only=True):
    """What a rollout brings to devices.

    Attributes:
        name, version, digest: of the release, or of the joint one.
        releases: of each model, by model name.
        label: how goals name a joint release; empty for one model alone.
        state, blocked_reason, blocked_by: as in :class:`Release`.
    """

    name: str
    version: str
    digest: str
    releases: tuple[Release, ...]
    label: str = ""
    state: str = AVAILABLE
    blocked_reason: str = ""
    blocked_by: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its models with their versions and digests."""
        return tuple(Part(model=each.model, version=each.version, digest=each.digest) for each in self.releases)


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/releases/join``.

    Attributes:
        members: the releases, each as ``MODEL@VERSION``.
    """

    name: str
    version: str
    members: list[str]


class JoinedRelease(Struct, frozen=True, kw_only=True):
    """Answer to a join.

    Attributes:
        created: False where exactly this was joined before.
    """

    schema_version: int = 1
    created: bool
    release: JointRelease


def find(connection: Connection, name: str, version: str) -> ReleaseSet | None:
    """The release, or joint release, of that name and version; None where there is neither."""
    single = releases.find(connection, name, version)
    if single is not None:
        return ReleaseSet(
            name=name,
            version=version,
            digest=single.digest,
            releases=(single,),
            state=single.state,
            blocked_reason=single.blocked_reason,
            blocked_by=single.blocked_by,
        )
    joined = joint.find(connection, name, version)
    if joined is None:
        return None
    found = [releases.find(connection, part.model, part.version) for part in joined.parts]
    return ReleaseSet(
        name=name,
        version=version,
        digest=joined.digest,
        releases=tuple(release for release in found if release is not None),  # none is ever removed
        label=joined.label,
        state=joined.state,
        blocked_reason=joined.blocked_reason,
        blocked_by=joined.blocked_by,
    )


def known_words(connection: Connection) -> str:
    """Every name and version that a rollout could bring, for a message."""
    names = [f"{each.name} {each.version}" for each in joint.list_all(connection)]
    names += [f"{each.model} {each.version}" for each in releases.list_all(connection)]
    return ", ".join(names) or "none"


def block(context: ServerContext, connection: Connection, blocked: ReleaseSet, reason: str, rollout_id: str) -> None:
    """Never offer it again; with one model, neither the joint releases that hold it."""
    if blocked.label:
        joined = joint.find(connection, blocked.name, blocked.version)
        assert joined is not None  # it was read from there
        joint.block(connection, joined, reason=reason, rollout_id=rollout_id)
        return
    releases.block(connection, blocked.name, blocked.version, reason=reason, rollout_id=rollout_id)
    for holder in joint.holding(connection, blocked.name, blocked.version):
        if holder.state == releases.BLOCKED:
            continue
        why = f"it holds {blocked.name} {blocked.version}, which is blocked: {reason}"
        joint.block(connection, holder, reason=why, rollout_id=rollout_id)
        subject = f"release/{holder.name}/{holder.version}"
        sentence = f"{holder.name} {holder.version} is blocked: {why}"
        context.record(connection, "release_blocked", subject, sentence, {"rollout": rollout_id})


def join(context: ServerContext, request: JoinRequest) -> JoinedRelease:
    """Make releases of several models one that switches together; exactly the same again changes nothing.

    Raises:
        ConfigError: too few models, one twice, one that is not known or blocked, or a name that is taken.
        VerificationError: the version exists with other members, and a version never changes.
    """
    wanted = _wanted(request)
    with context.write() as connection:
        parts = _checked(connection, wanted)
        if releases.list_all(connection, request.name):
            raise ConfigError("a model has this name", key=request.name,
                              expected="a name of its own for what switches together")  # fmt: skip
        content = {"name": request.name, "version": request.version, "parts": parts}
        release = JointRelease(
            name=request.name,
            version=request.version,
            digest=f"sha256:{hashlib.sha256(canonical_json(content)).hexdigest()}",
            parts=parts,
            added_at_s=context.clock(),
        )
        known = joint.find(connection, request.name, request.version)
        if known is not None:
            return JoinedRelease(created=False, release=_same(known, release))
        joint.add(connection, release)
        sentence = f"{release.name} {release.version} joins {_names(parts)}"
        subject = f"release/{release.name}/{release.version}"
        context.record(connection, "release_joined", subject, sentence, {"digest": release.digest})
    return JoinedRelease(created=True, release=release)


def _wanted(request: JoinRequest) -> list[tuple[str, str]]:
    for key, text in (("name", request.name), ("version", request.version)):
        if not text or len(text) > _LONGEST_NAME or any(sign in text for sign in "/@ \t\n"):
            raise ConfigError("not a name that a release can have", key=key, got=repr(text[:_LONGEST_NAME]),
                              expected=f"1 … {_LONGEST_NAME} characters, no space, / or @")  # fmt: skip
    wanted = []
    for text in request.members:
        model, at, version = text.rpartition("@")
        if not at or not model or not version:
            raise ConfigError("not a release of a model", key="members", expected="MODEL@VERSION", got=text)
        wanted.append((model, version))
    models = [model for model, _ in wanted]
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise ConfigError("a model can be in a release once", key="members", got=f"{', '.join(twice)} twice",
                          expected="releases of different models")  # fmt: skip
    if len(wanted) < _FEWEST_MODELS:
        alone = "one alone is rolled out as it is: edgeship rollouts create MODEL VERSION"
        raise ConfigError("nothing to join", key="members", expected="at least 2 releases",
                          got=counted(len(wanted), "release"), next_step=alone)  # fmt: skip
    return sorted(wanted)


def _checked(connection: Connection, wanted: list[tuple[str, str]]) -> tuple[Part, ...]:
    found = [(model, version, releases.find(connection, model, version)) for model, version in wanted]
    missing = [f"{model}@{version}" for model, version, release in found if release is None]
    if missing:
        known = ", ".join(f"{each.model}@{each.version}" for each in releases.list_all(connection)) or "none"
        raise ConfigError(f"no such release: {', '.join(missing)}", key="members", expected=known,
                          next_step="edgeship releases add BUNDLE")  # fmt: skip
    present = [release for _, _, release in found if release is not None]
    blocked = [release for release in present if release.state == releases.BLOCKED]
    if blocked:
        why = "; ".join(f"{each.model} {each.version}: {each.blocked_reason}" for each in blocked)
        raise ConfigError(f"a blocked release cannot be joined: {why}", key="members",
                          next_step=f"edgeship explain rollout/{blocked[0].blocked_by}")  # fmt: skip
    return tuple(Part(model=each.model, version=each.version, digest=each.digest) for each in present)


def _same(known: JointRelease, wanted: JointRelease) -> JointRelease:
    if known.parts != wanted.parts:
        raise VerificationError(
            "this version exists with other members, and a version never changes",
            key=f"{known.name} {known.version}",
            expected=_names(known.parts),
            got=_names(wanted.parts),
            next_step="join them under another version",
        )
    return known


def _names(parts: tuple[Part, ...]) -> str:
    return ", ".join(f"{part.model}@{part.version}" for part in parts)
