"""Ctrl-C that strikes inside a finalizer is swallowed by Python: the next check raises it again."""

from __future__ import annotations

import signal
import subprocess
import sys

from edgeship.cli import interrupts

# in a process of its own: the runner's workers must not see the signal
_SWALLOWED = """
import os, signal
from edgeship.cli import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts.remembered() as check:
    check()
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("raised")
    try:
        check()
    except KeyboardInterrupt:
        print("raised again")
"""
# click calls this through code that was made from text, as dataclasses make theirs: Python would end with the signal
_THROUGH_TEXT = """
import signal, sys
from edgeship.cli import main
def interrupted(*_, **__):
    exec("raise KeyboardInterrupt")
main.edgeship.main = interrupted
main.main([])
"""


def test_a_swallowed_interrupt_is_raised_at_the_next_check() -> None:
    done = subprocess.run([sys.executable, "-c", _SWALLOWED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["raised", "raised again"]


def test_the_former_handler_comes_back() -> None:
    former = signal.getsignal(signal.SIGINT)
    with interrupts.remembered():
        assert signal.getsignal(signal.SIGINT) is not former
    assert signal.getsignal(signal.SIGINT) is former


def test_an_interrupt_ends_with_130_wherever_it_strikes(tmp_path) -> None:
    (tmp_path / "interrupted.py").write_text(_THROUGH_TEXT)
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
