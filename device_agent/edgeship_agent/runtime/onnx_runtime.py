"""ONNX Runtime on the CPU as an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgeship_agent.contract.errors import EngineError
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

#: Every exception that ONNX Runtime's native part defines, and what its Python part raises.
_FOREIGN: Final[tuple[type[BaseException], ...]] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
)
_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
#: ONNX Runtime's errors are raised; it need not print them as well.
_FATAL_ONLY: Final = 4


class OnnxRuntimeEngine:
    """An ``.onnx`` file with its inputs, and every output of known size, bound to fixed arrays beforehand."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        self._file = model
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session_options.inter_op_num_threads = 1
        session_options.log_severity_level = _FATAL_ONLY
        if options.reference:  # source: onnxruntime_session_options_config_keys.h
            session_options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(model), session_options, providers=["CPUExecutionProvider"]
            )
            nodes = (self._session.get_inputs(), self._session.get_outputs())
        except _FOREIGN as error:
            raise EngineError(f"ONNX Runtime refused the model: {_cause(error)}", file=model) from error
        self._signature = _signature(nodes[0], nodes[1], model)
        self._input_buffers = [np.zeros(info.shape, info.dtype) for info in self._signature.inputs]
        self._output_buffers: list[Array | None] = [
            None if -1 in info.shape else np.zeros(info.shape, info.dtype) for info in self._signature.outputs
        ]
        self._places = places_of(self._input_buffers)
        self._unsized = [info.name for info in self._signature.outputs if -1 in info.shape]
        self._binding: Any = self._bind()
        self._run_bound: Callable[[], object] | None = _bare_call(self._session, self._binding)

    def _bind(self) -> Any:
        binding = self._session.io_binding()
        for info, buffer in zip(self._signature.inputs, self._input_buffers, strict=True):
            binding.bind_input(info.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for info, output in zip(self._signature.outputs, self._output_buffers, strict=True):
            if output is None:
                binding.bind_output(info.name, "cpu")
            else:
                binding.bind_output(info.name, "cpu", 0, output.dtype, output.shape, output.ctypes.data)
        return binding

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in the file's order."""
        return self._signature

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; see :class:`edgeship_agent.runtime.engine.Engine`."""
        run_bound = self._run_bound
        if run_bound is None:
            raise EngineError("the engine is closed", file=self._file)
        fill(self._places, self._signature.inputs, arrays)
        try:
            if not self._unsized:
                run_bound()
                return copies(self._output_buffers)  # type: ignore[arg-type]
            for name in self._unsized:  # or the next run would be given the last run's array, of the last size
                self._binding.bind_output(name, "cpu")
            run_bound()
            return [
                buffer.copy() if buffer is not None else self._binding.get_outputs()[index].numpy()
                for index, buffer in enumerate(self._output_buffers)
            ]
        except _FOREIGN as error:
            raise EngineError(f"ONNX Runtime failed: {_cause(error)}", file=self._file) from error

    def close(self) -> None:
        """Release the session."""
        self._run_bound = None
        self._binding = None
        self._session = None


def _bare_call(session: Any, binding: Any) -> Callable[[], object]:
    """An inference of what is bound, below ONNX Runtime's Python layer, which looks for GPUs in every call.

    Where a version has no such call, the layer's own is made.
    """
    try:
        return partial(session._sess.run_with_iobinding, binding._iobinding, None)
    except AttributeError:
        return partial(session.run_with_iobinding, binding)


def _signature(inputs: Sequence[Any], outputs: Sequence[Any], model: Path) -> Signature:
    """Signature with the batch axis pinned to 1 wherever the graph gives it the name of an input's batch axis."""
    pinned_names = {node.shape[0] for node in inputs if node.shape and isinstance(node.shape[0], str)}
    infos = [
        TensorInfo(
            name=node.name,
            index=index,
            dtype=_dtype(node, model),
            shape=pinned_shape(
                node.name, [size if isinstance(size, int) and size >= 0 else None for size in node.shape], model
            ),
        )
        for index, node in enumerate(inputs)
    ]
    return Signature(
        inputs=tuple(infos),
        outputs=tuple(
            TensorInfo(
                name=node.name,
                index=index,
                dtype=_dtype(node, model),
                shape=tuple(
                    1 if size in pinned_names else size if isinstance(size, int) else -1 for size in node.shape
                ),
            )
            for index, node in enumerate(outputs)
        ),
    )


def _dtype(node: Any, model: Path) -> str:
    if node.type not in _DTYPES:
        raise EngineError("a tensor type that Edgeship does not run", file=model, key=node.name, got=node.type)
    return _DTYPES[node.type]


def _cause(error: BaseException) -> str:
    """ONNX Runtime's message without its prefix and without what follows the first line."""
    line = str(error).strip().split("\n", 1)[0]
    return line.rsplit("[ONNXRuntimeError] : ", 1)[-1] or type(error).__name__
