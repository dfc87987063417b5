"""One worker process: started tied to this one, talked to over a socket pair that also tells of its death."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.serving.control import (
    ControlMessage,
    ControlReader,
    Counters,
    Drain,
    Drained,
    Failed,
    FromSupervisor,
    HandOn,
    Ready,
    Recall,
    Replay,
    Replayed,
    Split,
    Stop,
    WindowClosed,
    WorkerSettings,
    encode_control,
)
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.slots import Slot

_STOP_TIMEOUT_S: Final = 10.0
#: A worker that runs a long inference answers later; labels wait for it no longer than this.
_RECALL_TIMEOUT_S: Final = 2.0
_RECEIVE_BYTES: Final = 65536


class Listener(Protocol):
    """Who hears of a worker; called from its reading thread."""

    def worker_ready(self, worker: WorkerProcess) -> None:
        """It serves."""
        ...

    def window_closed(self, worker: WorkerProcess, window: Window) -> None:
        """A window, not numbered yet."""
        ...

    def worker_died(self, worker: WorkerProcess) -> None:
        """The process has ended."""
        ...


class WorkerProcess:
    """A worker and what it said about itself.

    Args:
        slot: what it serves.
        socket_path: where it listens for applications.
        boot_id: of this start of the agent.
        listener: hears of messages and of the end.
    """

    def __init__(self, slot: Slot, socket_path: Path, boot_id: str, listener: Listener) -> None:
        self.slot = slot
        self.socket_path = socket_path
        self.ready = threading.Event()  # set when it is ready, or when it will never be
        self.exited = threading.Event()
        self.replayed = threading.Event()
        self.drained = threading.Event()
        self.handed_on = threading.Event()
        self.replay: Replayed | None = None
        self.counters: Counters | None = None
        self.predictions: tuple[bytes, ...] = ()  # what it handed on when it was drained
        self.split: Split | None = None  # what it was told last
        self.is_ready = False
        self.is_retiring = False
        self.is_held = False  # it was started to let nobody in before it is told to
        self.failure = ""
        self._boot_id = boot_id
        self._listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._write_lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id; 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    @property
    def prediction_prefix(self) -> str:
        """How the ids of its predictions begin; see :class:`edgeship_agent.serving.session.ModelSession`."""
        return f"{self._boot_id}-{self.pid:x}-"

    @property
    def return_code(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self._process is None else self._process.returncode

    def start(self, launcher: Launcher, settings: WorkerSettings) -> None:
        """Start the process and the thread that reads what it says.

        Raises:
            OSError: the system has no room for one of them; nothing is left of the other.
        """
        ours, theirs = socket.socketpair()
        arguments = [
            *("--slot", str(self.slot.directory), "--arm", self.slot.info.arm, "--boot-id", self._boot_id),
            *("--socket", str(self.socket_path), "--control-fd", str(theirs.fileno())),
            *("--settings", msgspec.json.encode(settings).decode()),
        ]
        try:
            with theirs:
                process = launcher.start("edgeship_agent.serving.worker", arguments, pass_fds=(theirs.fileno(),))
        except OSError:
            ours.close()
            raise
        self._process, self._control = process, ours
        try:
            threading.Thread(target=self._read, name=f"worker {self.pid}", daemon=True).start()
        except RuntimeError as error:
            process.kill()
            process.wait()
            ours.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    def send(self, message: FromSupervisor) -> bool:
        """Send a message; False where the worker is gone."""
        if self._control is None:
            return False
        try:
            with self._write_lock:
                self._control.sendall(encode_control(message))
        except OSError:
            return False
        return True

    def drain(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Let it give its last answers: to what it accepted, and to nobody after that. Kill it where it does not."""
        self.is_retiring = True
        if self.drained.is_set() or self.exited.is_set():
            return
        if self.send(Drain()) and not self.drained.wait(timeout_s):
            self.kill()

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Let it answer what it accepted, send its last window and end; kill it where it does not."""
        self.drain(timeout_s)
        self.send(Stop())
        if not self.exited.wait(timeout_s):
            self.kill()
            self.exited.wait(timeout_s)

    def recall(self) -> HandOn:
        """What it remembers so far, for the worker that takes over; nothing where it does not answer."""
        self.handed_on.clear()
        if not self.exited.is_set() and self.send(Recall()):
            self.handed_on.wait(_RECALL_TIMEOUT_S)
        return HandOn(predictions=self.predictions)

    def run_golden(self, inferences: int, timeout_s: float) -> Replayed | None:
        """Run the golden inputs through the live engine, at least so many; None where it does not answer."""
        self.replay = None
        self.replayed.clear()
        if self.exited.is_set() or not self.send(Replay(inferences=inferences)):
            return None
        self.replayed.wait(timeout_s)
        return self.replay

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    def _read(self) -> None:
        assert self._control is not None and self._process is not None
        reader = ControlReader()
        try:
            while data := self._control.recv(_RECEIVE_BYTES):
                for message in reader.feed(data):
                    self._take(message)
        except (OSError, ContractError) as error:
            self.failure = self.failure or str(error)
        finally:
            self._end()

    def _take(self, message: ControlMessage) -> None:
        if isinstance(message, Counters):
            self.counters = message
        elif isinstance(message, WindowClosed):
            self._listener.window_closed(self, message.window)
        elif isinstance(message, Ready):
            self._listener.worker_ready(self)
            self.ready.set()
        elif isinstance(message, Replayed):
            self.replay = message
            self.replayed.set()
        elif isinstance(message, HandOn):
            self.predictions = message.predictions
            self.handed_on.set()
        elif isinstance(message, Drained):
            self.drained.set()
        elif isinstance(message, Failed):
            self.failure = f"{message.reason}: {message.detail}" if message.detail else message.reason

    def _end(self) -> None:
        assert self._control is not None and self._process is not None
        self._process.kill()  # a worker whose control channel is closed or garbled is of no use
        self._process.wait()
        self._control.close()
        self.socket_path.unlink(missing_ok=True)
        self.is_ready = False
        self.exited.set()
        self._listener.worker_died(self)
        for event in (self.ready, self.replayed, self.handed_on, self.drained):
            event.set()
