"""Reports of update attempts on their way to the server: idempotent, so they are simply said more than once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from edgeship_agent.contract.messages import UpdateReport
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import encode

#: How often a report is said again, with growing pauses; every birth carries the newest ones once more.
_REPEATS: Final = 5
_MAX_WAITING: Final = 64

_Key = tuple[str, int, str]


class _Waiting(Struct, frozen=True, kw_only=True):
    report: UpdateReport
    due_s: float
    said: int


class ReportSender:
    """Says reports until the server has had every chance to hear them. Used by one thread.

    Args:
        publish: hands a message to the link; False where it is down.
        pause_s: before the first repeat; doubles.
    """

    def __init__(self, publish: Callable[[Topic, bytes], bool], pause_s: float) -> None:
        self._publish = publish
        self._pause_s = pause_s
        self._waiting: dict[_Key, _Waiting] = {}

    def say(self, report: UpdateReport, now_s: float) -> None:
        """Publish a report; it replaces an older one of the same attempt among the repeats."""
        self._send(report)
        self._waiting.pop(_key(report), None)
        self._waiting[_key(report)] = _Waiting(report=report, due_s=now_s + self._pause_s, said=1)
        while len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def tick(self, now_s: float) -> None:
        """Say again what is due."""
        for key, waiting in list(self._waiting.items()):
            if now_s < waiting.due_s:
                continue
            if waiting.said >= _REPEATS:
                del self._waiting[key]
                continue
            self._send(waiting.report)
            due_s = now_s + self._pause_s * 2.0**waiting.said
            self._waiting[key] = structs.replace(waiting, due_s=due_s, said=waiting.said + 1)

    def _send(self, report: UpdateReport) -> None:
        self._publish(Topic(device_id=report.device_id, kind=Kind.REPORT), encode(Kind.REPORT, report))


def _key(report: UpdateReport) -> _Key:
    return (report.deployment, report.attempt, report.model)
