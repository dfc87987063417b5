"""LiteRT (the successor of TensorFlow Lite) as an engine; tflite-runtime, its predecessor, where there is no LiteRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship_agent.contract.errors import ConfigError, EngineError
from edgeship_agent.runtime.engine import Array, EngineOptions, Signature, TensorInfo, check_arrays, pinned_shape

_NUMPY_OF_TFLITE: Final = 2
try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    _NAME = "LiteRT"
except ModuleNotFoundError as missing:
    # its predecessor, where it is all there is, such as armhf; with numpy 2 it takes the whole process along
    try:
        is_there = importlib.util.find_spec("tflite_runtime") is not None
        if is_there and int(np.__version__.split(".")[0]) >= _NUMPY_OF_TFLITE:
            raise ConfigError("tflite-runtime was built for numpy 1", key="numpy", expected="numpy below 2",
                              got=np.__version__, next_step="pip install 'numpy<2'")  # fmt: skip
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError:
        raise missing from None
    _NAME = "tflite-runtime"
#: Operators on variables that live outside tensors: nothing but loading the file again sets them back.
_RESOURCES: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
#: Operators with tensors that keep their values. Source: TensorFlow Lite, kernels that call ``IsVariableTensor``.
_KEEPING: Final = frozenset({"LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "RNN",
                             "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "SVDF"})  # fmt: skip
#: What LiteRT raises, for a bad file as for a bad call.
_FOREIGN: Final = (ValueError, RuntimeError, TypeError)
_Calls = tuple[Callable[[int, Array], object], Callable[[], object], Callable[[int, int], Array]]


class LiteRtEngine:
    """A ``.tflite`` file, called by set, invoke, get: no view of a tensor is ever held, which LiteRT would refuse.

    Where the file keeps a state, every call begins with a new one; steps that belong together go into one call.
    """

    def __init__(self, model: Path, options: EngineOptions) -> None:
        self._file = model
        self._options = options
        self._was_used = False
        try:
            self._interpreter: Any = self._loaded()
            self._calls: _Calls | None = _bare_calls(self._interpreter)
            operators = {detail["op_name"] for detail in self._interpreter._get_ops_details()}
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        except _FOREIGN as error:
            raise EngineError(f"{_NAME} refused the model: {_first_line(error)}", file=model) from error
        self.state = "resources" if operators & _RESOURCES else "variables" if operators & _KEEPING else ""
        self._begins_anew = bool(self.state)
        for detail in inputs:
            pinned_shape(detail["name"], [None if size < 0 else size for size in detail["shape_signature"]], model)
        self._output_indices = [detail["index"] for detail in outputs]
        self._signature = Signature(
            inputs=tuple(_info(index, detail) for index, detail in enumerate(inputs)),
            outputs=tuple(_info(index, detail) for index, detail in enumerate(outputs)),
        )
        #: Number, index in the interpreter and dtype of every input: what is looked at in every call.
        self._wanted = [
            (info.index, detail["index"], np.dtype(info.dtype))
            for detail, info in zip(inputs, self._signature.inputs, strict=True)
        ]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in the file's order."""
        return self._signature

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference; see :class:`edgeship_agent.runtime.engine.Engine`."""
        if self._begins_anew:
            self._begin()
        if len(arrays) != len(self._wanted):
            check_arrays(self._signature.inputs, arrays)
        calls = self._calls
        if calls is None:
            raise EngineError("the engine is closed", file=self._file)
        set_tensor, invoke, get_tensor = calls
        try:
            for number, index, dtype in self._wanted:
                array = arrays[number]
                if array.dtype is not dtype:
                    array = self._native(arrays, number)
                set_tensor(index, array)
            invoke()
            results = []
            for index in self._output_indices:
                results.append(get_tensor(index, 0))  # noqa: PERF401 (see fill() of the engines: no iterators here)
        except _FOREIGN as error:
            check_arrays(self._signature.inputs, arrays)  # LiteRT looks at shapes too, in words of its own
            raise EngineError(f"{_NAME} failed: {_first_line(error)}", file=self._file) from error
        return results

    def _native(self, arrays: Sequence[Array], number: int) -> Array:
        """An array in this processor's byte order: LiteRT copies bytes as they are."""
        check_arrays(self._signature.inputs, arrays)
        return arrays[number].astype(arrays[number].dtype.newbyteorder("="), copy=False)

    def run_steps(self, steps: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Inferences one after the other, from a new state that goes from each to the next.

        Raises:
            EngineError: a wrong array, or the runtime failed.
        """
        self._begin()
        self._begins_anew = False
        try:
            return [self.run(arrays) for arrays in steps]
        finally:
            self._begins_anew = bool(self.state)

    def _loaded(self) -> Any:
        options = self._options
        kernels = OpResolverType.BUILTIN_REF if options.reference else OpResolverType.AUTO
        interpreter = Interpreter(model_path=str(self._file), num_threads=options.threads,
                                  experimental_op_resolver_type=kernels)  # fmt: skip
        interpreter.allocate_tensors()
        return interpreter

    def _begin(self) -> None:
        """A state as new, as that of a file just loaded is."""
        was_used, self._was_used = self._was_used, True
        if not was_used or self._interpreter is None:
            return
        try:
            if self.state == "resources":
                self._interpreter = self._loaded()
                self._calls = _bare_calls(self._interpreter)
            elif self.state == "variables":
                self._interpreter.reset_all_variables()
        except _FOREIGN as error:
            raise EngineError(f"{_NAME} failed: {_first_line(error)}", file=self._file) from error

    def close(self) -> None:
        """Release the interpreter."""
        self._calls = None
        self._interpreter = None


def _bare_calls(interpreter: Any) -> _Calls:
    """To set a tensor, to invoke, and to get a tensor of a subgraph, below the interpreter's Python layer.

    That layer looks for views of tensors, of which this engine holds none. Where a version has no such calls, the
    layer's own are made.
    """
    native = getattr(interpreter, "_interpreter", None)
    try:
        return native.SetTensor, native.Invoke, native.GetTensor  # type: ignore[union-attr]
    except AttributeError:
        return interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor


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
