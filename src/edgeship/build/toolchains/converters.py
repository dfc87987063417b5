"""ONNX → TFLite by onnx2tf's ``flatbuffer_direct`` backend, in its own environment and process."""

from __future__ import annotations

from pathlib import Path

from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConversionError


def convert_onnx(model: Path, folder: Path, *, timeout_s: float = workers.TIMEOUT_S) -> Path:
    """Convert a private copy of an ONNX file.

    Args:
        model: the copy; onnx2tf rewrites its input file in place, so never hand it the user's.
        folder: for what it writes.
        timeout_s: how long it may take, in seconds.

    Returns:
        The float32 ``.tflite`` file.

    Raises:
        ConversionError: it failed, wrote nothing, lowered an operator to a custom one, or took too long. A file that
            it leaves beside an error is not used.
    """
    request = {"model": str(model), "folder": str(folder)}
    answer = workers.call("onnx2tf", request, timeout_s=timeout_s, folder=folder.parent)
    if custom := answer.get("custom_ops"):
        raise ConversionError(
            f"onnx2tf lowered {', '.join(custom)} to custom operators that LiteRT does not have",
            op=str(custom[0]), target="litert",
        )  # fmt: skip
    found = folder / f"{model.stem}_float32.tflite"
    if not found.is_file():
        raise ConversionError("onnx2tf ended without an error and without a file", target="litert")
    return found
