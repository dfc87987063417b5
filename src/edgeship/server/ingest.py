"""From the broker into the database: batches of messages, one transaction each, acknowledged after the commit."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from edgeship.server import admission, goals, presence, rollouts
from edgeship.server.context import ServerContext
from edgeship.server.link import BrokerLink, Connected, Incoming
from edgeship.server.store import books, devices, windows
from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Ack, Birth, Death, Heartbeat, UpdateReport, WindowBatch
from edgeship_agent.contract.profiling import ProfileReport
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, encode

#: Most messages of one transaction.
_BATCH: Final = 200
_IDLE_S: Final = 0.2
_RETRY_PAUSE_S: Final = 1.0
#: One event per device and so many seconds about malformed messages or windows, however many there are.
_EVENT_PAUSE_S: Final = 60.0
_log = logging.getLogger("edgeship.server.ingest")

#: device id, model, version
ModelKey = tuple[str, str, str]


class Ingest:
    """Reads the link's queue from a thread of its own.

    Args:
        context: the server's parts.
        link: where messages come from and receipts go to.
        on_windows: told (after the commit) which device, model and version have new windows.
    """

    def __init__(self, context: ServerContext, link: BrokerLink, on_windows: Callable[[ModelKey], None]) -> None:
        self._context = context
        self._link = link
        self._on_windows = on_windows
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._last_event_s: dict[str, float] = {}
        self.listening_since_s = context.clock()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand and end the thread."""
        self._stopping.set()
        self._thread.join(10.0)

    def process(self, messages: Sequence[Incoming | Connected]) -> None:
        """Store messages in one transaction, then give the broker its receipts."""
        with self._context.write() as connection:
            for message in messages:
                self._take(connection, message)
        self._give_receipts(messages)

    def _run(self) -> None:
        while not self._stopping.is_set():
            messages = self._next_batch()
            if not messages:
                continue
            try:
                self.process(messages)
            except Exception:  # noqa: BLE001 - the thread's outermost loop: one bad batch must not end the ingest
                _log.exception("batch of %d messages not stored: trying one by one", len(messages))
                self._process_one_by_one(messages)

    def _process_one_by_one(self, messages: Sequence[Incoming | Connected]) -> None:
        """Find the message that spoils a batch; devices send again what was not acknowledged."""
        failed: list[Incoming | Connected] = []
        for message in messages:
            try:
                self.process([message])
            except Exception:  # noqa: BLE001 - see _run
                _log.exception("message not stored: %s", getattr(message, "topic", "connected"))
                failed.append(message)
        if failed:
            self._stopping.wait(_RETRY_PAUSE_S)  # a full disk is not mended by hurry
            self._give_receipts(failed)
            for message in failed:
                if isinstance(message, Connected):  # goals were not published: once more
                    with contextlib.suppress(queue.Full):
                        self._link.inbox.put_nowait(message)

    def _give_receipts(self, messages: Sequence[Incoming | Connected]) -> None:
        for message in messages:
            if isinstance(message, Incoming):
                self._link.receipt(message)

    def _next_batch(self) -> list[Incoming | Connected]:
        inbox = self._link.inbox
        messages: list[Incoming | Connected] = []
        try:
            messages.append(inbox.get(timeout=_IDLE_S))
            while len(messages) < _BATCH:
                messages.append(inbox.get_nowait())
        except queue.Empty:
            pass
        return messages

    def _take(self, connection: Connection, message: Incoming | Connected) -> None:
        if isinstance(message, Connected):
            self.listening_since_s = self._context.clock()
            goals.republish_all(self._context, connection)
            return
        try:
            topic = Topic.parse(message.topic)
            decoded = decode(topic.kind, message.payload)
            admission.admit(topic.device_id, decoded)
        except ContractError as error:
            self._refuse(connection, message, error)
            return
        try:
            with self._context.store.savepoint(connection):
                self._dispatch(connection, topic.device_id, decoded, message.retained)
        except EdgeshipError as error:  # readable, but it does not fit what the database knows
            self._refuse(connection, message, error)

    def _dispatch(self, connection: Connection, device_id: str, message: Any, retained: bool) -> None:
        match message:
            case WindowBatch():
                self._store_windows(connection, message)
            case Heartbeat():
                if presence.on_heartbeat(self._context, connection, message):
                    rollouts.on_running(self._context, connection, device_id, message.running)
                else:
                    books.count(connection, "unknown_device")
            case UpdateReport():
                presence.on_message(self._context, connection, device_id)
                rollouts.on_report(self._context, connection, device_id, message)
            case ProfileReport():
                self._context.profile_jobs.take(connection, message)
            case Birth():
                if presence.on_birth(self._context, connection, message, retained=retained):
                    goals.on_birth(self._context, connection, message)
                else:
                    books.count(connection, "stale_births")
            case Death():
                if not presence.on_death(self._context, connection, message):
                    books.count(connection, "stale_wills")

    def _store_windows(self, connection: Connection, batch: WindowBatch) -> None:
        now_s = self._context.clock()
        refused = admission.refused_windows(batch)
        stored = windows.store_batch(connection, batch, now_s, refused.keys())
        if stored.refused:
            self._refuse_windows(connection, batch, {seq: refused[seq] for seq in stored.refused})
        presence.on_message(self._context, connection, batch.device_id)
        devices.save_outbox(connection, batch.device_id, batch.outbox, now_s)
        ack = Ack(protocol_version=PROTOCOL_VERSION, boot_id=batch.boot_id, seq=stored.acknowledged_seq)
        topic = Topic(device_id=batch.device_id, kind=Kind.ACK)
        self._context.publish(topic, encode(Kind.ACK, ack), False)
        for key in {(batch.device_id, window.model, window.version) for window in stored.windows}:
            self._context.store.after_commit(lambda key=key: self._on_windows(key))  # type: ignore[misc]

    def _refuse(self, connection: Connection, message: Incoming, error: EdgeshipError) -> None:
        books.count(connection, "malformed")
        source = message.topic[:200]
        if self._is_worth_an_event(source):
            sentence = f"message on {source} refused: {error}"[:1000]
            data = {"topic": source, "size_bytes": len(message.payload)}
            self._context.record(connection, "message_refused", "server", sentence, data)

    def _refuse_windows(self, connection: Connection, batch: WindowBatch, refused: dict[int, ContractError]) -> None:
        """Count windows that can never be stored: the device is told to send them no more."""
        books.count(connection, "refused_windows", len(refused))
        subject = f"device/{batch.device_id}"
        if self._is_worth_an_event(subject):
            first, error = next(iter(refused.items()))
            sentence = f"{batch.device_id}: {len(refused)} window(s) refused for good, the first for: {error}"[:1000]
            data = {"boot_id": batch.boot_id, "seq": first, "count": len(refused)}
            self._context.record(connection, "windows_refused", subject, sentence, data)

    def _is_worth_an_event(self, source: str) -> bool:
        """Whether nothing was said about this source for a while; then it is from now on."""
        now_s = self._context.clock()
        if now_s - self._last_event_s.get(source, -_EVENT_PAUSE_S) < _EVENT_PAUSE_S:
            return False
        if len(self._last_event_s) > 10_000:
            self._last_event_s.clear()
        self._last_event_s[source] = now_s
        return True
