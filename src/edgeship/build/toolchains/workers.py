"""One question to a converter in its own environment and process: JSON in, JSON lines out."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from edgeship.build.toolchains.environment import is_installed, named
from edgeship_agent.contract.errors import ConversionError, InputError

TIMEOUT_S: Final = 600.0
MEMORY_BYTES: Final = 16 * 1024**3
_PACKAGE: Final = "edgeship.build.toolchains"
_LINES_KEPT: Final = 20
#: Of strings, in every worker: converters walk sets, and the order shows in what they write. ``-I`` would not take it;
#: ``-s -P`` without Python's other variables isolate as much.
_SAME_HASHES: Final = {"PYTHONHASHSEED": "0"}

#: How a toolchain is asked; a caller may put what it remembers in front.
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


def ask(toolchain: str, question: dict[str, Any]) -> dict[str, Any]:
    """Ask a toolchain, with the usual time and without a word on the way; see :func:`call`."""
    return call(toolchain, question)


def call(
    toolchain: str,
    request: Mapping[str, Any],
    *,
    timeout_s: float = TIMEOUT_S,
    on_count: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Ask a toolchain's worker script.

    The script reads one JSON object from stdin and prints JSON lines: ``{"done": n, "total": m}`` as often as it likes,
    and at last ``{"ok": true, …}`` or ``{"ok": false, "error": sentence, "kind": "input" | "conversion"}``.

    Args:
        toolchain: its name; the script is ``<name>_worker.py`` beside the lock.
        request: what is asked; every path in it is a private copy or folder.
        timeout_s: how long it may take, in seconds.
        on_count: told how far it is.
        folder: the process's working folder; None for this one.

    Returns:
        The answer.

    Raises:
        InputError: the worker says that the file cannot be used.
        ConversionError: not installed, it failed, died or took too long.
    """
    environment = named(toolchain)
    if not is_installed(environment):
        raise ConversionError(f"the toolchain {toolchain} is not installed",
                              next_step=f"edgeship toolchains install {toolchain}")  # fmt: skip
    script = resources.files(_PACKAGE).joinpath(f"{toolchain}_worker.py")
    with resources.as_file(script) as path, tempfile.TemporaryFile() as said, _scratch() as scratch:
        command = [str(environment.python), "-s", "-P", str(path)]
        told = {"memory_bytes": _memory_bytes(), **request}
        answer = _talk(command, told, said, _Terms(toolchain, timeout_s, on_count, folder, scratch))
    return _checked(answer, toolchain)


class _Terms(NamedTuple):
    """How a worker runs: ``scratch`` is where it and its libraries put temporary files."""

    toolchain: str
    timeout_s: float
    on_count: Callable[[int, int], None] | None
    folder: Path | None
    scratch: str


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a worker's temporary files: workers end abruptly, and some of their libraries never tidy up."""
    return tempfile.TemporaryDirectory(prefix="edgeship-worker-", ignore_cleanup_errors=True)


def _talk(command: list[str], request: Mapping[str, Any], said: IO[bytes], terms: _Terms) -> dict[str, Any]:
    """Run the worker to its end and return its last JSON line; its stderr goes to ``said``."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                          env=_environment(terms.scratch), cwd=terms.folder) as process:  # fmt: skip
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(terms.timeout_s, end)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode())
                process.stdin.close()
            answer = _last_answer(process.stdout, terms.on_count)
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise _passing(f"{terms.toolchain} took longer than {terms.timeout_s:g} s")
    if answer is None:
        raise _passing(f"{terms.toolchain}: {_why(process.returncode, said)}")
    return answer


def _environment(scratch: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | _SAME_HASHES | {"TMPDIR": scratch}


def _memory_bytes() -> int:
    """What a worker may take: never more than this process, whose limit no child can raise (``ulimit -v``)."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    return MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)


def _passing(message: str) -> ConversionError:
    """A failure that says more about this machine than about the model."""
    error = ConversionError(message)
    error.passing = True
    return error


def _last_answer(stdout: IO[bytes], on_count: Callable[[int, int], None] | None) -> dict[str, Any] | None:
    answer = None
    for line in stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a framework that found the real stdout
        if not isinstance(message, dict):
            continue
        if "ok" in message:
            answer = message
        elif on_count is not None and "done" in message:
            on_count(int(message["done"]), int(message["total"]))
    return answer


def _why(code: int, said: IO[bytes]) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()][-_LINES_KEPT:]
    return lines[-1].strip() if lines else f"ended without an answer (exit code {code})"


def _checked(answer: dict[str, Any], toolchain: str) -> dict[str, Any]:
    if answer["ok"]:
        return answer
    reason = str(answer.get("error") or "no reason given")
    if answer.get("kind") == "input":
        raise InputError(reason, next_step=str(answer.get("next", "")) or None)
    raise ConversionError(f"{toolchain}: {reason}", next_step=str(answer.get("next", "")) or None)
