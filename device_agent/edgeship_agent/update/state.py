"""What a device remembers beside its journal: one small JSON map, replaced in one step, unknown fields kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field, structs

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.update.disk import DISK, Disk

STATE_VERSION: Final = 1
#: Bad pairs that are remembered; the oldest are forgotten first.
MAX_BAD_PAIRS: Final = 64
#: Session numbers that one write puts by: a link that comes and goes all day does not wear the flash memory.
SESSIONS_AT_ONCE: Final = 64


class BadPair(Struct, frozen=True, kw_only=True):
    """A bundle that failed on this device under the output contract that its application declared.

    Attributes:
        contract: the accepted hashes, joined by commas; empty for any.
        reason: why it failed, as a code.
    """

    digest: str
    contract: str
    reason: str


class DeviceState(Struct, frozen=True, kw_only=True):
    """The remembered facts.

    Attributes:
        session: no session number above this one was ever used; numbers are put by in blocks.
        goal_generation: generation of the newest goal that was taken.
        goal_payload_sha256: hash of that goal's payload: the same generation with another content is refused.
        goal_payload: hexadecimal bytes of that goal, to go on with after a restart without network.
        time_floor_s: the newest time that a key of this fleet has signed for.
        refused_goals: reason → how many goal states were refused for it.
        unclean_ends: how often the agent ended by a power cut or a kill.
    """

    schema_version: int = STATE_VERSION
    session: int = 0
    goal_generation: int = 0
    goal_payload_sha256: str = ""
    goal_payload: str = ""
    time_floor_s: float = 0.0
    bad_pairs: tuple[BadPair, ...] = ()
    refused_goals: dict[str, int] = field(default_factory=dict)
    unclean_ends: int = 0


class StateFile:
    """``state.json``; every change is on disk when the method returns. May be used from several threads.

    Args:
        path: the file.
        disk: how it is written.

    Raises:
        ContractError: it is damaged or was written by a newer format.
    """

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._lock = threading.Lock()
        self._raw: dict[str, Any] = {}
        self._state = DeviceState()
        self._session: int | None = None
        if path.exists():
            self._read()

    @property
    def now(self) -> DeviceState:
        """The facts as they are."""
        return self._state

    def change(self, **changes: Any) -> DeviceState:
        """Replace fields and write."""
        with self._lock:
            return self._write(structs.replace(self._state, **changes))

    def next_session(self) -> int:
        """A session number that was never used before; on a full disk, never in this life of the agent."""
        with self._lock:
            if self._session is None:
                self._session = self._state.session
            self._session += 1
            if self._session > self._state.session:
                following = structs.replace(self._state, session=self._session + SESSIONS_AT_ONCE - 1)
                try:
                    self._write(following)
                except OSError:
                    self._state = following  # the next change that the disk takes has it
            return self._session

    def remember_bad(self, pair: BadPair) -> None:
        """Remember that a pair failed."""
        with self._lock:
            others = [p for p in self._state.bad_pairs if (p.digest, p.contract) != (pair.digest, pair.contract)]
            self._write(structs.replace(self._state, bad_pairs=tuple([*others, pair][-MAX_BAD_PAIRS:])))

    def bad_reason(self, digest: str, contract: str) -> str | None:
        """Why a pair failed before, or None."""
        for pair in self._state.bad_pairs:
            if (pair.digest, pair.contract) == (digest, contract):
                return pair.reason
        return None

    def count_refusals(self, fresh: Mapping[str, int]) -> None:
        """Add to the counters of refused goal states."""
        with self._lock:
            counts = dict(self._state.refused_goals)
            for reason, number in fresh.items():
                counts[reason] = counts.get(reason, 0) + number
            self._write(structs.replace(self._state, refused_goals=counts))

    def raise_floor(self, at_s: float) -> None:
        """Take a time that a key of this fleet signed for; the floor never sinks."""
        with self._lock:
            if at_s > self._state.time_floor_s:
                self._write(structs.replace(self._state, time_floor_s=at_s))

    def _write(self, state: DeviceState) -> DeviceState:
        self._raw = {**self._raw, **msgspec.to_builtins(state)}
        self._disk.write_atomic(self._path, msgspec.json.format(msgspec.json.encode(self._raw), indent=1))
        self._state = state
        return state

    def _read(self) -> None:
        try:
            self._raw = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Any])
            self._state = msgspec.convert(self._raw, DeviceState)
        except msgspec.MsgspecError as error:
            raise ContractError(f"unreadable: {error}", file=self._path) from error
        if self._state.schema_version > STATE_VERSION:
            raise ContractError(
                "written by a newer agent", file=self._path, expected=STATE_VERSION, got=self._state.schema_version
            )
