"""Who is let in: the decision alone, from what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from msgspec import Struct


class Verdict(Enum):
    """What becomes of a request."""

    ISSUE = "issue"  # a certificate now
    WAIT = "wait"  # an operator has to approve
    AGAIN = "again"  # the same answer as before: the first one may have been lost
    REFUSE = "refuse"


class Invitation(Struct, frozen=True, kw_only=True):
    """What a secret stands for; see the table of that name."""

    id: str
    tags: Mapping[str, str]
    device_limit: int
    device_count: int
    needs_approval: bool
    expires_at_s: float


class Known(Struct, frozen=True, kw_only=True):
    """An identity that a device has, or waits for."""

    key_sha256: str
    state: str


class Decision(Struct, frozen=True, kw_only=True):
    """The verdict, and why where it is a refusal."""

    verdict: Verdict
    reason: str = ""
    next_step: str = ""


def decide(
    invitation: Invitation | None, known: Sequence[Known], device_id: str, key_sha256: str, now_s: float
) -> Decision:
    """Whether a device is let in.

    A device that asks again with the same key is answered as before, so that a lost answer costs nothing; a name that
    is taken is never given to another key, whatever the invitation: a cloned disk image must not displace its original.

    >>> decide(None, (), "press-07", "ab", 0.0).verdict.value
    'refuse'
    """
    if invitation is None:
        return _refuse("unknown enrolment token", "edgeship devices enroll, on the server, prints a new one")
    if any(each.key_sha256 == key_sha256 for each in known):
        return Decision(verdict=Verdict.AGAIN)
    if now_s >= invitation.expires_at_s:
        return _refuse(f"the enrolment token {invitation.id} has expired",
                       "edgeship devices enroll, on the server, prints a new one")  # fmt: skip
    if known:
        return _refuse(f"{device_id} is in the fleet already, with another key",
                       f"edgeship devices revoke {device_id}, or enrol under another --device-id")  # fmt: skip
    if invitation.device_count >= invitation.device_limit:
        devices = "1 device" if invitation.device_limit == 1 else f"{invitation.device_limit} devices"
        return _refuse(f"the enrolment token {invitation.id} was for {devices}, and they have come",
                       "edgeship devices enroll --count N, on the server, prints a new one")  # fmt: skip
    return Decision(verdict=Verdict.WAIT if invitation.needs_approval else Verdict.ISSUE)


def _refuse(reason: str, next_step: str) -> Decision:
    return Decision(verdict=Verdict.REFUSE, reason=reason, next_step=next_step)
