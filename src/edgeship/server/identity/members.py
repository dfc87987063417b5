"""Letting devices in, renewing what they hold, and putting them out: rules, certificates and database together."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct, structs
from sqlalchemy import Connection, Row

from edgeship.rollout import DeviceEvent, DeviceState, RolloutState, device_transition
from edgeship.server.context import ServerContext
from edgeship.server.identity.authority import (
    Authority,
    check_renewal,
    common_name,
    key_digest,
    key_of_request,
)
from edgeship.server.identity.rules import Invitation, Known, Verdict, decide
from edgeship.server.store import identities, rollouts
from edgeship.server.store.identities import PUT_OUT
from edgeship_agent.contract.enrolment import (
    SERVER_NAME,
    EnrolAnswer,
    EnrolRequest,
    RenewRequest,
    Token,
    short_fingerprint,
)
from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.topics import check_device_id

_SECRET_BYTES: Final = 20  # 160 bits
_MAX_DEVICES: Final = 100_000
_LONGEST_S: Final = 366 * 86400.0


class Places(Struct, frozen=True, kw_only=True):
    """Where devices find the fleet.

    Attributes:
        enrol_url: of the enrolment service: ``https://HOST:PORT``.
        server_url: where bundles come from.
        broker_url: ``mqtts://HOST:PORT``.
    """

    enrol_url: str
    server_url: str
    broker_url: str


class Invited(Struct, frozen=True, kw_only=True):
    """A fresh invitation; the only time that its secret is seen."""

    id: str
    token: str
    expires_at_s: float


class Members:
    """The fleet's members.

    Args:
        context: the server's parts.
        authority: issues certificates.
        places: told to devices that are let in.
        on_revoked: called with a device's id once the revocation is committed: cut it off now.
    """

    def __init__(
        self, context: ServerContext, authority: Authority, places: Places, on_revoked: Callable[[str], None]
    ) -> None:
        self._context = context
        self._authority = authority
        self.places = places
        self._on_revoked = on_revoked

    @property
    def authority(self) -> Authority:
        """The certificate authority."""
        return self._authority

    def invite(self, tags: Mapping[str, str], count: int, valid_s: float, *, needs_approval: bool) -> Invited:
        """Make an invitation.

        Args:
            tags: of the devices that come by it.
            count: how many may.
            valid_s: for how long.
            needs_approval: whether an operator has to approve each.

        Raises:
            InputError: a number is out of range.
        """
        if not 1 <= count <= _MAX_DEVICES:
            raise InputError("out of range", key="count", expected=f"1–{_MAX_DEVICES}", got=count)
        if not 0 < valid_s <= _LONGEST_S:
            raise InputError("out of range", key="valid_s", expected=f"> 0, ≤ {_LONGEST_S:g}", got=valid_s)
        secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().lower().rstrip("=")
        token = Token(authority=short_fingerprint(self._authority.fingerprint), secret=secret)
        now_s = self._context.clock()
        values = {
            "secret_sha256": _sha256(secret), "tags": dict(tags), "device_limit": count,
            "needs_approval": needs_approval, "created_at_s": now_s, "expires_at_s": now_s + valid_s,
        }  # fmt: skip
        with self._context.write() as connection:
            number = identities.add_invitation(connection, values)
            group = ", ".join(f"{name}={value}" for name, value in tags.items()) or "no group"
            sentence = f"invitation {number} for {count} ({group}) was made"
            self._context.record(connection, "device_invited", "server", sentence, {"invitation": number})
        return Invited(id=number, token=token.text, expires_at_s=now_s + valid_s)

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Let a device in, or let it wait.

        Raises:
            InputError: it may not come in; says why and what to do.
        """
        device_id = _member_name(request.device_id)
        digest = key_digest(key_of_request(request.csr))
        now_s = self._context.clock()
        with self._context.write() as connection:
            row = identities.find_invitation(connection, _sha256(request.secret))
            present = identities.current(connection, device_id)
            known = [Known(key_sha256=each.key_sha256, state=each.state) for each in present]
            decision = decide(_invitation(row), known, device_id, digest, now_s)
            if decision.verdict is Verdict.REFUSE:
                raise InputError(decision.reason, key="token", next_step=decision.next_step)
            if decision.verdict is Verdict.AGAIN:
                found = next(each for each in present if each.key_sha256 == digest)
                return self._answer(found)
            assert row is not None, "nobody is let in without an invitation"
            identities.count_device(connection, row.id)
            waiting = identities.add(connection, {
                "device_id": device_id, "state": identities.PENDING, "key_sha256": digest, "csr": request.csr,
                "target": request.target[:256], "tags": row.tags, "invitation": row.id,
                "requested_at_s": now_s, "changed_at_s": now_s,
            })  # fmt: skip
            if decision.verdict is Verdict.WAIT:
                sentence = f"{device_id} asks to be let in (key {digest[:16]})"
                self._context.record(connection, "device_pending", f"device/{device_id}", sentence, {"key": digest})
                return self._answer(waiting)
            return self._answer(self._issue(connection, waiting))

    def approve(self, device_id: str) -> Row[Any]:
        """Let a waiting device in; its identity.

        Raises:
            InputError: it does not wait.
        """
        with self._context.write() as connection:
            for row in identities.current(connection, device_id):
                if row.state == identities.PENDING:
                    return self._issue(connection, row)
        raise InputError(f"{device_id} does not wait for approval", next_step="edgeship devices identities")

    def renew(self, request: RenewRequest) -> EnrolAnswer:
        """The next certificate of a member; the one before stays good until it expires, for the answer may be lost.

        Raises:
            InputError: not a member any more, or not signed by the member's key.
        """
        certificate = self._authority.check_member(request.certificate)
        check_renewal(certificate, request.csr, request.signature)
        digest = key_digest(key_of_request(request.csr))
        now_s = self._context.clock()
        with self._context.write() as connection:
            row = identities.find_serial(connection, certificate.serial_number)
            present = identities.current(connection, row.device_id) if row is not None else []
            same = [each for each in present if each.key_sha256 == digest and each.state == identities.ACTIVE]
            if same:
                return self._answer(same[0])
            if row is None or row.state != identities.ACTIVE:
                raise InputError(f"this certificate of {common_name(certificate)} is not in use any more",
                                 key="certificate",
                                 next_step="edgeship devices enroll, on the server, prints a new token")  # fmt: skip
            values = {name: getattr(row, name) for name in ("device_id", "target", "tags", "invitation")}
            fresh = identities.add(connection, {
                **values, "state": identities.PENDING, "key_sha256": digest, "csr": request.csr,
                "requested_at_s": now_s, "changed_at_s": now_s,
            })  # fmt: skip
            issued = self._issue(connection, fresh)
            identities.change(connection, row.id, {"state": identities.REPLACED, "changed_at_s": now_s})
            return self._answer(issued)

    def revoke(self, device_id: str) -> int:
        """Put a device out; how many of its certificates were good until now.

        Raises:
            InputError: it is not in the fleet.
        """
        now_s = self._context.clock()
        with self._context.write() as connection:
            present = identities.revocable(connection, device_id)
            if not present:
                raise InputError(f"{device_id} has no identity here", next_step="edgeship devices identities")
            for row in present:
                identities.change(connection, row.id, {"state": identities.REVOKED, "changed_at_s": now_s})
            _leave_rollouts(connection, device_id, now_s)
            self._context.record(connection, "device_revoked", f"device/{device_id}",
                                 f"{device_id} was put out of the fleet", {"certificates": len(present)})  # fmt: skip
            self._context.store.after_commit(lambda: self._on_revoked(device_id))
        return len(present)

    def revocation_list(self) -> bytes:
        """Every certificate that was revoked, signed, PEM."""
        with self._context.read() as connection:
            return self._authority.revocation_list(identities.dead_serials(connection))

    def _issue(self, connection: Connection, row: Row[Any]) -> Row[Any]:
        certificate = self._authority.issue_device(row.device_id, row.csr)
        issued = identities.change(connection, row.id, {
            "state": identities.ACTIVE,
            "certificate": certificate.public_bytes(Encoding.PEM).decode(),
            "serial": str(certificate.serial_number),
            "changed_at_s": self._context.clock(),
            "expires_at_s": certificate.not_valid_after_utc.timestamp(),
        })  # fmt: skip
        sentence = f"{row.device_id} is in the fleet until {certificate.not_valid_after_utc:%Y-%m-%d}"
        self._context.record(connection, "device_enrolled", f"device/{row.device_id}", sentence,
                             {"invitation": row.invitation, "serial": issued.serial})  # fmt: skip
        return issued

    def _answer(self, row: Row[Any]) -> EnrolAnswer:
        if row.state == identities.PENDING:
            return EnrolAnswer(state="pending")
        trust = self._context.trust
        return EnrolAnswer(
            state="enrolled",
            certificate=row.certificate,
            authority=self._authority.pem.decode(),
            root=trust.repository.root_bytes.decode(),
            goal_key=trust.goal_public.hex(),
            server_url=self.places.server_url,
            broker_url=self.places.broker_url,
            tags=row.tags,
        )


