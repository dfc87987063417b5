"""The one way to start a child process: its command line gets the configured prefix, and it dies with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from msgspec import Struct

from edgeship_agent.contract.errors import TransferError
from edgeship_agent.runtime.memory import SERVICE_ENVIRONMENT


class Finished(Struct, frozen=True, kw_only=True):
    """A child that ended; a negative ``return_code`` is the signal that killed it."""

    return_code: int
    output: bytes
    errors: bytes


class Launcher:
    """Starts this agent's modules as children.

    Args:
        prefix: put before every command line, such as an emulator; empty for none.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._prefix = tuple(prefix)

    def command(self, module: str, arguments: Sequence[str]) -> list[str]:
        """The command line that runs a module tied to this process."""
        tied = ["-m", "edgeship_agent.update.tied", str(os.getpid()), module]
        return [*self._prefix, sys.executable, *tied, *arguments]

    def run(self, module: str, arguments: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Finished:
        """Run a module to its end.

        Raises:
            TransferError: it did not end in time and was killed (retryable).
        """
        try:
            done = subprocess.run(
                self.command(module, arguments),
                env=_environment(),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise TransferError(f"{module} did not end within {timeout_s:g} s", retryable=True) from error
        return Finished(return_code=done.returncode, output=done.stdout, errors=done.stderr)

    def start(self, module: str, arguments: Sequence[str], *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a module; its standard output joins the log on stderr."""
        return subprocess.Popen(
            self.command(module, arguments),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    """This process's, without what is set for a service alone."""
    return {name: value for name, value in os.environ.items() if SERVICE_ENVIRONMENT.get(name) != value}
