"""The device's end of a measurement: standard library only, sent over SSH and run from memory.

It makes one private folder, does what it is told by JSON lines on stdin, answers by JSON lines on stdout, and removes
the folder and every process that it started when stdin ends: when the other side is done, is interrupted, or dies.
Written for old Pythons (3.7), so that one of them can say that it is too old.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

#: Without a word from the other side for so long, in seconds, it is taken for gone.
IDLE_S = 6 * 3600.0
_CHUNK = 1 << 20
_TAIL_LINES = 30
_ENDINGS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class Session:
    """One folder and at most one running child."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).resolve()
        (self.folder / "tmp").mkdir()
        self._child: subprocess.Popen[bytes] | None = None

    def put(self, command: dict[str, Any]) -> dict[str, Any]:
        """Write a file from the bytes that follow the command; they are read to their end whatever happens."""
        left = int(command["bytes"])
        failed: OSError | None = None
        path = Path(os.devnull)
        try:
            path = self._path(command["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            path, failed = Path(os.devnull), error
        with path.open("wb") as file:
            while left:
                chunk = sys.stdin.buffer.read(min(left, _CHUNK))
                if not chunk:
                    raise EOFError
                left -= len(chunk)
                try:
                    file.write(chunk)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed
        return {}

    def get(self, command: dict[str, Any]) -> None:
        """Send a file: its size first, then its bytes."""
        path = self._path(command["path"])
        with path.open("rb") as file:
            tell({"ok": True, "bytes": path.stat().st_size})
            shutil.copyfileobj(file, sys.stdout.buffer, _CHUNK)
        sys.stdout.buffer.flush()

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run a child to its end, its lines passed on; it ends early when the other side goes away."""
        variables = {name: self._filled(value) for name, value in command["environment"].items()}
        child = self._child = subprocess.Popen(
            [self._filled(part) for part in command["arguments"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=str(self.folder), env={**os.environ, **variables}, start_new_session=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        over = threading.Event()
        tail: list[str] = []
        watch = threading.Thread(target=self._watch, args=(over, float(command["timeout_s"])), daemon=True)
        listen = threading.Thread(target=_collect, args=(child.stderr, tail), daemon=True)
        watch.start()
        listen.start()
        for line in child.stdout:
            tell({"line": line.decode("utf-8", "replace").rstrip()})
        code = child.wait()
        over.set()
        watch.join()
        listen.join(5.0)
        self.end()
        return {"code": code, "stderr": tail}

    def end(self) -> None:
        """End the child and everything that it started."""
        if self._child is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child = None

    def _watch(self, over: threading.Event, timeout_s: float) -> None:
        """End the child when stdin says anything while it runs (it can only say that it ended), or when it is late."""
        waited_s = 0.0
        while not over.is_set():
            ready = select.select([0], [], [], 0.1)[0]
            waited_s += 0.1
            if ready or waited_s > timeout_s:
                self.end()
                return

    def _path(self, name: str) -> Path:
        """A path inside the folder; anything else is refused."""
        path = (self.folder / name).resolve()
        if self.folder not in path.parents:
            raise PermissionError("outside the folder: " + name)
        return path

    def _filled(self, text: str) -> str:
        return text.replace("{folder}", str(self.folder))


def _collect(stream: IO[bytes], tail: list[str]) -> None:
    """Keep the last lines of a stream."""
    for line in stream:
        tail.append(line.decode("utf-8", "replace").rstrip())
        del tail[:-_TAIL_LINES]


def tell(message: dict[str, Any]) -> None:
    """One JSON line to the other side."""
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def obey(session: Session) -> None:
    """Commands until stdin ends."""
    commands = {"put": session.put, "get": session.get, "run": session.run}
    while select.select([0], [], [], IDLE_S)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        command = json.loads(line.decode())
        try:
            answer = commands[command["command"]](command)
        except OSError as error:
            tell({"ok": False, "error": str(error)})
            continue
        if answer is not None:
            tell({**answer, "ok": True})


def main() -> None:
    """Greet, obey, clean up."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit(1)

    for number in _ENDINGS:
        signal.signal(number, leave)
    session = Session(tempfile.mkdtemp(prefix="edgeship-"))
    try:
        version = list(sys.version_info[:3])
        tell(
            {
                "ok": True,
                "python": version,
                "executable": sys.executable,
                "machine": os.uname().machine,
                "folder": str(session.folder),
            }
        )
        obey(session)
    except (EOFError, BrokenPipeError):
        pass  # the other side is gone
    finally:
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        session.end()
        shutil.rmtree(str(session.folder), ignore_errors=True)


if __name__ == "__main__":
    main()
