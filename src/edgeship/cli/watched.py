"""Commands that look into files of anybody's: done in a process that this one watches, so that this one survives."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Final, ParamSpec

import click

from edgeship.cli import console

P = ParamSpec("P")
#: The object of a command line that has its process to itself: ``main`` hands it on, other programs do not.
OWN_PROCESS: Final = "own process"


def has_own_process() -> bool:
    """Whether the command that runs came from ``main``."""
    return click.get_current_context().find_root().obj is OWN_PROCESS


def watched(command: Callable[P, None]) -> Callable[P, None]:
    """What kills the command's process is one error and exit code 1."""

    @functools.wraps(command)
    def outer(*arguments: P.args, **named: P.kwargs) -> None:
        from edgeship.build.survival.supervisor import Stopped, Supervisor, Terms, memory_limit_bytes

        def work() -> int:
            command(*arguments, **named)
            return 0

        def tell(sentence: str) -> None:
            console.step("crash", sentence, "failed")

        try:
            terms = Terms(memory_bytes=memory_limit_bytes(), may_copy=has_own_process())
            code = Supervisor(tell, terms).run(work)
        except Stopped as stopped:
            code = 128 + stopped.number
        if code:
            sys.exit(code)

    return outer
