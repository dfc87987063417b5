"""Inference runtimes behind one Protocol: the same code verifies a model in the build and runs it on the device."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import STAND_INS
from edgeship_agent.runtime.installed import installed_version
from edgeship_agent.runtime.options import EngineOptions

if TYPE_CHECKING:
    from edgeship_agent.runtime.engine import Engine

__all__ = ["RUNTIMES", "EngineOptions", "installed_runtimes", "open_engine", "runtime_in_place", "runtime_version"]

#: Runtime → the distribution that brings it, the module that adapts it, and the class in it.
_ADAPTERS: Final[dict[str, tuple[str, str, str]]] = {
    "litert": ("ai-edge-litert", "edgeship_agent.runtime.litert", "LiteRtEngine"),
    "onnxruntime": ("onnxruntime", "edgeship_agent.runtime.onnx_runtime", "OnnxRuntimeEngine"),
    "openvino": ("openvino", "edgeship_agent.runtime.open_vino", "OpenVinoEngine"),
}
#: Runtime that only stands in for another one → the distribution that brings it.
_STAND_INS: Final = {"tflite-runtime": "tflite-runtime"}
RUNTIMES: Final[tuple[str, ...]] = tuple(_ADAPTERS)
#: ONNX Runtime reports calls to its maker and keeps a database of them in the user's home, unless this is said before
#: it is imported: on a device that is megabytes of flash, and a connection that nobody asked for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_engine(runtime: str, model: Path, options: EngineOptions = EngineOptions()) -> Engine:  # noqa: B008 (frozen)
    """Open a model file in one runtime; only that runtime is imported.

    Args:
        runtime: one of :data:`RUNTIMES`.
        model: the model file; OpenVINO finds the ``.bin`` beside its ``.xml``.
        options: threads and precision.

    Raises:
        ConfigError: no such runtime, or it is not installed.
        InputError: there is no such file.
        EngineError: the runtime refused the model.
    """
    if runtime not in _ADAPTERS:
        raise ConfigError("unknown runtime", expected=" | ".join(RUNTIMES), got=runtime)
    if not model.is_file():
        raise InputError("no such model file", file=model)
    _, module_name, class_name = _ADAPTERS[runtime]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the runtime {runtime} is not installed",
            key=error.name,
            next_step=f"pip install edgeship-agent[{runtime}]",
        ) from error
    engine: Engine = getattr(module, class_name)(model, options)
    return engine


def installed_runtimes() -> dict[str, str]:
    """Name → version of the runtimes that are installed, those that only stand in for another one by their own name."""
    distributions = {**{name: adapter[0] for name, adapter in _ADAPTERS.items()}, **_STAND_INS}
    versions = {name: installed_version(distribution) for name, distribution in distributions.items()}
    return {name: version for name, version in versions.items() if version is not None}


def runtime_in_place(runtime: str) -> tuple[str, str]:
    """Name and version of what runs the files of a runtime here; an empty version where nothing does.

    Raises:
        ConfigError: no such runtime.
    """
    version = runtime_version(runtime)
    other = STAND_INS.get(runtime, "")
    if version is None and other:
        found = installed_version(_STAND_INS[other])
        if found is not None:
            return other, found
    return runtime, version or ""


def runtime_version(runtime: str) -> str | None:
    """Installed version of a runtime, or None; read from the package's metadata, so nothing is imported.

    Raises:
        ConfigError: no such runtime.

    >>> try:
    ...     runtime_version("abacus")
    ... except ConfigError as error:
    ...     print(error)
    unknown runtime (expected litert | onnxruntime | openvino, got abacus)
    """
    if runtime not in _ADAPTERS:
        raise ConfigError("unknown runtime", expected=" | ".join(RUNTIMES), got=runtime)
    return installed_version(_ADAPTERS[runtime][0])
