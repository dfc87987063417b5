"""An ONNX graph whose sizes are computed from fixed ones, with those computed: for a look at what flows through it.

Shape inference alone does not follow numbers through a graph; ONNX Runtime computes what follows from constants when it
loads a model. It is asked in a throw-away process, since a file may kill it: ``python -m edgeship.build.fixed_sizes
MODEL FOLDED``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_TIMEOUT_S: Final = 120
#: Larger models are not written once more.
_MOST_BYTES: Final = 500_000_000


def folded(model: Path, folder: Path, weight_bytes: int) -> Any | None:
    """The graph as ONNX Runtime sees it, for a batch of one.

    Args:
        model: an ONNX file, its inputs fixed but for the batch.
        folder: private.
        weight_bytes: of the model.

    Returns:
        A ``ModelProto``, or None where it is too large, or ONNX Runtime does not load it.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if weight_bytes > _MOST_BYTES:
        return None
    file = folder / "folded.onnx"
    command = [sys.executable, "-m", "edgeship.build.fixed_sizes", str(model), str(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
        return None if done.returncode else onnx.load(file, load_external_data=False)
    except (subprocess.TimeoutExpired, OSError, DecodeError):
        return None


def main() -> int:
    """Exit code: 0 and the file is written, or 1."""
    import onnx
    import onnxruntime

    model, file = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = file
    for value in onnx.load(model, load_external_data=False).graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and axes[0].dim_param:
            options.add_free_dimension_override_by_name(axes[0].dim_param, 1)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
