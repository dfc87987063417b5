"""A real sshd on loopback, with keys of its own, that ends with the test."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import require_program

_START_S = 15.0


class SshServer:
    """A running server: the address that leads to it and the client configuration that trusts it."""

    def __init__(self, address: str, config: Path, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.config = config
        self.home = home
        self.process = process

    @property
    def leftovers(self) -> list[str]:
        """What sessions left in the folder where they work."""
        return sorted(path.name for path in (self.home / "tmp").iterdir())


@contextmanager
def ssh_server(
    folder: Path, *, python: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[SshServer]:
    """Start a server that lets this account in with a key made for it.

    Args:
        folder: empty; gets keys, configuration and log.
        python: the ``python3`` that sessions find; None for the one that runs the tests.
        environment: further variables of sessions.
    """
    require_program("ssh")
    keygen, daemon = require_program("ssh-keygen"), require_program("sshd")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd as root wants to lock itself in
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    shims = folder / "bin"
    shims.mkdir()
    shim = shims / "python3"
    # a script and no link: through a link an interpreter of a virtual environment would not find it
    shim.write_text(f'#!/bin/sh\nexec {python or sys.executable} "$@"\n')
    shim.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"PATH": f"{shims}:/usr/bin:/bin", "TMPDIR": str(folder / "tmp"), **(environment or {})}
    prefix = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items())])
    (folder / "sshd_config").write_text(
        "\n".join(
            [
                f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", "UsePAM no", "StrictModes no",
                f"AuthorizedKeysFile {folder / 'authorized_keys'}", "PasswordAuthentication no",
                "PermitRootLogin yes", "KbdInteractiveAuthentication no", f"PidFile {folder / 'pid'}",
                # whatever the account's own start files set, sessions see this
                f'ForceCommand {prefix} sh -c "$SSH_ORIGINAL_COMMAND"', "",
            ]
        )
    )  # fmt: skip
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([daemon, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdout=log)
    try:
        _wait(port, process, folder / "log")
        yield SshServer(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", config, folder, process)
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"sshd ended: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")
