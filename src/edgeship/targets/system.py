"""What a device's system must have: C library, Python, the agent, a runtime that reads the file's version."""

from __future__ import annotations

from edgeship.targets.facts import CheckResult, ModelFacts
from edgeship.targets.knowledge import AGENT_PYTHON, NEWEST_WHEEL, ONNX_VERSIONS, WHEEL_GLIBC, WHEEL_PYTHONS
from edgeship.targets.model import RuntimeEntry, Target


def glibc(target: Target, entry: RuntimeEntry) -> CheckResult:
    """Whether the devices' C library is new enough for the runtime's wheel."""
    if not target.glibc:
        return CheckResult(id="glibc", runtime=entry.name, holds=True, sentence=f"does not apply to {_system(target)}")
    needed = WHEEL_GLIBC.get((entry.name, target.arch))
    if needed is None:
        return CheckResult(id="glibc", runtime=entry.name, holds=not target.agent and None, sure=target.agent,
                           sentence=f"{entry.name} has no wheel for {target.arch}",
                           next_step="choose another runtime for this target")  # fmt: skip
    wanted = ".".join(map(str, needed))
    if _numbers(target.glibc) >= needed:
        return CheckResult(id="glibc", runtime=entry.name, holds=True,
                           sentence=f"{target.glibc} there, the wheel of {entry.name} asks for {wanted}")  # fmt: skip
    return CheckResult(id="glibc", runtime=entry.name, holds=False, sure=True,
                       sentence=f"the wheel of {entry.name} asks for {wanted}, {target.id} has {target.glibc}",
                       next_step="upgrade the devices' system, or choose another runtime")  # fmt: skip


def python(target: Target, entry: RuntimeEntry) -> list[CheckResult]:
    """Whether the runtime has a wheel for the devices' Python; nothing where the target does not name one."""
    if not target.python:
        return []
    newest = newest_wheel(target, entry)
    if newest is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in WHEEL_PYTHONS)
        return [CheckResult(id="python", runtime=entry.name, holds=False, sure=target.agent,
                            sentence=f"{entry.name} has no wheel for Python {target.python}, only for {known}",
                            next_step="install one of these beside the system's Python")]  # fmt: skip
    sentence = f"Python {target.python} there; the newest wheel of {entry.name} for it is "
    return [CheckResult(id="python", runtime=entry.name, holds=True, sentence=sentence + _text(newest))]


def newest_wheel(target: Target, entry: RuntimeEntry) -> tuple[int, ...] | None:
    """Newest version of a runtime that the devices' Python can install, or None.

    >>> jetson = Target(id="j", title="J", arch="aarch64", python="3.10", memory_bytes=1, storage_bytes=1,
    ...                 runtimes=(RuntimeEntry(name="onnxruntime"),))
    >>> newest_wheel(jetson, jetson.runtimes[0])
    (1, 23, 2)
    """
    version = _numbers(target.python)[:2]
    exception = NEWEST_WHEEL.get((entry.name, version))
    if exception is not None:
        return exception
    return NEWEST_WHEEL[entry.name, None] if version in WHEEL_PYTHONS else None


def file_format(target: Target, entry: RuntimeEntry, facts: ModelFacts) -> list[CheckResult]:
    """Whether the newest ONNX Runtime of an old Python reads the file; nothing where that is not a question."""
    newest = newest_wheel(target, entry) if target.python and entry.name == "onnxruntime" else None
    limits = ONNX_VERSIONS.get(newest[:2]) if newest else None
    if facts.format != "onnx" or newest is None or limits is None:
        return []
    opset, ir_version = limits
    found = f"opset {facts.opset}, IR version {facts.ir_version}"
    if facts.opset <= opset and facts.ir_version <= ir_version:
        return [CheckResult(id="format", runtime=entry.name, holds=True,
                            sentence=f"{found}; {entry.name} {_text(newest)} reads them")]  # fmt: skip
    return [CheckResult(
        id="format", runtime=entry.name, holds=False, sure=True,
        sentence=f"{entry.name} {_text(newest)} reads opset {opset} and IR version {ir_version} at most, not {found}",
        next_step=f"export the model with opset {opset} or older, or install a newer Python on the devices",
    )]  # fmt: skip


def agent(target: Target) -> CheckResult:
    """Whether the device agent runs there."""
    if not target.agent:
        return CheckResult(id="agent", holds=True,
                           sentence=f"build only: the device agent does not run on {_system(target)}")  # fmt: skip
    wanted = _text(AGENT_PYTHON)
    if not target.python:
        return CheckResult(id="agent", holds=True, sentence=f"runs there with Python {wanted} or newer")
    if _numbers(target.python)[:2] >= AGENT_PYTHON:
        return CheckResult(id="agent", holds=True, sentence=f"asks for Python {wanted}, {target.python} is there")
    return CheckResult(id="agent", holds=False, sure=True,
                       sentence=f"the device agent asks for Python {wanted}, {target.id} has {target.python}",
                       next_step="install a newer Python on the devices")  # fmt: skip


def _system(target: Target) -> str:
    return f"{target.arch} without a system" if target.os == "none" else target.os


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
