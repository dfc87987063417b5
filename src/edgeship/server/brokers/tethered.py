"""Run a command that ends when the process that started it ends.

``python -m edgeship.server.brokers.tethered PARENT CMD ...``

The kernel sends SIGTERM to the command when the parent's thread dies, however it dies (Linux ``prctl(2)``,
PR_SET_PDEATHSIG); the setting outlives ``execve``. Elsewhere the command runs untethered.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Tether this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died before the tether held
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 (becoming the command is the point)


if __name__ == "__main__":
    main()
