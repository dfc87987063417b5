"""The agent, made to die of SIGKILL at its n-th journal write: ``KILL_AT=n``, ``KILL_WHEN=before|after`` the write."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from edgeship_agent import cli
from edgeship_agent.supervisor import run
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.journal import Journal


class DeadlyJournal(Journal):
    """A journal whose n-th record of an attempt kills the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._writes_left = int(os.environ["KILL_AT"])

    def append(self, *attempts: Attempt) -> None:
        self._writes_left -= 1
        if self._writes_left == 0 and os.environ["KILL_WHEN"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(*attempts)
        if self._writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run.Journal = DeadlyJournal
    sys.exit(cli.main())
