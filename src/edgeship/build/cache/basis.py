"""What every remembered result depends on besides its own inputs: our code, the tools, the machine's arithmetic."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import platformdirs

from edgeship.build.cache.store import Cache
from edgeship.build.progress import Progress
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.installed import installed_version
from edgeship_agent.runtime.isa import isa_class, isa_features

ROOT_VARIABLE: Final = "EDGESHIP_CACHE"
#: What the variable holds where nothing shall be remembered.
NOWHERE: Final = "none"
#: Code that takes part in a result: a change in any line of it makes everything anew, so that no pass can be forgotten.
_CODE: Final = ("edgeship.build", "edgeship_agent.runtime", "edgeship_agent.processing")
#: Distributions whose version takes part. Toolchains of their own are in their locks, which are part of the code.
_TOOLS: Final = (
    *("numpy", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "scipy", "pillow"),
    *(
        "torch",
        "onnxscript",
        "tensorflow",
        "tf-keras",
        "scikit-learn",
        "skl2onnx",
        "onnxmltools",
        "xgboost",
        "lightgbm",
        "tf2onnx",
    ),
)


def root() -> Path:
    """The cache's folder: what ``EDGESHIP_CACHE`` names, else in the user's cache folder."""
    named = os.environ.get(ROOT_VARIABLE, "")
    return Path(named) if named else Path(platformdirs.user_cache_dir("edgeship")) / "builds"


def open_cache(progress: Progress, *, enabled: bool = True) -> Cache:
    """The user's cache, or one that remembers nothing."""
    if not enabled or os.environ.get(ROOT_VARIABLE) == NOWHERE:
        return Cache(None)
    return Cache(root(), basis(), lambda sentence: progress.step("cache", sentence, "note"))


def basis() -> dict[str, Any]:
    """What a result of this machine and this installation depends on."""
    return {
        "code": code_digest(),
        "versions": versions(),
        "python": platform.python_version(),
        "isa": [isa_class(), *sorted(isa_features())],
    }


def code_digest() -> str:
    """sha256 over the source text of everything that takes part, locks of toolchains included."""
    state = hashlib.sha256()
    for package in _CODE:
        folder = Path(str(resources.files(package)))
        for file in sorted(folder.rglob("*")):
            if file.suffix in {".py", ".lock"}:
                state.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode())
                state.update(hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


def versions() -> dict[str, str]:
    """Distribution → version, of those that are installed."""
    return {name: version for name in _TOOLS if (version := installed_version(name)) is not None}


def samples_digest(samples: Sequence[Mapping[str, Array]]) -> str:
    """sha256 over samples in order: names, types, shapes and bytes."""
    state = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            array = sample[name]
            state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            state.update(array.tobytes())
    return state.hexdigest()
