"""Isolated environments: made from a hashed lock on first use, shared by all builds, replaced as a whole."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

import platformdirs
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError, ConversionError
from edgeship_agent.runtime.installed import installed_version

_PACKAGE: Final = "edgeship.build.toolchains"
_READY: Final = "edgeship-ready"
_PIP: Final = (
    "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--ignore-requires-python",
    "--no-input", "--disable-pip-version-check", "--no-compile",
)  # fmt: skip
_INSTALL_TIMEOUT_S: Final = 900
_CHECK_TIMEOUT_S: Final = 120


class Toolchain(Struct, frozen=True, kw_only=True):
    """A converter.

    Attributes:
        purpose: what it is for, in a few words.
        size_bytes: about what its environment takes on disk.
        module: what must be importable in it.
        pythons, machines: versions of Python and processors that its lock has files for; empty for any.
        own: distributions, each with its lowest version, that make the environment of Edgeship itself do as well.
    """

    name: str
    purpose: str
    size_bytes: int
    module: str
    pythons: tuple[tuple[int, int], ...] = ()
    machines: tuple[str, ...] = ()
    own: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def misfit(self, python: tuple[int, int], machine: str) -> str:
        """Why its lock cannot be installed, empty where it can: pip itself would say so after minutes and in riddles.

        >>> TOOLCHAINS["torch"].misfit((3, 12), "x86_64")
        'its lock holds files for Python 3.11 on x86_64, and this is Python 3.12 on x86_64'
        >>> TOOLCHAINS["torch"].misfit((3, 11), "x86_64"), TOOLCHAINS["onnx2tf"].misfit((3, 12), "x86_64")
        ('', '')
        """
        if (not self.pythons or python in self.pythons) and (not self.machines or machine in self.machines):
            return ""
        versions = " or ".join(f"{major}.{minor}" for major, minor in self.pythons)
        return (f"its lock holds files for Python {versions} on {' or '.join(self.machines)}, and this is Python "
                f"{python[0]}.{python[1]} on {machine}")  # fmt: skip

    @property
    def lock(self) -> str:
        """The hashed requirement file."""
        return resources.files(_PACKAGE).joinpath(f"{self.name}.lock").read_text(encoding="utf-8")

    @property
    def is_own(self) -> bool:
        """Whether Edgeship's own environment has what it needs, so that code of the user finds its imports there.

        Told from the installed packages' metadata: nothing is imported.
        """
        return bool(self.own) and all(_installed(name) >= lowest for name, lowest in self.own)

    @property
    def folder(self) -> Path:
        """Where its environment lives: another lock or Python is another environment."""
        if self.is_own:
            return Path(sys.prefix)
        key = hashlib.sha256(f"{self.lock}\0{sys.version_info[:2]}\0{sys.platform}".encode()).hexdigest()[:16]
        return root() / f"{self.name}-{key}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if self.is_own:
            return Path(sys.executable)
        return self.folder / "bin" / "python"


class Status(Struct, frozen=True, kw_only=True):
    """Whether a toolchain is there, and where."""

    name: str
    purpose: str
    installed: bool
    folder: str
    size_bytes: int


TOOLCHAINS: Final[dict[str, Toolchain]] = {
    "onnx2tf": Toolchain(
        name="onnx2tf", purpose="ONNX → TFLite without TensorFlow", size_bytes=280_000_000, module="onnx2tf"
    ),
    "tensorflow": Toolchain(
        name="tensorflow", purpose="Keras, SavedModel and TensorFlow graphs → TFLite and ONNX; TFLite → ONNX",
        size_bytes=1_500_000_000, module="tensorflow",
    ),
    # the exporter is torch.onnx's own from 2.9 on, where dynamo became its default; tried with 2.13
    "torch": Toolchain(
        name="torch", purpose="PyTorch models → ONNX", size_bytes=870_000_000, module="torch",
        pythons=((3, 11),), machines=("x86_64",),
        own=(("torch", (2, 9)), ("onnxscript", (0, 5)), ("onnx", (1, 18)), ("numpy", (2,))),
    ),
    "classical": Toolchain(
        name="classical", purpose="scikit-learn, XGBoost and LightGBM → ONNX", size_bytes=330_000_000,
        module="skl2onnx",
    ),
}  # fmt: skip


def root() -> Path:
    """The folder of all toolchains, in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("edgeship")) / "toolchains"


