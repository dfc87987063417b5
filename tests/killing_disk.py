"""The agent, made to die of SIGKILL right before its n-th change of the disk: ``KILL_AT=n``.

``FULL_AT=n`` lets the disk be full from that change on instead, for ``FULL_FOR`` changes: every one of them fails.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from edgeship_agent import cli
from edgeship_agent.update.disk import Disk, OpenFile

_CHANGES = {
    Disk: ("open", "rename", "link", "symlink", "unlink", "make_folder", "remove_folder", "sync_folder"),
    OpenFile: ("write", "cut", "sync"),
}
_count = 0


def deadly(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, counted; the n-th call of all of them ends the process."""

    def counted(*arguments: Any, **options: Any) -> Any:
        global _count  # noqa: PLW0603 (one process, one count)
        _count += 1
        if _count == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        if 0 <= _count - int(os.environ.get("FULL_AT", "0")) < int(os.environ.get("FULL_FOR", "0")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return method(*arguments, **options)

    return counted


if __name__ == "__main__":
    for kind, names in _CHANGES.items():
        for name in names:
            setattr(kind, name, deadly(getattr(kind, name)))
    code = cli.main()
    sys.stderr.write(f"changes {_count}\n")
    sys.exit(code)
