"""Loading files in a process beside this one first: a file that kills its runtime must not kill the build."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from edgeship.build.backends.base import Artifact
from edgeship_agent.contract.errors import ConversionError

_LOAD_TIMEOUT_S: Final = 120


class Prober:
    """One process that loads and runs files, started when it is needed and again when a file has killed it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def check(self, artifact: Artifact) -> None:
        """Load a file and run it once on zeros.

        Raises:
            ConversionError: it crashes its runtime, is refused by it, or takes too long.
        """
        if refusal := self.refusal(artifact.runtime, artifact.model):
            raise ConversionError(f"{artifact.runtime} refuses it: {refusal}", target=artifact.runtime)

    def refusal(self, runtime: str, model: Path) -> str:
        """Why a runtime refuses a file, or to run it once on zeros; empty where it does not.

        Raises:
            ConversionError: the file crashes its runtime, or takes too long.
        """
        process = self._running()
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(_LOAD_TIMEOUT_S, end)
        timer.start()
        try:
            answer = _ask(process, runtime, str(model))
        finally:
            timer.cancel()
        if answer is None:
            code = self._end()
            if late.is_set():
                late_error = ConversionError(f"{runtime} did not load it within {_LOAD_TIMEOUT_S} s", target=runtime)
                late_error.passing = True
                raise late_error
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ConversionError(f"the file kills {runtime} ({how})", target=runtime)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._end()

    def _end(self) -> int:
        """Let the process end, and say how it did."""
        assert self._process is not None
        with self._process as process:  # closes its pipes
            self._process = None
        return process.returncode

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "edgeship.build.probe"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        return self._process


def _ask(process: subprocess.Popen[str], runtime: str, model: str) -> str | None:
    """Why the file is refused, empty where it runs; None where the process died of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"runtime": runtime, "model": model}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return str(json.loads(line)["refused"]) if line else None
