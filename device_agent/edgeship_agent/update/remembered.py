"""What an agent remembers of update attempts: the newest line of the journal about each."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from edgeship_agent.update.attempt import Attempt, AttemptKey

#: Attempts that have ended and are remembered; older ones are forgotten, on the disk when the journal is compacted.
KEPT_ATTEMPTS: Final = 64
#: Of a line, before its record: eight digits and a space.
CRC_BYTES: Final = 9
_decoder: Final = msgspec.json.Decoder(Attempt)


def line_of(record: dict[str, Any]) -> bytes:
    r"""A record as it stands in the journal.

    >>> line_of({})
    b'a3a6bf43 {}\n'
    """
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def attempt_of(line: bytes) -> Attempt:
    """The attempt of a line that was found to be good before.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return _decoder.decode(line[CRC_BYTES:])


class Remembered:
    """Attempts in memory, as lines: a fifth of what the snapshots would take.

    Those that have ended lie in one piece, read again where somebody asks for them. Each by itself would stand in the
    middle of what an update took, and hold a page of it for as long as it is known.
    """

    def __init__(self) -> None:
        self._ended = b""
        self._under_way: dict[AttemptKey, bytes] = {}

    def put(self, lines: Iterable[bytes]) -> None:
        """Remember lines, the newest last, and forget what is too long ago."""
        known = self._by_key()
        for line in lines:
            key = attempt_of(line).key
            known.pop(key, None)
            known[key] = line
        ended: list[bytes] = []
        self._under_way = {}
        for key, line in known.items():
            if attempt_of(line).state.is_terminal:
                ended.append(line)
            else:
                self._under_way[key] = line
        self._ended = b"".join(ended[-KEPT_ATTEMPTS:])

    def lines(self) -> list[bytes]:
        """The newest line of every attempt: those that have ended in that order, then those under way."""
        return [*self._ended.splitlines(keepends=True), *self._under_way.values()]

    def under_way(self) -> tuple[Attempt, ...]:
        """The newest snapshots of the attempts that have not ended."""
        return tuple(map(attempt_of, self._under_way.values()))

    def _by_key(self) -> dict[AttemptKey, bytes]:
        return {attempt_of(line).key: line for line in self.lines()}
