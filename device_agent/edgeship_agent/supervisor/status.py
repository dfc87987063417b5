"""``run/status.json``: what the running agent says of itself, for ``edgeship-agent status`` and ``doctor``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import OutboxCounters, RunningArm
from edgeship_agent.update.attempt import Attempt


class StatusFile:
    """Writes the status file.

    Args:
        path: the file.
        fixed: what does not change while the agent runs: device id, target, socket, ...
        clock: wall clock, seconds since 1970.
    """

    def __init__(self, path: Path, fixed: dict[str, Any], clock: Callable[[], float]) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.new")
        self._fixed = fixed
        self._clock = clock

    def write(
        self,
        *,
        running: tuple[RunningArm, ...],
        attempts: Iterable[Attempt],
        outbox: OutboxCounters,
        **changing: object,
    ) -> None:
        """Replace the file in one step; it is no record, so it is not forced to the disk."""
        document = {
            "schema_version": 1,
            "pid": os.getpid(),
            "written_at_s": self._clock(),
            **self._fixed,
            "running": [structs.asdict(arm) for arm in running],
            "attempts": [_summary(attempt) for attempt in attempts],
            "outbox": structs.asdict(outbox),
            **changing,
        }
        self._draft.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2))
        self._draft.replace(self._path)


def read_status(path: Path) -> dict[str, Any] | None:
    """The status file's document, or None where there is none.

    Raises:
        ContractError: it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ContractError(f"unreadable: {error}", file=path) from error


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _summary(attempt: Attempt) -> dict[str, Any]:
    return {
        "deployment": attempt.deployment,
        "attempt": attempt.attempt,
        "model": attempt.model,
        "arm": attempt.arm,
        "release": attempt.release,
        "version": attempt.version,
        "digest": attempt.digest,
        "state": attempt.state.value,
        "reason": attempt.reason,
        "detail": attempt.detail,
        "at_s": attempt.at_s,
        "figures": attempt.figures,
        "without_field_traffic": attempt.without_field_traffic,
    }
