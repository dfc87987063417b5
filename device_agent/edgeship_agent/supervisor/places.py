"""Where things lie in the state directory, and where the sockets go when its path is too long for one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.update.disk import DISK

#: Longest path of a Unix socket. Source: Linux unix(7), ``sun_path`` has 108 bytes with the closing zero.
_MAX_SOCKET_BYTES: Final = 107
#: Longest name that a worker's socket gets inside the socket folder.
_LONGEST_NAME_BYTES: Final = 32
SOCKET: Final = "infer.sock"


class Places:
    """Files and folders under one state directory.

    Args:
        state_dir: the directory; made, with mode 0700, when it is not there.

    Raises:
        ConfigError: it cannot be made or written.
    """

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir
        self.journal = state_dir / "journal.log"
        self.outbox = state_dir / "outbox.sqlite"
        self.state = state_dir / "state.json"
        self.trust = state_dir / "tuf"
        self.store = state_dir / "store"
        self.slots = state_dir / "slots"
        self.profiling = state_dir / "profiling"
        self.run = state_dir / "run"
        self.status = self.run / "status.json"
        self.socket_pointer = self.run / "socket-path"
        self.lock = state_dir / "lock"

    def make(self) -> None:
        """Make the folders."""
        try:
            DISK.make_folders(self.root, 0o700)
            self.run.mkdir(exist_ok=True, mode=0o700)
            self.sockets.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"cannot be made: {error.strerror}",
                file=self.root,
                key="state_dir",
                next_step=f"sudo install -d -o $USER -m 700 {self.root}",
            ) from error
        if self.sockets.lstat().st_uid != os.getuid():
            raise ConfigError("belongs to another user", file=self.sockets, next_step=f"sudo rm -r {self.sockets}")

    @property
    def sockets(self) -> Path:
        """The folder of the sockets: ``run``, or a short one under the system's folder for temporary files."""
        longest = len(os.fsencode(self.run)) + 1 + _LONGEST_NAME_BYTES
        if longest <= _MAX_SOCKET_BYTES:
            return self.run
        name = hashlib.sha256(os.fsencode(self.root.absolute())).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"edgeship-{name}"

    @property
    def socket(self) -> Path:
        """What applications connect to."""
        return self.sockets / SOCKET

    def publish_socket(self) -> None:
        """Write the path of the socket down, for those who know the state directory alone; clear what others left."""
        for stale in self.sockets.glob("w-*.sock"):
            stale.unlink(missing_ok=True)
        said = os.fsencode(self.socket) + b"\n"
        if not self.socket_pointer.is_file() or self.socket_pointer.read_bytes() != said:
            DISK.write_hint(self.socket_pointer, said)  # a full disk stops no agent that was here before
        if self.sockets != self.run:
            DISK.point(self.run / SOCKET, str(self.socket), certain=False)


def lock_state(places: Places, next_step: str) -> int:
    """Keep everybody else out of the state directory, as long as the file of this handle is open.

    Raises:
        ConfigError: an agent has it.
    """
    handle = os.open(places.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ConfigError("another agent uses this state directory", file=places.root, next_step=next_step) from error
    return handle


def find_socket(state_dir: Path) -> Path:
    """The socket of the agent that runs (or ran last) in a state directory."""
    pointer = state_dir / "run" / "socket-path"
    try:
        return Path(os.fsdecode(pointer.read_bytes().rstrip(b"\n")))
    except OSError:
        return Places(state_dir).socket
