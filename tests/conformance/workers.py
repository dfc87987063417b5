"""A supervisor's side for tests: starts a real worker process on a slot and talks to it over the socket pair."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from edgeship_agent.serving.control import ControlReader, encode_control


class RunningWorker:
    """A worker process with its control socket.

    ``wait_for`` returns the next message of a kind; all messages are kept in ``messages``.
    """

    def __init__(self, slot: Path, socket_path: Path, *, arm: str = "main", **settings) -> None:
        ours, theirs = socket.socketpair()
        self.control = ours
        self.socket_path = socket_path
        self.messages: list = []
        self._reader = ControlReader()
        self._seen = 0
        command = [sys.executable, "-W", "error", "-m", "edgeship_agent.serving.worker", "--slot", str(slot)]
        command += ["--arm", arm, "--boot-id", "boot", "--socket", str(socket_path)]
        command += ["--control-fd", str(theirs.fileno()), "--settings", json.dumps(settings)]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        theirs.close()

    def tell(self, message) -> None:
        self.control.sendall(encode_control(message))

    def wait_for(self, kind: type, timeout_s: float = 60.0):
        give_up_s = time.monotonic() + timeout_s
        while True:
            while self._seen < len(self.messages):
                message = self.messages[self._seen]
                self._seen += 1
                if isinstance(message, kind):
                    return message
            self.control.settimeout(max(0.01, give_up_s - time.monotonic()))
            data = self.control.recv(65536)
            if not data:
                raise EOFError(f"the worker ended; it said {self.messages}; {self.stderr()}")
            self.messages += self._reader.feed(data)

    def stderr(self) -> str:
        self.process.wait(30)
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self.process.stdout.close()
        self.process.stderr.close()
