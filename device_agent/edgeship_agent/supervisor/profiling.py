"""Where orders of profile jobs come in; what works them off is loaded with the first one: most devices get none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.profiling import ProfileReport
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import encode
from edgeship_agent.serving.control import Counters
from edgeship_agent.supervisor.log import Log
from edgeship_agent.supervisor.membership import tls_of
from edgeship_agent.update.download import BlobStore, Downloader, Limits
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import reference_time

if TYPE_CHECKING:
    from edgeship_agent.profiling.runner import Profiler
    from edgeship_agent.profiling.strain import Strain


class ProfileDoor:
    """Hands orders to the profiler, which it opens with the first.

    Args:
        config: of the agent; downloads keep to its mirror and its limit of bytes per second.
        folder: for the files of a job; what a crash or a power cut left there is removed.
        state: knows times that were signed to be past.
        public_key: of this fleet's goal states and orders.
        publish: of the link.
        log: of the agent.
    """

    def __init__(
        self,
        config: AgentConfig,
        folder: Path,
        state: StateFile,
        public_key: bytes,
        publish: Callable[[Topic, bytes], bool],
        log: Log,
    ) -> None:
        self._config = config
        self._folder = folder
        self._state = state
        self._public_key = public_key
        self._publish = publish
        self._log = log
        self._profiler: Profiler | None = None
        shutil.rmtree(folder, ignore_errors=True)

    def receive(self, payload: bytes) -> None:
        """An order came."""
        if self._profiler is None:
            self._profiler = self._open()
        self._profiler.receive(payload)

    def stop(self) -> None:
        """End the job at hand."""
        if self._profiler is not None:
            self._profiler.stop()

    def watch(self, counters: Callable[[], Iterable[Counters]]) -> None:
        """Called again and again: a job that applications suffer from is ended.

        Args:
            counters: of the workers that serve; asked only while there is a profiler.
        """
        if self._profiler is not None:
            self._profiler.watch(lambda: strain_of(counters()))

    def _open(self) -> Profiler:
        from edgeship_agent.profiling.desk import OrderDesk
        from edgeship_agent.profiling.runner import Profiler

        desk = OrderDesk(self._config.device_id, self._public_key, self._now_s)
        launcher = Launcher(self._config.launcher)
        return Profiler(desk, self._folder, self._open_fetch, launcher, self._say, self._log)

    def _open_fetch(self, store: BlobStore) -> Downloader:
        update = self._config.update
        limits = Limits(max_bytes_per_s=update.max_bytes_per_s)
        url = update.mirror or self._config.server_url
        return Downloader(url, store, time.monotonic, limits, tls=tls_of(self._config, self._state))

    def _say(self, report: ProfileReport) -> bool:
        return self._publish(Topic(device_id=report.device_id, kind=Kind.PROFILE), encode(Kind.PROFILE, report))

    def _now_s(self) -> float:
        return reference_time(time.time(), self._state.now.time_floor_s)


def strain_of(counters: Iterable[Counters]) -> Strain:
    """What all workers together counted."""
    from edgeship_agent.profiling.strain import Strain

    found = list(counters)
    return Strain(
        calls=sum(each.inferences + each.failures + each.shed for each in found),
        late=sum(each.deadline_misses for each in found),
        shed=sum(each.shed for each in found),
    )