def named(name: str) -> Toolchain:
    """The toolchain of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TOOLCHAINS:
        raise ConfigError("unknown toolchain", expected=" | ".join(TOOLCHAINS), got=name,
                          next_step="edgeship toolchains list")  # fmt: skip
    return TOOLCHAINS[name]


def status(name: str) -> Status:
    """Whether it is installed; runs nothing."""
    toolchain = named(name)
    return Status(
        name=name,
        purpose=toolchain.purpose,
        installed=is_installed(toolchain),
        folder=str(toolchain.folder),
        size_bytes=toolchain.size_bytes,
    )


def is_installed(toolchain: Toolchain) -> bool:
    """Whether its environment was finished."""
    return toolchain.is_own or (toolchain.folder / _READY).is_file()


def install(name: str) -> Path:
    """Create the environment unless it is there; a second process that does the same at the same time is harmless.

    Returns:
        The environment's folder.

    Raises:
        ConversionError: venv or pip could not do it; nothing half-made is left.
    """
    toolchain = named(name)
    if is_installed(toolchain):
        return toolchain.folder
    _check_fit(toolchain)
    root().mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root()))
    try:
        lock = draft / "requirements.lock"
        lock.write_text(toolchain.lock, encoding="utf-8")
        _run([sys.executable, "-m", "venv", str(draft)], name, "needs python3-venv (apt install python3-venv)")
        pip = [str(draft / "bin" / "python"), "-m", "pip", *_PIP, "-r", str(lock)]
        _run(pip, name, "check the network and pip's configuration, then: edgeship toolchains install " + name)
        (draft / _READY).write_text("1\n", encoding="utf-8")
        _move(draft, toolchain)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return toolchain.folder


def check(name: str) -> str:
    """Import the converter in its environment.

    Returns:
        What was found, in a few words.

    Raises:
        ConversionError: not installed, or it cannot be imported.
    """
    toolchain = named(name)
    if not is_installed(toolchain):
        _check_fit(toolchain)
        raise ConversionError(f"the toolchain {name} is not installed",
                              next_step=f"edgeship toolchains install {name}")  # fmt: skip
    code = f"import {toolchain.module} as found; print(found.__version__)"
    said = _run([str(toolchain.python), "-I", "-c", code], name, f"edgeship toolchains remove {name}",
                timeout_s=_CHECK_TIMEOUT_S)  # fmt: skip
    return f"{name} {said.strip()} imports"


def remove(name: str) -> bool:
    """Delete every environment of that name; False where there was none."""
    named(name)
    folders = [folder for folder in root().glob(f"{name}-*") if folder.is_dir()]
    for folder in folders:
        shutil.rmtree(folder)
    return bool(folders)


def _check_fit(toolchain: Toolchain) -> None:
    if misfit := toolchain.misfit((sys.version_info[0], sys.version_info[1]), platform.machine()):
        names = " and ".join(name for name, _ in toolchain.own)
        raise ConversionError(f"the toolchain {toolchain.name} cannot be installed: {misfit}",
                              next_step=f"install edgeship in an environment that has {names}, which is then used, or "
                                        "run it with a Python that the lock is for")  # fmt: skip


def _installed(name: str) -> tuple[int, ...]:
    """The version of a distribution here, its numbers only; empty where it is not installed."""
    text = installed_version(name) or ""
    return tuple(int(number) for number in re.split(r"[^0-9.]", text, maxsplit=1)[0].split(".") if number)


def _move(draft: Path, toolchain: Toolchain) -> None:
    try:
        draft.rename(toolchain.folder)
    except OSError as error:
        if is_installed(toolchain):
            return  # another build was quicker
        if toolchain.folder.exists():
            shutil.rmtree(toolchain.folder)
            draft.rename(toolchain.folder)
            return
        raise ConversionError(f"the toolchain cannot be put in place: {error}", file=toolchain.folder) from error


def _run(command: list[str], name: str, next_step: str, timeout_s: int = _INSTALL_TIMEOUT_S) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {error.returncode}"
        raise ConversionError(f"toolchain {name}: {reason}", next_step=next_step) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionError(f"toolchain {name}: {error}", next_step=next_step) from error
    return done.stdout
