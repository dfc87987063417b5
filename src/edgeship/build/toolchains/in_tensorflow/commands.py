"""The commands of the tensorflow toolchain's worker: describe, run, convert."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from . import convert as convert_to
from . import models
from .files import Refused, first_line, nodes_of

Tell = Callable[[int, int], None]
#: Bookkeeping, not computing.
_QUIET: Final = frozenset({"Const", "Placeholder", "Identity", "NoOp", "IdentityN"})
_QUANTIZED: Final = ("FakeQuant", "Quantize", "Dequantize", "Requantize")


def describe(request: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    """Inputs, outputs and size of a model."""
    model = _load(request)
    single = model.trace(1)
    models.check_stateless(single)
    graph = _frozen(single)
    nodes = list(nodes_of(graph))
    unknown = any(each.shape.rank is None for each in single.structured_outputs.values())
    fixed = {key: each.shape for key, each in single.structured_outputs.items()}
    fixed |= _run_once(single, model) if unknown else {}
    free = {key: each.shape for key, each in model.trace(None).structured_outputs.items()} if _is_free(model) else fixed
    outputs = [
        {"name": name, "dtype": each.dtype.name, "shape": _output_shape(fixed[key], free[key])}
        for name, (key, each) in zip(model.outputs, sorted(single.structured_outputs.items()), strict=True)
    ]
    return {
        "inputs": [{"name": end.name, "dtype": end.dtype, "shape": list(end.shape or ())} for end in model.inputs],
        "outputs": outputs,
        "operators": sum(node.op not in _QUIET for node in nodes),
        "parameters": sum(_weights(node) for node in nodes),
        "quantized": any(node.op.startswith(_QUANTIZED) for node in nodes),
        "notes": list(model.notes),
    }


def run(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Every sample on its own, in float32 arithmetic on one thread."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = _load(request)
    function = model.trace(1)
    models.check_stateless(function)
    samples = _samples(Path(request["inputs"]), model)
    results: dict[str, list[Any]] = {}
    total = len(samples[0])
    for index in range(total):
        given = [tf.constant(array[index], dtype=end.dtype) for array, end in zip(samples, model.inputs, strict=True)]
        try:
            answer = function(*given)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise Refused(f"the model does not run: {first_line(error)}") from error
        for key, value in answer.items():
            results.setdefault(key, []).append(value.numpy())
        tell(index + 1, total)
    np.savez(request["outputs"], **{f"o{int(key[1:])}": _stack(arrays) for key, arrays in results.items()})
    return {"samples": total}


def convert(request: dict[str, Any], _tell: Tell) -> dict[str, Any]:
    """One file for another runtime, with the same inputs and outputs in the same order."""
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    wanted = request["to"]
    if request["format"] == "tflite":
        if wanted != "onnx":
            raise Refused(f"the tensorflow toolchain does not convert .tflite to {wanted}", kind="conversion")
        return convert_to.tflite_to_onnx(Path(request["model"]), folder / "model.onnx")
    model = _load(request)
    models.check_stateless(model.trace(1))
    if wanted == "onnx":
        return convert_to.to_onnx(model, folder / "model.onnx")
    if wanted == "tflite":
        return convert_to.to_tflite(model, folder / "model.tflite")
    raise Refused(f"the tensorflow toolchain does not convert to {wanted}", kind="conversion")


COMMANDS: Final[dict[str, Callable[[dict[str, Any], Tell], dict[str, Any]]]] = {
    "describe": describe,
    "run": run,
    "convert": convert,
}


def _load(request: dict[str, Any]) -> models.Model:
    return models.load(Path(request["model"]), request["format"], request.get("options") or {})


def _is_free(model: models.Model) -> bool:
    return any(end.shape and end.shape[0] == -1 for end in model.inputs)


def _frozen(concrete: Any) -> Any:
    try:
        return convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def()
    except (ValueError, tf.errors.OpError) as error:
        raise Refused(f"the model's weights cannot be frozen: {first_line(error)}") from error


def _run_once(function: Any, model: models.Model) -> dict[str, Any]:
    """Output → its shape for one sample of zeros, where the graph alone does not say how many axes there are."""
    zeros = [tf.zeros([1 if size == -1 else size for size in end.shape or ()], end.dtype) for end in model.inputs]
    try:
        return {key: value.shape for key, value in function(*zeros).items()}
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise Refused(f"the model does not run: {first_line(error)}") from error


def _output_shape(single: Any, free: Any) -> list[int]:
    """As for one sample, with -1 where the batch is, or where the size depends on the data."""
    sizes = [-1 if size is None else int(size) for size in single.as_list()]
    if sizes and (free.rank is None or free.as_list()[0] is None):
        sizes[0] = -1
    return sizes


def _weights(node: Any) -> int:
    """Numbers in a constant; single ones, such as a batch norm's epsilon, are no weights."""
    if node.op != "Const" or not tf.as_dtype(node.attr["dtype"].type).is_floating:
        return 0
    axes = node.attr["value"].tensor.tensor_shape.dim
    return math.prod(axis.size for axis in axes) if axes else 0


def _samples(file: Path, model: models.Model) -> list[Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[f"i{index}"] for index in range(len(model.inputs))]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"the samples cannot be read: {first_line(error)}") from error


def _stack(arrays: list[Any]) -> Any:
    try:
        return np.stack(arrays)
    except ValueError as error:
        raise Refused("an output's shape changes from sample to sample") from error
