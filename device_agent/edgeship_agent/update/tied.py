"""Run a module so that it dies with its parent: ``python -m edgeship_agent.update.tied PARENT_PID MODULE ARGUMENTS…``.

Linux tells a process of its parent's death (``PR_SET_PDEATHSIG``); elsewhere the closed control socket does.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent_pid: int) -> None:
    """Ask to be killed when the parent dies, and end at once if it is dead already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise SystemExit(1)


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent_pid)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
