"""What the demo says while it runs: lines for people on stderr, events for scripts on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import msgspec

from edgeship.demo.claims import RESULT_VERSION, Claim
from edgeship.demo.processes import Role


class Timeline:
    """Prints as things happen.

    Args:
        as_json: events go to stdout as JSON lines; the timeline for people goes to stderr either way.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._started_s = time.monotonic()
        self._roles: list[Role] = []

    def act(self, title: str) -> None:
        """A new chapter."""
        self._say(f"\n{self._clock()}  {title}")

    def line(self, text: str, mark: str = "·") -> None:
        """Something happened in this chapter."""
        self._say(f"{self._clock()}    {mark} {text}")

    def processes(self, roles: Sequence[Role]) -> None:
        """The processes, said again only when one has changed."""
        roles = sorted(roles, key=lambda role: role.role)
        if roles != self._roles:
            self._roles = list(roles)
            self._emit({"event": "processes", "processes": roles})

    def result(self, claims: Sequence[Claim], *, ok: bool) -> None:
        """The end: every claim with its number."""
        self.act("claims")
        for claim in claims:
            self.line(claim.text, "✔ holds " if claim.holds else "✖ MISSED")
        kept = sum(claim.holds for claim in claims)
        self.line(f"{kept} of {len(claims)} claims hold", "✔" if ok else "✖")
        self._emit({"event": "result", "schema_version": RESULT_VERSION, "ok": ok, "claims": list(claims)})

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started_s), 60)
        return f"{minutes:02d}:{seconds:02d}"

    def _emit(self, document: object) -> None:
        if self._as_json:
            sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
            sys.stdout.flush()

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
