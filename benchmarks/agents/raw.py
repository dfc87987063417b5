"""The runtimes themselves, called as their makers mean it: one thread, buffers bound once, input in, output out.

Nothing of the agent is imported here: the memory of a process that runs this is what the agent's is compared with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RawCall = Callable[[Array], object]


def open_raw(runtime: str, file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    """A call of the runtime; shape and dtype of what it takes."""
    return {"onnxruntime": _onnxruntime, "litert": _litert, "openvino": _openvino}[runtime](file)


def raw_of(held: Any) -> RawCall:
    """A call of the very runtime that one of the agent's engines holds, of one input.

    Two of the same file differ by where their memory lies: ResNet-8 on LiteRT by several microseconds.
    """
    if hasattr(held, "_interpreter"):
        # its own invoke() asks whether it may and runs, and would refuse, as the engine holds calls
        return _tensors_call(held._interpreter, lambda: (held._interpreter._safe_to_run(), held._calls[1]()))
    (place,), outputs = held._input_buffers, held._output_buffers
    if hasattr(held, "_session"):
        return _copying_call(place, partial(held._session.run_with_iobinding, held._binding), outputs)
    return _copying_call(place, partial(held._request.infer, share_outputs=True), outputs)


def _copying_call(place: Array, run: Callable[[], object], outputs: Sequence[Array]) -> RawCall:
    def call(array: Array) -> object:
        np.copyto(place, array)
        run()
        return [output.copy() for output in outputs]

    return call


def _tensors_call(interpreter: Any, invoke: Callable[[], object]) -> RawCall:
    (detail,) = interpreter.get_input_details()
    index, outputs = detail["index"], [output["index"] for output in interpreter.get_output_details()]

    def call(array: Array) -> object:
        interpreter.set_tensor(index, array)
        invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    return call


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

    call = _copying_call(place, partial(session.run_with_iobinding, binding), outputs)
    return call, place.shape, place.dtype.name


def _litert(file: Path) -> tuple[RawCall, tuple[int, ...], str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    call = _tensors_call(interpreter, interpreter.invoke)
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

    call = _copying_call(place, partial(request.infer, share_outputs=True), [output])
    return call, place.shape, place.dtype.name
