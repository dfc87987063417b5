"""An emulated arm64 root: Debian's packages unpacked beside this system, with the agent's wheel and its runtimes.

Made once and kept in the user's cache folder. Nothing is installed: qemu's user-mode emulator is unpacked too.
Processes of the root see the host's files and network; they cannot start ARM programs of their own, so every child goes
through the launcher prefix.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from tests.console_blocks import ROOT

#: Debian packages of arm64: Python and what the runtimes' wheels are linked to.
PACKAGES = (
    *("python3.11", "python3.11-minimal", "libpython3.11-stdlib", "libpython3.11-minimal", "libc6", "libstdc++6"),
    *("libgcc-s1", "libgomp1", "zlib1g", "libffi8", "libssl3", "libexpat1", "libbz2-1.0", "liblzma5", "libsqlite3-0"),
    *("libuuid1", "libncursesw6", "libtinfo6", "libcrypt1", "libreadline8", "libnsl2", "libtirpc3"),
)
#: Distributions besides the agent's own wheel.
WHEELS = (
    *("numpy", "msgspec", "paho-mqtt", "tuf", "securesystemslib", "cryptography", "onnxruntime", "ai-edge-litert"),
    *("onnx", "pytest", "pytest-timeout", "hypothesis"),
)
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
#: Without these lines the runtimes fail to find the processor's features, and crash.
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_TIMEOUT_S = 900


class Arm64Root:
    """A root and how to run Python in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prefix(self, *paths: Path) -> list[str]:
        """What goes before a command line of the root's Python; its own ``python`` included."""
        shown = os.pathsep.join(map(str, (*paths, self.folder / "site")))
        emulator = self.folder / "emulator" / "usr" / "bin" / "qemu-aarch64-static"
        return [str(emulator), "-cpu", "cortex-a72", "-L", str(self.root), "-E", f"PYTHONPATH={shown}"]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def python(self) -> str:
        return str(self.root / "usr" / "bin" / "python3.11")

    def run(
        self, *arguments: str, paths: tuple[Path, ...] = (), timeout_s: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the root's Python to its end."""
        command = [*self.prefix(*paths), self.python, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)


def arm64_root() -> Arm64Root:
    """The root, made where it is not there; skipped where it cannot be made, and with ``CI=true`` a failure."""
    recipe = repr((PACKAGES, WHEELS, PLATFORMS, CPUINFO, _agent_digest()))
    folder = Path(platformdirs.user_cache_dir("edgeship")) / f"arm64-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if (folder / "ready").exists():
        return Arm64Root(folder)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        sentence = "not tried: an arm64 root is made of Debian's packages, and there is no apt-get here"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _unpack_system(folder)
    _install_wheels(folder)
    (folder / "root" / "proc").mkdir()
    (folder / "root" / "proc" / "cpuinfo").write_text(CPUINFO)
    (folder / "ready").touch()
    return Arm64Root(folder)


def _unpack_system(folder: Path) -> None:
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "state" / "status").touch()
    options = [f"Dir::State={apt / 'state'}", f"Dir::State::status={apt / 'state' / 'status'}",
               f"Dir::Cache={apt / 'cache'}", "APT::Architecture=arm64", "APT::Architectures::=arm64"]  # fmt: skip
    foreign = [word for option in options for word in ("-o", option)]
    _run(["apt-get", *foreign, "-q", "update"], folder)
    for name, words, packages in (("root", foreign, PACKAGES), ("emulator", [], ("qemu-user-static",))):
        debs = folder / f"{name}-packages"
        debs.mkdir()
        _run(["apt-get", *words, "-q", "download", *packages], debs)
        for deb in sorted(debs.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(folder / name)], folder)
        shutil.rmtree(debs)
    shutil.rmtree(apt)


def _install_wheels(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "-w", str(folder / "wheels"), str(ROOT / "device_agent")], folder)
    foreign = [word for platform in PLATFORMS for word in ("--platform", platform)]
    into = [*pip, "install", "--target", str(folder / "site"), "--only-binary=:all:", "--python-version", "3.11",
            "--implementation", "cp", *foreign]  # fmt: skip
    _run([*into, *WHEELS], folder)
    _run([*into, "--no-deps", *map(str, (folder / "wheels").glob("*.whl"))], folder)


def _agent_digest() -> str:
    """The agent's wheel is part of the root: another line of its code is another root."""
    state = hashlib.sha256()
    for file in sorted((ROOT / "device_agent" / "edgeship_agent").rglob("*.py")):
        state.update(file.read_bytes())
    return state.hexdigest()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=folder)
    assert done.returncode == 0, f"{' '.join(command[:4])} …: {done.stderr[-800:]}"
