"""One module per runtime: convert, quantize. A new runtime is one module and one row here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

from edgeship.build.backends.base import Artifact, Backend, Job, Samples, Scheme
from edgeship.build.backends.watched import WatchedBackend
from edgeship.build.survival import journal
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.manifest import InputContract

__all__ = ["BACKENDS", "Artifact", "Backend", "Job", "Samples", "Scheme", "open_backend"]

#: Runtime → module and class; imported when it is needed.
BACKENDS: Final[dict[str, tuple[str, str]]] = {
    "litert": ("edgeship.build.backends.litert", "LiteRtBackend"),
    "onnxruntime": ("edgeship.build.backends.onnx_runtime", "OnnxRuntimeBackend"),
    "openvino": ("edgeship.build.backends.open_vino", "OpenVinoBackend"),
}


def open_backend(runtime: str, contracts: Sequence[InputContract] = ()) -> Backend:
    """The backend of a runtime.

    Args:
        runtime: which one.
        contracts: of the inputs, whose folded steps become part of every file.

    Raises:
        ConversionError: nothing here builds for that runtime, or its libraries are not installed.
    """
    if runtime not in BACKENDS:
        raise ConversionError(f"nothing here builds for the runtime {runtime}", target=runtime)
    module, name = BACKENDS[runtime]
    try:
        backend: Backend = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise ConversionError(f"{error.name} is not installed", target=runtime,
                              next_step=f"pip install {error.name}") from error  # fmt: skip
    if any(each.folded for each in contracts):
        from edgeship.build.backends.folded import FoldedBackend

        backend = FoldedBackend(backend, contracts)
    return WatchedBackend(runtime, backend) if journal.is_kept() else backend
