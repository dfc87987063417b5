"""Trained models of every supported format, read into one shape."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship.build.sources.model import SourceModel
from edgeship_agent.contract.errors import InputError

__all__ = ["SourceModel", "load"]

#: File suffixes that are read.
FORMATS: Final = {".onnx": "onnx"}


def load(path: Path) -> SourceModel:
    """Read a trained model.

    Raises:
        InputError: no such file, an unknown format, or a damaged file.
        ConversionError: it holds an operator that nothing here can run.
    """
    if not path.is_file():
        raise InputError("no such model file", file=path, next_step="check the path")
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            "unknown model format",
            file=path,
            expected=" | ".join(FORMATS),
            got=path.suffix or "no suffix",
            next_step="export the model as ONNX, with torch.onnx.export, tf2onnx or skl2onnx",
        )
    from edgeship.build.sources import onnx

    return onnx.load(path)
