"""Whether what is written to a folder is still there after a restart of the device."""

from __future__ import annotations

import re
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

from edgeship_agent.contract.errors import ConfigError

_MOUNTS: Final = Path("/proc/self/mountinfo")
#: File system types that a restart, or an update of the system, empties.
VOLATILE: Final = frozenset({"tmpfs", "ramfs", "overlay", "overlayfs", "aufs"})
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def check_lasting(state_dir: Path) -> None:
    """Refuse a state directory that would forget the committed model.

    Raises:
        ConfigError: it lies in memory or in the upper layer of an overlay.
    """
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # no Linux: nothing can be told
    kind = file_system_of(state_dir.resolve(), mounts)
    if kind in VOLATILE:
        raise ConfigError(
            "a restart or an update of the system would take the models away",
            file=state_dir,
            key="state_dir",
            expected="a folder on a disk or a data partition",
            got=f"a file system of type {kind}",
            next_step="name a folder on a disk; to try things out, write allow_volatile_state = true",
        )


def file_system_of(path: PurePath, mounts: str) -> str:
    r"""Type of the file system that a path lies on; empty where the table does not tell.

    Args:
        path: absolute, without links.
        mounts: the table. Source: Linux proc_pid_mountinfo(5); the mount point is field 5, the type follows `` - ``.

    >>> table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /run rw,nosuid shared:2 - tmpfs tmpfs rw"
    >>> file_system_of(PurePosixPath("/run/x"), table), file_system_of(PurePosixPath("/running"), table)
    ('tmpfs', 'ext4')
    """
    found, depth = "", -1
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = PurePosixPath(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        inside = point == path or point in path.parents
        if inside and len(point.parts) >= depth:  # of two mounts on one point the later one is seen
            found, depth = right.split(" ")[0], len(point.parts)
    return found
