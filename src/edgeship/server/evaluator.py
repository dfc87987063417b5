"""The loop that looks at the fleet again and again: silence, drift, rollouts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from edgeship.server import goals, presence, rollouts
from edgeship.server.context import ServerContext
from edgeship.server.ingest import Ingest
from edgeship.server.link import BrokerLink
from edgeship.server.monitor import Monitor

#: How often goals and update metadata are looked at for their age.
_KEEP_FRESH_S: Final = 5.0
_log = logging.getLogger("edgeship.server.evaluator")


class Evaluator:
    """One thread, one step every ``tick_s``.

    Args:
        context: the server's parts.
        link: silence means nothing while it is down.
        ingest: knows since when devices could be heard.
        monitor: judges drift.
    """

    def __init__(self, context: ServerContext, link: BrokerLink, ingest: Ingest, monitor: Monitor) -> None:
        self._context = context
        self._link = link
        self._ingest = ingest
        self._monitor = monitor
        self._fresh_at_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evaluator", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step at hand and end the thread."""
        self._stopping.set()
        self._thread.join(10.0)

    def tick(self) -> None:
        """One step: each part in a transaction of its own, so that one that fails does not stop the others."""
        for part in (self._sweep, self._monitor.step, self._advance_rollouts, self._keep_fresh):
            self._guarded(part)

    def _run(self) -> None:
        while not self._stopping.wait(self._context.config.tick_s):
            self.tick()

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception:  # noqa: BLE001 - the thread's outermost loop: tomorrow's step must come whatever happens in this one
            _log.exception("evaluation step failed")

    def _sweep(self) -> None:
        if self._link.is_connected:
            with self._context.write() as connection:
                presence.sweep(self._context, connection, self._ingest.listening_since_s)

    def _advance_rollouts(self) -> None:
        with self._context.write() as connection:
            rollouts.tick(self._context, connection, self._context.clock())

    def _keep_fresh(self) -> None:
        now_s = self._context.clock()
        if abs(now_s - self._fresh_at_s) >= _KEEP_FRESH_S:
            self._fresh_at_s = now_s
            goals.keep_fresh(self._context, now_s)
