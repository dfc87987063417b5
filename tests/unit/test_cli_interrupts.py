"""Ctrl-C that strikes inside a finalizer is swallowed by Python: the next check raises it again."""

from __future__ import annotations

import os
import signal

import pytest

from edgeship.cli import interrupts


def test_a_swallowed_interrupt_is_raised_at_the_next_check() -> None:
    with interrupts.remembered() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_the_former_handler_comes_back() -> None:
    former = signal.getsignal(signal.SIGINT)
    with interrupts.remembered():
        assert signal.getsignal(signal.SIGINT) is not former
    assert signal.getsignal(signal.SIGINT) is former
