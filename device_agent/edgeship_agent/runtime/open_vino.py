"""OpenVINO on the CPU as an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from edgeship_agent.contract.errors import ConfigError, EngineError
from edgeship_agent.runtime.engine import (
    Array,
    EngineOptions,
    Signature,
    TensorInfo,
    copies,
    fill,
    pinned_shape,
    places_of,
)

#: What OpenVINO raises, for a bad file as for a bad call.
_FOREIGN: Final = (RuntimeError, ValueError, TypeError, KeyError)
#: OpenVINO lowers f32 to bf16 on its own where the CPU has AMX, so the arithmetic is always named.
_PRECISION_HINTS: Final = {"fp32": "f32", "int8": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoEngine:
    """An ``.xml`` (with its ``.bin``), ``.onnx`` or ``.tflite`` file with tensors that are set once and shared."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        self._file = model
        try:
            network = openvino.Core().read_model(str(model))
            shapes = {
                index: pinned_shape(_name(port), _sizes(port), model) for index, port in enumerate(network.inputs)
            }
            if any(port.partial_shape.is_dynamic for port in network.inputs):
                network.reshape({index: list(shape) for index, shape in shapes.items()})
            self._compiled: Any = openvino.compile_model(network, "CPU", _settings(options))
            self._request: Any = self._compiled.create_infer_request()
            self._signature = signature_of(self._compiled)
            self._input_buffers = [np.zeros(info.shape, info.dtype) for info in self._signature.inputs]
            self._places = places_of(self._input_buffers)
            self._output_buffers: list[Array | None] = [
                None if -1 in info.shape else np.zeros(info.shape, info.dtype) for info in self._signature.outputs
            ]
            self._is_sized = all(buffer is not None for buffer in self._output_buffers)
            self._share_tensors()
            self._infer: Callable[[], object] | None = _bare_call(self._request)
        except _FOREIGN as error:
            raise EngineError(f"OpenVINO refused the model: {_cause(error)}", file=model) from error

    def _share_tensors(self) -> None:
        for index, buffer in enumerate(self._input_buffers):
            self._request.set_input_tensor(index, openvino.Tensor(buffer, shared_memory=True))
        for index, output in enumerate(self._output_buffers):
            if output is not None:
                self._request.set_output_tensor(index, openvino.Tensor(output, shared_memory=True))

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in the file's order."""
        return self._signature

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; see :class:`edgeship_agent.runtime.engine.Engine`."""
        infer = self._infer
        if infer is None:
            raise EngineError("the engine is closed", file=self._file)
        fill(self._places, self._signature.inputs, arrays)
        try:
            infer()
            if self._is_sized:
                return copies(self._output_buffers)  # type: ignore[arg-type]
            return [
                buffer.copy() if buffer is not None else np.array(self._request.get_output_tensor(index).data)
                for index, buffer in enumerate(self._output_buffers)
            ]
        except _FOREIGN as error:
            raise EngineError(f"OpenVINO failed: {_cause(error)}", file=self._file) from error

    def execution_precision(self) -> str:
        """The arithmetic that OpenVINO says it runs: ``f32``, ``bf16``, ...; stated by the build with every figure."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def close(self) -> None:
        """Release the compiled model."""
        self._infer = None
        self._request = None
        self._compiled = None


def _bare_call(request: Any) -> Callable[[], object]:
    """An inference of tensors that are set already, below OpenVINO's Python layer.

    That layer copies inputs and wraps outputs, of which this engine needs neither: 3 µs of every call, its own and
    those of passing arguments by their names. Where a version has no such call, the layer's own is made.
    """
    bare = getattr(super(type(request), request), "infer", None)
    if bare is not None and "inputs: dict, share_outputs: bool, decode_strings: bool" in (bare.__doc__ or ""):
        return partial(bare, {}, True, False)
    return partial(request.infer, share_outputs=True)


def signature_of(network: Any) -> Signature:
    """Inputs and outputs of a network, compiled or just read."""
    return Signature(
        inputs=tuple(_info(index, port) for index, port in enumerate(network.inputs)),
        outputs=tuple(_info(index, port) for index, port in enumerate(network.outputs)),
    )


def _settings(options: EngineOptions) -> dict[str, object]:
    if options.precision not in _PRECISION_HINTS:
        raise ConfigError("unknown precision", expected=" | ".join(_PRECISION_HINTS), got=options.precision)
    return {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[options.precision],
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # several workers on one device would all be pinned to the same first cores
        "ENABLE_CPU_PINNING": False,
    }


def _sizes(port: Any) -> list[int | None]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return [None, None]
    return [None if size.is_dynamic else size.get_length() for size in shape]


def _name(port: Any) -> str:
    names = sorted(port.get_names())
    return names[0] if names else str(port.get_node().get_friendly_name())


def _info(index: int, port: Any) -> TensorInfo:
    return TensorInfo(
        name=_name(port),
        index=index,
        dtype=np.dtype(port.get_element_type().to_dtype()).name,
        shape=tuple(-1 if size is None else size for size in _sizes(port)),
    )


def _cause(error: BaseException) -> str:
    """The last line of OpenVINO's message: those before it name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
