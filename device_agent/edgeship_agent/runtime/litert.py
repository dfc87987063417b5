"""LiteRT (the successor of TensorFlow Lite) as an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeship_agent.contract.errors import EngineError
from edgeship_agent.runtime.engine import Array, EngineOptions, Signature, TensorInfo, check_arrays, pinned_shape

#: What LiteRT raises, for a bad file as for a bad call.
_FOREIGN: Final = (ValueError, RuntimeError, TypeError)


class LiteRtEngine:
    """A ``.tflite`` file, called by set, invoke, get: no view of a tensor is ever held, which LiteRT would refuse."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        self._file = model
        try:
            self._interpreter: Any = Interpreter(model_path=str(model), num_threads=options.threads)
            self._interpreter.allocate_tensors()
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        except _FOREIGN as error:
            raise EngineError(f"LiteRT refused the model: {_first_line(error)}", file=model) from error
        for detail in inputs:
            pinned_shape(detail["name"], [None if size < 0 else size for size in detail["shape_signature"]], model)
        self._input_indices = [detail["index"] for detail in inputs]
        self._output_indices = [detail["index"] for detail in outputs]
        self._signature = Signature(
            inputs=tuple(_info(index, detail) for index, detail in enumerate(inputs)),
            outputs=tuple(_info(index, detail) for index, detail in enumerate(outputs)),
        )

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in the file's order."""
        return self._signature

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; see :class:`edgeship_agent.runtime.engine.Engine`."""
        check_arrays(self._signature.inputs, arrays)
        interpreter = self._interpreter
        if interpreter is None:
            raise EngineError("the engine is closed", file=self._file)
        try:
            for index, array in zip(self._input_indices, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in self._output_indices]
        except _FOREIGN as error:
            raise EngineError(f"LiteRT failed: {_first_line(error)}", file=self._file) from error

    def close(self) -> None:
        """Release the interpreter."""
        self._interpreter = None


def _info(index: int, detail: dict[str, Any]) -> TensorInfo:
    scale, zero_point = detail["quantization"]
    return TensorInfo(
        name=detail["name"],
        index=index,
        dtype=np.dtype(detail["dtype"]).name,
        shape=tuple(int(size) for size in detail["shape"]),
        scale=float(scale),
        zero_point=int(zero_point),
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
