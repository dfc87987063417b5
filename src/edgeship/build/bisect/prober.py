"""Every probe in a process of its own, which may die of it: ``python -m edgeship.build.bisect.prober`` is their parent.

The parent loads the libraries once and forks for each question; it runs no model itself, so a child inherits neither
threads nor the state of a former probe. One JSON object a line on stdin, one a line on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from edgeship_agent.contract.errors import EngineError

TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.005
#: Process of the probe that is running; 0 for none.
_RUNNING: Final = {"identity": 0}
#: Threads of numeric libraries would not survive a fork.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Prober:
    """Asks the parent of all probes, starting it where it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, task: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """The :class:`edgeship.build.bisect.child.Answer` to a task.

        Args:
            task: a :class:`edgeship.build.bisect.child.Task`.
            timeout_s: how long it may take, in seconds.

        Raises:
            EngineError: the parent itself ended.
        """
        from edgeship.build.bisect.child import Answer

        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            asked = {"task": msgspec.to_builtins(task), "timeout_s": timeout_s}
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise EngineError("the process that runs probes ended", next_step="run the command again")
        return msgspec.json.decode(line, type=Answer)

    def close(self) -> None:
        """End the parent, and a probe that is still running with it."""
        if self._process is not None:
            with self._process as process:
                process.terminate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "edgeship.build.bisect.prober"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                             stderr=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD})  # fmt: skip
        return self._process


def main() -> None:
    """Serve until stdin ends; libraries print to what they take for stdout, so answers go to a copy of it."""
    from edgeship.build.bisect import child

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to answer: it ends this process
    signal.signal(signal.SIGTERM, _end)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            answer = _in_a_child(msgspec.convert(asked["task"], child.Task), float(asked["timeout_s"]))
            answers.write(msgspec.json.encode(answer).decode() + "\n")
            answers.flush()


def _end(_number: int, _frame: FrameType | None) -> None:
    """End the running probe with all that it started, then this process."""
    if running := _RUNNING["identity"]:
        for kill in (os.killpg, os.kill):  # it may not lead a group yet
            with contextlib.suppress(ProcessLookupError):
                kill(running, signal.SIGKILL)
    os._exit(0)


def _in_a_child(task: Any, timeout_s: float) -> Any:
    from edgeship.build.bisect import child

    note = Path(task.outputs).with_suffix(".json")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it is known whom to end
    identity = os.fork()
    if identity == 0:
        code = 1
        try:
            os.setsid()  # so that what it starts ends with it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            note.write_bytes(msgspec.json.encode(child.do(task)))
            code = 0
        finally:
            os._exit(code)
    _RUNNING["identity"] = identity
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    status, late = _wait(identity, timeout_s)
    _RUNNING["identity"] = 0
    if os.WIFSIGNALED(status):
        return child.Answer(killed=os.WTERMSIG(status), late=late)
    if os.WEXITSTATUS(status) or not note.is_file():
        reason = f"the process ended with exit code {os.WEXITSTATUS(status)}"
        return child.Answer(refused=reason, stage="conversion" if task.kind == "convert" else "load")
    return msgspec.json.decode(note.read_bytes(), type=child.Answer)


def _wait(identity: int, timeout_s: float) -> tuple[int, bool]:
    """Exit status of a child, and whether it had to be ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(identity, os.WNOHANG)
        if done:
            return status, False
        time.sleep(_POLL_S)
    os.killpg(identity, signal.SIGKILL)
    return os.waitpid(identity, 0)[1], True


if __name__ == "__main__":
    main()
