"""The tutorial's commands, run for real: in order, in one shell that ends at the first failure."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console_blocks import ROOT, Block, blocks

pytestmark = pytest.mark.timeout(600)

TUTORIAL = ROOT / "docs" / "tutorial" / "first-fleet.md"
TIMEOUT_S = 540.0
#: Ports of the page; the test takes free ones, so that it disturbs nobody.
PORTS = ("8080", "1883")
#: Sentences of the page that must come out whatever the machine; each stands in the page and in what is printed.
PROMISED = (
    "digits v1 verified: sha256:",
    "✔ registered",
    "press-01  ✔ online  x86-64-litert  nothing",
    "✔ COMPLETED",
    "recomputed from the stored evidence: the identical verdict",
    "fleet healthy on v1",
    "the one device that had it runs v1 again",
    "digits  v2       ✖ blocked",
    "digits  v1       ✔ available",
    "0 failed, 0 worker deaths",
    "committed, v2 retained",
)
#: How the shell says which command it is about to run.
MARK = "\x01"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def script(page: list[Block], folder: Path, ports: dict[str, str]) -> str:
    """The page as a shell script; files are written before the commands that come after them."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for block in page:
        text = re.sub("|".join(ports), lambda found: ports[found.group()], block.text)
        if block.note.startswith("file: "):
            name = block.note.removeprefix("file: ")
            source = folder / f"{name}.page"
            source.write_text(text, encoding="utf-8")
            lines.append(f"cp {shlex.quote(str(source))} {shlex.quote(name)}")
        if block.language != "console" or block.note.startswith("not run"):
            continue
        for command in Block(note=block.note, language=block.language, text=text).commands:
            lines += [f"printf '%s\\n' {shlex.quote(MARK + command)} >&2", command]
        wanted = re.match(r"exit code: (\d)", block.note)
        if wanted:
            lines[-1] = f"code=0; {lines[-1]} || code=$?; test $code -eq {wanted[1]}"
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """The reader's folder, with a short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="edgeship-tutorial-") as name:
        yield Path(name)


def test_the_tutorial_runs_as_it_is_written(folder: Path) -> None:
    ports = {port: str(_free_port()) for port in PORTS}
    work = folder / "first-fleet"
    work.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "EDGESHIP_SERVER": f"http://127.0.0.1:{ports['8080']}",
        "XDG_DATA_HOME": str(folder / "data"),
        "NO_COLOR": "1",
    }
    log = folder / "printed.txt"
    with log.open("wb") as printed:
        shell = subprocess.Popen(
            ["bash", "-c", script(blocks(TUTORIAL), folder, ports)],
            cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, start_new_session=True,
        )  # fmt: skip
        try:
            code = shell.wait(TIMEOUT_S)
        finally:
            _end(shell)
    said = log.read_text(encoding="utf-8")
    agent_log = (work / "agent.log").read_text(encoding="utf-8") if (work / "agent.log").exists() else ""
    assert code == 0, f"{said[-4000:]}\n{agent_log[-2000:]}"
    assert "Traceback" not in said
    assert (work / "camera.log").read_text(encoding="utf-8") == ""
    missing = [sentence for sentence in PROMISED if sentence not in said]
    assert not missing, said[-6000:]


def test_the_page_promises_what_is_checked() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    assert not [sentence for sentence in PROMISED if sentence not in text]


def _end(shell: subprocess.Popen[bytes]) -> None:
    """End whatever the shell left behind: it leads a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(shell.pid, number)
            shell.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
