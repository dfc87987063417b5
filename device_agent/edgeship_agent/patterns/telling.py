"""The delays of a stream, told to this device's agent, whose telemetry windows they travel in."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.patterns.stream import Delays
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.slot import SlotFile

_EVERY_S: Final = 5.0
#: The agent may be away; the stream does not wait for it.
_TIMEOUT_S: Final = 2.0


class DelayTeller:
    """Tells the agent from a thread of its own, so that no answer waits for it.

    What the agent does not take while it is away is told the next time; what is left at the end is counted as untold.
    So are the delays of a release that the agent does not serve (any more): its windows are another release's.

    Args:
        delays: of the stream.
        slot: whose model the stream runs.
        path: the agent's socket.
        every_s: between two times.
    """

    def __init__(self, delays: Delays, slot: SlotFile, path: Path, every_s: float = _EVERY_S) -> None:
        self._delays, self._slot, self._every_s = delays, slot, every_s
        self._client = Client(path, _TIMEOUT_S, spin_us=0.0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="delays", daemon=True)
        #: Delays that the agent counted.
        self.told = 0

    def start(self) -> DelayTeller:
        """Begin."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Tell what is left, and end."""
        self._end.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        counts = self._delays.take_untold()
        if not counts:
            return
        try:
            is_counted = self._client.stream_delays(self._slot.model, self._slot.digest, counts)
        except EdgeshipError:
            self._delays.put_back(counts)
            return
        self.told += sum(counts.values()) if is_counted else 0
