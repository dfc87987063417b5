"""Two machines with one identity: a disk image that was copied after its device had enrolled.

A device counts its connections on disk and never uses a number twice. Two copies of that disk count on from the same
number and throw each other off the broker, so numbers come again, over and over. A single device whose state was wiped
starts anew once, which is no repeat of that kind.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.server.store import incidents
from edgeship.server.store.incidents import NewIncident
from edgeship_agent.contract.messages import Birth

KIND: Final = "cloned_device"
#: So many repeated session numbers ...
REPEATS: Final = 3
#: ... within this time prove two machines; they come at least every few seconds where two fight for the connection.
WITHIN_S: Final = 600.0
#: An incident is over when nothing was repeated for so long.
QUIET_S: Final = 3600.0
_NEXT: Final = "take the copy off the network; then revoke this identity and enrol both machines anew"


class _Seen(Struct):
    """The newest birth of a device, and when numbers came again."""

    session: int
    sent_at_s: float
    repeats_s: deque[float]


class CloneWatch:
    """Watches session numbers; what it counts begins anew with the server."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._started_s: float | None = None

    def saw(self, birth: Birth, now_s: float) -> int:
        """Take in a birth.

        Returns:
            How often a number was repeated lately.
        """
        seen = self._seen.setdefault(birth.device_id, _Seen(session=0, sent_at_s=0.0, repeats_s=deque()))
        came_again = birth.sent_at_s == seen.sent_at_s and birth.session == seen.session  # the broker's own repeat
        if not came_again and 0 < birth.session <= seen.session:
            seen.repeats_s.append(now_s)
        while seen.repeats_s and seen.repeats_s[0] < now_s - WITHIN_S:
            seen.repeats_s.popleft()
        seen.session, seen.sent_at_s = birth.session, birth.sent_at_s
        return len(seen.repeats_s)

    def last_repeat_s(self, device_id: str, now_s: float) -> float:
        """When a number of a device came again last; for want of memory, when this server started."""
        if self._started_s is None:
            self._started_s = now_s
        seen = self._seen.get(device_id)
        return seen.repeats_s[-1] if seen is not None and seen.repeats_s else self._started_s


def judge_birth(connection: Connection, watch: CloneWatch, birth: Birth, now_s: float) -> tuple[int, str] | None:
    """Number and sentence of the incident that is opened where a birth proves that two machines share an identity."""
    repeats = watch.saw(birth, now_s)
    if repeats < REPEATS or birth.device_id in cloned(connection):
        return None
    sentence = (
        f"{birth.device_id}: cloned device: session numbers that were used before came {repeats} times "
        f"in {WITHIN_S / 60:.0f} minutes (limit {REPEATS - 1}), so two machines share this identity"
    )
    evidence = {"repeats": repeats, "limit": REPEATS - 1, "within_s": WITHIN_S, "session": birth.session,
                "next_step": _NEXT}  # fmt: skip
    incident = NewIncident(kind=KIND, device_id=birth.device_id, model="", version="", severity="alert",
                           sentence=sentence, evidence=evidence)  # fmt: skip
    return incidents.open_incident(connection, incident, now_s), sentence


def close_quiet(connection: Connection, watch: CloneWatch, now_s: float) -> list[tuple[str, str]]:
    """Close what has been quiet for long enough; device and sentence of each."""
    closed = []
    for device_id, number in cloned(connection).items():
        quiet_s = now_s - watch.last_repeat_s(device_id, now_s)
        if quiet_s >= QUIET_S:
            sentence = (
                f"{device_id}: cloned device is over: no session number came again for {quiet_s / 60:.0f} minutes"
            )
            incidents.close_incident(connection, number, sentence, {"quiet_s": quiet_s}, now_s)
            closed.append((device_id, sentence))
    return closed


def cloned(connection: Connection) -> dict[str, int]:
    """Devices whose identity two machines share: device → its open incident. None of them is offered an update."""
    return {row.device_id: row.id for row in incidents.list_incidents(connection, incidents.OPEN) if row.kind == KIND}
