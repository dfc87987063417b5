"""One SSH connection to a device, and the session at its other end.

The only program that is started here is ``ssh``. Its user's configuration, keys and known hosts hold; nothing is asked
for on the terminal. When the connection ends, for whatever reason, the session removes everything that it was sent.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

from edgeship.build.devices.address import Address
from edgeship_agent.contract.errors import TransferError

_OPTIONS: Final = (
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
)
#: Reads the session's source from stdin: a line with its size, then its bytes. No quote of either kind inside.
_BOOT: Final = 'python3 -I -c "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"'
#: How long a device may take for a file or a greeting, and how long to remove everything, in seconds.
ANSWER_S: Final = 300.0
GOODBYE_S: Final = 20.0
_LINES_KEPT: Final = 5
#: ssh ends with it where the connection itself failed. Source: ssh(1), "EXIT STATUS".
_NO_CONNECTION: Final = 255
_NOT_FOUND: Final = 127
T = TypeVar("T")


class Link:
    """A connection that is open from construction to :meth:`close`.

    Args:
        address: the device.
        launcher: the beginning of every command line that is started, ``ssh`` and options of its own.

    Raises:
        TransferError: no connection, or no Python 3 there.
    """

    def __init__(self, address: Address, launcher: Sequence[str] = ("ssh",)) -> None:
        self._address = address
        port = (f"-p{address.port}",) if address.port else ()
        command = [*launcher, *_OPTIONS, *port, "-l", address.user, "--", address.host, _BOOT]
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        try:
            # a session of its own: Ctrl-C reaches this process alone, which then lets the device clean up
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=self._said, start_new_session=True)  # fmt: skip
        except OSError as error:
            self._said.close()
            raise TransferError(f"{launcher[0]} cannot be started: {error.strerror}", retryable=False,
                                file=address.text, next_step="install the OpenSSH client") from error  # fmt: skip
        try:
            source = resources.files("edgeship.build.devices").joinpath("session.py").read_bytes()
            self._send(b"%d\n" % len(source) + source)
            #: What the session said first: ``python`` (version), ``executable``, ``folder``.
            self.greeting: Mapping[str, Any] = self._answer(ANSWER_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """The link itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def put(self, path: str, data: bytes) -> None:
        """Write a file below the session's folder.

        Raises:
            TransferError: the device could not, or the connection broke.
        """
        self._command({"command": "put", "path": path, "bytes": len(data)}, data)

    def get(self, path: str) -> bytes:
        """Read a file below the session's folder.

        Raises:
            TransferError: it is not there, or the connection broke.
        """
        size = int(self._command({"command": "get", "path": path})["bytes"])
        stdout = self._process.stdout
        assert stdout is not None
        data = self._timed(lambda: stdout.read(size), ANSWER_S)
        if len(data) != size:
            raise self._broken()
        return data

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        timeout_s: float,
        on_line: Callable[[str], None] = lambda _line: None,
    ) -> tuple[int, list[str]]:
        """Run a program there to its end; ``{folder}`` in an argument is the session's folder.

        Args:
            arguments: of the program, no shell in between.
            environment: variables besides the account's own.
            timeout_s: how long it may take, in seconds.
            on_line: told every line of its stdout.

        Returns:
            Its exit code, negative for a signal, and the last lines of its stderr.

        Raises:
            TransferError: the connection broke.
        """
        command = {"command": "run", "arguments": list(arguments), "environment": dict(environment),
                   "timeout_s": timeout_s}  # fmt: skip
        self._send(json.dumps(command).encode() + b"\n")
        answer = self._answer(timeout_s + ANSWER_S, on_line)
        return int(answer["code"]), [str(line) for line in answer["stderr"]]

    def close(self) -> None:
        """End the session, which removes everything there; wait until it has."""
        process = self._process
        try:
            if process.stdin is not None and not process.stdin.closed:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if process.poll() is None:  # interrupted while waiting
                process.kill()
            if process.stdout is not None:
                process.stdout.close()
            self._said.close()

    def _command(self, command: Mapping[str, Any], data: bytes = b"") -> dict[str, Any]:
        self._send(json.dumps(command).encode() + b"\n" + data)
        return self._answer(ANSWER_S)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._broken() from error

    def _answer(self, timeout_s: float, on_line: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
        """The next message that is not a line of a child's output."""
        assert self._process.stdout is not None
        stdout = self._process.stdout

        def wait() -> dict[str, Any]:
            for line in stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # what the account's shell prints at its start
                if isinstance(message, dict) and "line" in message:
                    on_line(str(message["line"]))
                elif isinstance(message, dict) and "ok" in message:
                    return message
            raise self._broken()

        answer = self._timed(wait, timeout_s)
        if not answer["ok"]:
            raise TransferError(f"the device could not: {answer.get('error')}", retryable=False,
                                file=self._address.text, next_step="look at its disk: df -h")  # fmt: skip
        return answer

    def _timed(self, wait: Callable[[], T], timeout_s: float) -> T:
        """Wait for something, but no longer than this: then the connection is ended."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            return wait()
        except TransferError:
            if late.is_set():
                raise TransferError(f"no answer within {timeout_s:g} s", retryable=True, file=self._address.text,
                                    next_step="look at the device and try again") from None  # fmt: skip
            raise
        finally:
            timer.cancel()

    def _broken(self) -> TransferError:
        """Why the connection ended, in ssh's own words."""
        try:
            code = self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            code = None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in said if line.strip() and not line.startswith("Warning: ")][-_LINES_KEPT:]
        reason = lines[-1] if lines else "no reason given"
        check = f"ssh -l {self._address.user} {self._address.host}"
        if code == _NO_CONNECTION:
            return TransferError(f"no connection: {reason}", retryable=True, file=self._address.text,
                                 next_step=f"make this work without a question: {check}")  # fmt: skip
        if code == _NOT_FOUND:
            return TransferError("Python is missing there", retryable=False, file=self._address.text,
                                 next_step="on the device: apt-get install python3")  # fmt: skip
        return TransferError(f"the session ended: {reason}", retryable=True, file=self._address.text,
                             next_step=f"look at the device: {check}")  # fmt: skip


def launcher(ssh_config: Path | None) -> tuple[str, ...]:
    """How ssh is started, with the user's configuration or another one.

    >>> launcher(None)
    ('ssh',)
    """
    return ("ssh",) if ssh_config is None else ("ssh", "-F", str(ssh_config))
