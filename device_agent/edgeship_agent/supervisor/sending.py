"""Windows on their way to the server: numbered, stored, sent in batches, sent again until they are acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from edgeship_agent.contract.messages import PROTOCOL_VERSION, Ack, Window, WindowBatch
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import encode
from edgeship_agent.telemetry.waiting import WaitingWindows

#: Windows in one message, and windows that are on their way without an answer.
_BATCH_WINDOWS: Final = 20
_INFLIGHT_WINDOWS: Final = 200


class Pace(Struct, frozen=True, kw_only=True):
    """How often something is done.

    Attributes:
        resend_s: windows that were not acknowledged in this time are sent again.
        flush_s: windows in memory are written to the disk once in this time; 0: each one before it is sent.
    """

    resend_s: float
    flush_s: float


class WindowSender:
    """Empties the outbox into the link. Used by one thread.

    Args:
        outbox: where windows wait.
        device_id: whose windows.
        boot_id: of this start of the agent.
        publish: hands a message to the link; False where it is down or takes no more for now.
        pace: when they are sent again, and how often they are written to the disk.
    """

    def __init__(
        self, outbox: WaitingWindows, device_id: str, boot_id: str, publish: Callable[[Topic, bytes], bool], pace: Pace
    ) -> None:
        self._outbox = outbox
        self._boot_id = boot_id
        self._publish = publish
        self._pace = pace
        self._device_id = device_id
        self._topic = Topic(device_id=device_id, kind=Kind.WINDOWS)
        self._sent: dict[str, int] = {}
        self._is_held_up = False
        self._progress_s = 0.0
        self._flush_due_s: float | None = None

    def add(self, window: Window, now_s: float) -> None:
        """Number a window, keep it, and send it."""
        seq = self._outbox.last_seq(self._boot_id) + 1
        self._outbox.add(structs.replace(window, boot_id=self._boot_id, seq=seq))
        if not self._pace.flush_s:
            self.keep(now_s)
        self.send(now_s)

    def acknowledged(self, ack: Ack, now_s: float) -> None:
        """The server's database holds every window up to this one."""
        if self._outbox.acknowledge(ack.boot_id, ack.seq):
            self._progress_s = now_s
        self.send(now_s)

    def start_over(self, now_s: float) -> None:
        """Send everything that waits once more: the link is new, or nothing was acknowledged for too long."""
        self._sent, self._progress_s = {}, now_s
        self.send(now_s)

    def tick(self, now_s: float) -> None:
        """Send again what was not acknowledged in time, or was not taken by the link."""
        if (self._sent or self._is_held_up) and now_s - self._progress_s >= self._pace.resend_s:
            self.start_over(now_s)

    def keep(self, now_s: float) -> None:
        """Write what waits in memory to the disk when it is time.

        Raises:
            EdgeshipError: the disk does not take it; it is tried again after the next interval.
        """
        if self._flush_due_s is None:
            self._flush_due_s = now_s + self._pace.flush_s
        if now_s >= self._flush_due_s or self._outbox.is_full:
            self._flush_due_s = now_s + self._pace.flush_s
            self._outbox.flush()

    def send(self, now_s: float) -> None:
        """Send what was not sent yet; windows of one start of the agent travel together, oldest start first."""
        self._is_held_up = True
        for boot_id in self._outbox.waiting_boots():
            pending = self._outbox.pending(_INFLIGHT_WINDOWS, boot_id=boot_id)
            fresh = [window for window in pending if window.seq > self._sent.get(boot_id, 0)]
            for start in range(0, len(fresh), _BATCH_WINDOWS):
                if not self._send_batch(boot_id, fresh[start : start + _BATCH_WINDOWS]):
                    return
                self._progress_s = now_s
        self._is_held_up = False
        if not self._outbox.counters().waiting:
            self._sent = {}

    def _send_batch(self, boot_id: str, windows: list[Window]) -> bool:
        batch = WindowBatch(
            protocol_version=PROTOCOL_VERSION,
            device_id=self._device_id,
            boot_id=boot_id,
            floor_seq=self._outbox.floor_seq(boot_id),
            windows=tuple(windows),
            outbox=self._outbox.counters(),
        )
        if not self._publish(self._topic, encode(Kind.WINDOWS, batch)):
            return False
        self._sent[boot_id] = windows[-1].seq
        return True