def _member_name(device_id: str) -> str:
    try:
        check_device_id(device_id)
    except ContractError as error:
        raise InputError(error.message, key="device_id", expected=error.expected, got=error.got) from error
    if device_id == SERVER_NAME:
        raise InputError("that name is the server's own", key="device_id", got=device_id)
    return device_id


def _invitation(row: Row[Any] | None) -> Invitation | None:
    if row is None:
        return None
    return Invitation(**{name: getattr(row, name) for name in Invitation.__struct_fields__})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _leave_rollouts(connection: Connection, device_id: str, now_s: float) -> None:
    """No rollout waits for a device that was put out, and it is no failure of the release.

    What it had shown when it succeeded was judged already; no more comes.
    """
    live = {each.id for each in rollouts.in_states(connection, (RolloutState.RUNNING, RolloutState.PAUSED))}
    for known in rollouts.memberships(connection, device_id):
        is_awaited = known.state is DeviceState.SUCCEEDED and known.rollout_id in live
        if known.state.is_pending or is_awaited:
            state = device_transition(known.state, DeviceEvent.REMOVED)
            parts = [
                structs.replace(part, state=device_transition(part.state, DeviceEvent.REMOVED), reason=PUT_OUT)
                for part in known.parts
            ]
            rollouts.save_parts(connection, known, now_s, parts, state=state, reason=PUT_OUT)
