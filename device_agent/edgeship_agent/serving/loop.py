"""The worker's loop: sockets that are ready, calls that are due. One thread, one poll for each turn.

An event loop of the standard library would bring its transports, its tasks and TLS into every worker: megabytes of
memory and some ten microseconds of every answer, for nothing that a worker needs.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, TypeVar

from edgeship_agent.serving.looking import Look, usable_cores

Call = Callable[[], None]
Result = TypeVar("Result")
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Loop:
    """Calls back when sockets are ready or time has come; everything on the thread that called :meth:`run`.

    Args:
        spin_us: how long the loop looks at its sockets again and again, after one of them was ready, before it sleeps
            until the next is, in µs, where the last times say that one will be ready so soon. Who asks next then need
            not wait until the system has woken this process; what it costs is a core for as long.
        spare: called between two looks, for work that can wait but has to be done: a little of it at a time. Returns
            whether there was any.
    """

    def __init__(self, spin_us: float = 0.0, spare: Callable[[], bool] | None = None) -> None:
        self._look = Look(spin_us, usable_cores())
        self._spare = spare
        self._waiting_since_ns = self._waited_ns = 0
        self._poll = select.epoll()
        self._readers: dict[int, Call] = {}
        self._writers: dict[int, Call] = {}
        self._soon: deque[Call] = deque()
        self._later: list[tuple[float, int, Call]] = []
        self._order = count()
        self._is_running = False

    @property
    def is_pressed(self) -> bool:
        """Whether sockets are ready one right after the other, so that whatever is done delays the next."""
        return self._look.look_ns > 0

    def add_reader(self, endpoint: socket.socket, call: Call) -> None:
        """Call whenever there is something to read, until :meth:`remove_reader`."""
        fd = endpoint.fileno()
        known = self._mask(fd)
        self._readers[fd] = call
        self._watch(fd, known)

    def add_writer(self, endpoint: socket.socket, call: Call) -> None:
        """Call whenever there is room to write, until :meth:`remove_writer`."""
        fd = endpoint.fileno()
        known = self._mask(fd)
        self._writers[fd] = call
        self._watch(fd, known)

    def remove_reader(self, endpoint: socket.socket) -> None:
        """Look no longer; to be called before the socket is closed."""
        fd = endpoint.fileno()
        known = self._mask(fd)
        if self._readers.pop(fd, None) is not None:
            self._watch(fd, known)

    def remove_writer(self, endpoint: socket.socket) -> None:
        """Look no longer; to be called before the socket is closed."""
        fd = endpoint.fileno()
        known = self._mask(fd)
        if self._writers.pop(fd, None) is not None:
            self._watch(fd, known)

    def call_soon(self, call: Call) -> None:
        """Call once, after the sockets that are ready now had their turn."""
        self._soon.append(call)

    def call_later(self, delay_s: float, call: Call) -> None:
        """Call once, not before so many seconds have passed."""
        heapq.heappush(self._later, (time.monotonic() + delay_s, next(self._order), call))

    def every(self, period_s: float, call: Call) -> None:
        """Call again and again, with so many seconds between two calls, for as long as the loop runs."""

        def again() -> None:
            call()
            self.call_later(period_s, again)

        self.call_later(period_s, again)

    def step_through(self, steps: Iterator[None]) -> None:
        """Take one step of an iterator at a time, and look at the sockets between two of them."""

        def one() -> None:
            for _ in steps:
                self.call_soon(one)
                return

        self.call_soon(one)

    def run(self) -> None:
        """Until :meth:`stop` is called."""
        self._is_running = True
        while self._is_running:
            self._turn()

    def stop(self) -> None:
        """Leave :meth:`run` at the end of this turn."""
        self._is_running = False

    def close(self) -> None:
        """Let the system's part go."""
        self._poll.close()

    def _turn(self) -> None:
        for fd, events in self._ready():
            try:
                if events & _READABLE and (reader := self._readers.get(fd)) is not None:
                    reader()
            except Exception:  # noqa: BLE001 (as in _guarded, without a call more for every request)
                _show()
            if events & _WRITABLE and (writer := self._writers.get(fd)) is not None:
                _guarded(writer)
        while self._later and self._later[0][0] <= time.monotonic():
            self._soon.append(heapq.heappop(self._later)[2])
        for _ in range(len(self._soon)):  # those that these calls add come in the next turn
            _guarded(self._soon.popleft())

    def _ready(self) -> list[tuple[int, int]]:
        patience_s = self._patience_s()
        if not self._look.longest_ns:
            return self._poll.poll(patience_s)
        if self._waited_ns:  # thought about now, when nobody waits for it
            self._look.on_wait(self._waited_ns)
            self._waited_ns = 0
        if not patience_s:
            ready = self._poll.poll(0)
            self._waiting_since_ns = 0
            return ready
        if not self._waiting_since_ns:
            self._waiting_since_ns = time.perf_counter_ns()
        ready = self._looked_for(patience_s) if self._look.look_ns else []
        ready = ready or self._poll.poll(self._patience_s())
        if ready:  # a timer does not end the wait
            self._waited_ns = time.perf_counter_ns() - self._waiting_since_ns
            self._waiting_since_ns = 0
        return ready

    def _looked_for(self, patience_s: float) -> list[tuple[int, int]]:
        """What is ready before the look ends, or a call is due."""
        now_ns, end_ns = time.perf_counter_ns(), self._waiting_since_ns + self._look.look_ns
        if patience_s > 0.0:
            end_ns = min(end_ns, now_ns + round(patience_s * 1e9))
        look, spare = self._look, self._spare
        while now_ns < end_ns:
            if ready := self._poll.poll(0):
                return ready
            began_ns = now_ns
            if spare is not None and look.leaves_time(now_ns - self._waiting_since_ns) and _guarded(spare):
                now_ns = time.perf_counter_ns()
                look.on_work(now_ns - began_ns)
            else:
                os.sched_yield()  # whoever asks next may be waiting for this very core
                now_ns = time.perf_counter_ns()
        return []

    def _patience_s(self) -> float:
        if self._soon or not self._is_running:
            return 0.0
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else -1.0

    def _mask(self, fd: int) -> int:
        return (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)

    def _watch(self, fd: int, known: int) -> None:
        wanted = self._mask(fd)
        if not known:
            self._poll.register(fd, wanted)
        elif not wanted:
            self._poll.unregister(fd)
        elif wanted != known:
            self._poll.modify(fd, wanted)


def _guarded(call: Callable[[], Result]) -> Result | None:
    """One call that fails ends neither the loop nor the others."""
    try:
        return call()
    except Exception:  # noqa: BLE001 (the process's outermost loop)
        _show()
        return None


def _show() -> None:
    import traceback

    traceback.print_exc()
