"""Programs of the system that some tests need."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

#: Program → Debian package.
_PACKAGES = {
    "skopeo": "skopeo", "mosquitto": "mosquitto", "chromium": "chromium", "ssh": "openssh-client",
    "ssh-keygen": "openssh-client", "gcc": "gcc", "g++": "g++", "sshd": "openssh-server", "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
}  # fmt: skip
#: Where programs lie that only the system starts, besides what PATH names.
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"
_INSTALL_TIMEOUT_S = 300


def require_program(name: str) -> str:
    """Path of a program; installed where this process may, else the test is skipped, and with ``CI=true`` it fails."""
    found = _find(name)
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(_PACKAGES.get(name, name))
        found = _find(name)
    if found:
        return found
    sentence = f"not tried: {name} is not installed (apt-get install {_PACKAGES.get(name, name)})"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_FOLDERS)


def _install(package: str) -> None:
    """Install a package, quietly; what remains missing afterwards is the caller's to say."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
    for command in (install, ["apt-get", "update", "-q"], install):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=_INSTALL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return
        if done.returncode == 0 and command is install:
            return
