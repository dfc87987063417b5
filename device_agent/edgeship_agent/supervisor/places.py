"""Where things lie in the state directory, and where the sockets go when its path is too long for one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
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
#: The system's folder in memory. Source: Linux shm_overview(7).
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (the folders made in it belong to this user alone, and that is checked)
_PREFIX: Final = "edgeship-"
#: In a folder in memory: a link to the state directory that it belongs to.
_OWNER: Final = "state"


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
        self.is_read_only = False
        self.socket_pointer = self.run / "socket-path"
        self.lock = state_dir / "lock"
        self._held: int | None = None

    def make(self) -> None:
        """Make the folders; on a disk that is read-only what was made before has to do."""
        try:
            DISK.make_folders(self.root, 0o700)
            self.is_read_only = bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)
            if not (self.is_read_only and self.run.is_dir()):
                self.run.mkdir(exist_ok=True, mode=0o700)
            with contextlib.suppress(OSError):
                self._in_memory.mkdir(exist_ok=True, mode=0o700)
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
        """The folder of the sockets: ``run``, or a short one outside where that path is too long, or read-only."""
        longest = len(os.fsencode(self.run)) + 1 + _LONGEST_NAME_BYTES
        if longest > _MAX_SOCKET_BYTES:
            return Path(tempfile.gettempdir()) / self._short_name
        return self.volatile if self.is_read_only else self.run

    @property
    def volatile(self) -> Path:
        """A folder in memory where the system has one: what is written every second does not wear the disk.

        Anybody may make a folder of that name there, so it has to be of the user whose the state directory is; else
        ``run`` has to do.
        """
        try:
            found = self._in_memory.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == self.root.stat().st_uid
        except OSError:
            is_ours = False
        return self._in_memory if is_ours and not found.st_mode & 0o022 else self.run

    @property
    def _in_memory(self) -> Path:
        memory = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
        return memory / self._short_name

    @property
    def live_status(self) -> Path:
        """Where the status is written; ``status`` points to it."""
        return self.volatile / self.status.name

    def socket_outside(self) -> Path | None:
        """Where the socket is while the agent runs on a disk that is read-only, or None."""
        if self.volatile == self.run or not self._outside.exists():
            return None
        self.is_read_only = True
        return self.socket

    @property
    def _outside(self) -> Path:
        """Says, in memory, that nothing could be written down in the state directory."""
        return self.volatile / "read-only"

    @property
    def _short_name(self) -> str:
        return f"{_PREFIX}{hashlib.sha256(os.fsencode(self.root.absolute())).hexdigest()[:12]}"

    @property
    def socket(self) -> Path:
        """What applications connect to."""
        return self.sockets / SOCKET

    def publish(self) -> None:
        """Write down where socket and status are, for those who know the state directory alone; clear what is stale."""
        for stale in self.sockets.glob("w-*.sock"):
            stale.unlink(missing_ok=True)
        if self.volatile != self.run:
            self._hold()
            _sweep(self.volatile.parent)
        if self.is_read_only:
            if self.volatile != self.run:
                self._outside.touch()
            return
        with contextlib.suppress(OSError):  # a full disk stops no agent that was here before
            self._outside.unlink(missing_ok=True)
            if self.volatile == self.run:
                if self.status.is_symlink():
                    self.status.unlink()
            elif not self.status.is_symlink() or self.status.readlink() != self.live_status:
                DISK.point(self.status, str(self.live_status), certain=False)
        said = os.fsencode(self.socket) + b"\n"
        if not self.socket_pointer.is_file() or self.socket_pointer.read_bytes() != said:
            DISK.write_hint(self.socket_pointer, said)  # a full disk stops no agent that was here before
        if self.sockets != self.run:
            DISK.point(self.run / SOCKET, str(self.socket), certain=False)

    def _hold(self) -> None:
        """Say whose the folder in memory is, and that somebody uses it."""
        owner = self.volatile / _OWNER
        with contextlib.suppress(OSError):
            if not owner.is_symlink():
                owner.symlink_to(self.root.absolute())
            if self._held is None:
                self._held = _locked(self.volatile)

    def withdraw(self) -> None:
        """Leave nothing outside of the state directory: the last status goes there, if the disk takes it."""
        if self.sockets not in (self.run, self.volatile):
            shutil.rmtree(self.sockets, ignore_errors=True)
        if self.volatile == self.run:
            return
        live = self.live_status
        if live.is_file() and not self.is_read_only:
            try:
                DISK.write_hint(self.status, live.read_bytes())
            except OSError:
                return
        shutil.rmtree(self._in_memory, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(folder: Path) -> int | None:
    """A handle that keeps a folder locked while it is open, or None where another process has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(memory: Path) -> None:
    """Remove what agents that were killed left in memory, once their state directories are gone."""
    for folder in memory.glob(f"{_PREFIX}*"):
        owner = folder / _OWNER
        try:
            is_stale = folder.lstat().st_uid == os.getuid() and owner.is_symlink() and not owner.exists()
            handle = _locked(folder) if is_stale else None
        except OSError:
            continue
        if handle is not None:  # of no agent that runs, in another container either
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def lock_state(places: Places, next_step: str) -> int:
    """Keep everybody else out of the state directory, as long as the file of this handle is open.

    Raises:
        ConfigError: an agent has it.
    """
    try:
        handle = os.open(places.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not places.lock.exists():
            raise ConfigError(f"cannot be written: {error.strerror}", file=places.lock, key="state_dir") from error
        handle = os.open(places.lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ConfigError("another agent uses this state directory", file=places.root, next_step=next_step) from error
    return handle


def find_socket(state_dir: Path) -> Path:
    """The socket of the agent that runs (or ran last) in a state directory."""
    pointer = state_dir / "run" / "socket-path"
    outside = Places(state_dir).socket_outside()
    if outside is not None:
        return outside
    try:
        return Path(os.fsdecode(pointer.read_bytes().rstrip(b"\n")))
    except OSError:
        return Places(state_dir).socket
