"""The runtimes themselves, called as their makers mean it: one thread, buffers bound once, input in, output out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeship_agent.runtime.engine import Engine

Array = np.ndarray[Any, np.dtype[Any]]
RawCall = Callable[[Array], object]


def open_raw(runtime: str, file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    """A call of the runtime; shape and dtype of what it takes."""
    return {"onnxruntime": _onnxruntime, "litert": _litert, "openvino": _openvino}[runtime](file)


def _onnxruntime(file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # as the agent does: its thread and memory are not the runtime's
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    (node,) = session.get_inputs()
    place = np.zeros(node.shape, dtypes[node.type])
    outputs = [np.zeros(output.shape, np.float32) for output in session.get_outputs()]
    binding = session.io_binding()
    binding.bind_input(node.name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
    for output, array in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def call(array: Array) -> object:
        np.copyto(place, array)
        session.run_with_iobinding(binding)
        return [output.copy() for output in outputs]

    return call, place.shape, place.dtype.name


def _litert(file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    index, outputs = detail["index"], [output["index"] for output in interpreter.get_output_details()]

    def call(array: Array) -> object:
        interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    return call, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name


def _openvino(file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    compiled = openvino.compile_model(openvino.Core().read_model(str(file)), "CPU", settings)
    request: Any = compiled.create_infer_request()
    place = np.zeros(list(compiled.inputs[0].shape), np.float32)
    output = np.zeros(list(compiled.outputs[0].shape), np.float32)
    request.set_input_tensor(0, openvino.Tensor(place, shared_memory=True))
    request.set_output_tensor(0, openvino.Tensor(output, shared_memory=True))

    def call(array: Array) -> object:
        np.copyto(place, array)
        request.infer(share_outputs=True)
        return output.copy()

    return call, place.shape, place.dtype.name


def raw_of(engine: Engine) -> RawCall:
    """A call of the very runtime that an engine of one input holds, through the layers that its makers offer.

    Two of the same file differ by where their memory lies: ResNet-8 on LiteRT by several microseconds.
    """
    ways: dict[str, Callable[[Any], RawCall]] = {
        "OnnxRuntimeEngine": _bound_session,
        "LiteRtEngine": _held_interpreter,
        "OpenVinoEngine": _held_request,
    }
    return ways[type(engine).__name__](engine)


def _bound_session(engine: Any) -> RawCall:
    session, binding = engine._session, engine._binding
    (place,), outputs = engine._input_buffers, engine._output_buffers

    def call(array: Array) -> object:
        np.copyto(place, array)
        session.run_with_iobinding(binding)
        return [output.copy() for output in outputs]

    return call


def _held_interpreter(engine: Any) -> RawCall:
    """As :func:`_litert`; but ``invoke`` asks whether it may and runs, and would refuse, as the engine holds calls."""
    interpreter, (_, invoke, _) = engine._interpreter, engine._calls
    (detail,) = interpreter.get_input_details()
    index, outputs = detail["index"], [output["index"] for output in interpreter.get_output_details()]

    def call(array: Array) -> object:
        interpreter.set_tensor(index, array)
        interpreter._safe_to_run()
        invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    return call


def _held_request(engine: Any) -> RawCall:
    request, (place,), outputs = engine._request, engine._input_buffers, engine._output_buffers

    def call(array: Array) -> object:
        np.copyto(place, array)
        request.infer(share_outputs=True)
        return [output.copy() for output in outputs]

    return call
