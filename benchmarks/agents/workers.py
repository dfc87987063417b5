"""Real worker processes, and two bare processes that exchange the same bytes: what any socket costs here."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeship_agent.serving.client import Client
from edgeship_agent.serving.looking import LONGEST_LOOK_US

READY_TIMEOUT_S = 60.0
_ANSWER_BYTES = 128
#: Numbers that two processes write for each other lie in lines of their own, and fit into a byte.
_LINE_BYTES = 64
_MOST_NUMBER = 250
#: Who was not asked for so long looks more seldom.
_IDLE_S = 0.02


@contextmanager
def worker(slot: Path, path: Path, spin_us: int = LONGEST_LOOK_US) -> Iterator[tuple[Client, int]]:
    """A worker on its socket: a client of it, and its process id; both look for so long before they sleep."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "edgeship_agent.serving.worker", "--slot", str(slot), "--arm", "main"]
    command += ["--boot-id", "bench", "--socket", str(path), "--control-fd", str(theirs.fileno())]
    command += ["--settings", json.dumps({"spin_us": spin_us})]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not path.exists():
            if time.monotonic() > deadline_s or process.poll() is not None:
                raise SystemExit("the worker did not become ready")
            time.sleep(0.02)
        try:
            with Client(path, timeout_s=30.0, spin_us=spin_us) as client:
                yield client, process.pid
        finally:
            ours.close()  # the worker ends with its supervisor


class Echo:
    """A process that reads frames of a fixed size from a blocking socket and sends a short answer to each."""

    def __init__(self, size_bytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._frame = bytearray(size_bytes)
        self._answer = bytearray(_ANSWER_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _answer_for_ever(theirs, size_bytes)
        theirs.close()

    def call(self) -> None:
        """One frame there, one answer back."""
        self._socket.sendall(self._frame)
        self._socket.recv_into(self._answer)

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        os.waitpid(self.pid, 0)


class SharedEcho:
    """Two processes, the same bytes in shared memory, both looking at a flag without sleeping: no way is shorter.

    The one writes a frame and a number, the other copies the frame as an engine would into its input, and writes the
    number back. No descriptors, no waking, no protocol: what is left is what two processors cost that hand each other
    memory, and what the system takes from them meanwhile.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes + 2 * _LINE_BYTES)
        self._frame = np.frombuffer(self._memory, np.uint8, size_bytes, 2 * _LINE_BYTES)
        self._source = np.ones(size_bytes, np.uint8)
        self._number = 0
        self.pid = os.fork()
        if self.pid == 0:
            self._answer_for_ever()

    def call(self) -> None:
        """One frame there, one number back."""
        self._number = self._number % _MOST_NUMBER + 1
        np.copyto(self._frame, self._source)
        self._memory[0] = self._number
        while self._memory[_LINE_BYTES] != self._number:
            os.sched_yield()

    def _answer_for_ever(self) -> None:
        place, seen, since_s = np.ones(self._frame.size, np.uint8), 0, time.monotonic()
        parent = os.getppid()
        while os.getppid() == parent:
            number = self._memory[0]
            if number == seen:
                os.sched_yield()
                if time.monotonic() - since_s > _IDLE_S:  # another way is measured, which wants both cores
                    time.sleep(_IDLE_S)
                continue
            np.copyto(place, self._frame)
            self._memory[_LINE_BYTES] = seen = number
            since_s = time.monotonic()
        os._exit(0)

    def close(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _answer_for_ever(endpoint: socket.socket, size_bytes: int) -> None:
    view = memoryview(bytearray(size_bytes))
    while True:
        filled = 0
        while filled < size_bytes:
            count = endpoint.recv_into(view[filled:])
            if not count:
                os._exit(0)
            filled += count
        endpoint.sendall(bytes(_ANSWER_BYTES))
