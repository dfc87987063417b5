"""Weights of which a converter wrote a copy for each operator that reads them, kept once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgeship.build.backends.tflite_edit import edited

#: Where less of all values would go, the file is left as the converter wrote it.
_LEAST_SAVED: Final = 0.01


def with_shared_constants(data: bytes) -> bytes:
    """The same model with one tensor in the place of equal constants.

    Steps of a recurrent layer that was written out share their weights: 652 kB become 93 kB for 25 steps of an LSTM
    with 32 values. Files of several graphs and with values outside the flatbuffer are left as they are.
    """
    return edited(data, _share)


def _share(model: Any, _schema: Any) -> bool:
    if len(model.subgraphs) != 1 or any(buffer.offset for buffer in model.buffers):
        return False
    graph = model.subgraphs[0]
    if any(tensor.buffer >= len(model.buffers) for tensor in graph.tensors):
        return False  # damaged: the runtime says so in its own words
    same, saved = _equal(graph, model.buffers)
    if saved < _LEAST_SAVED * sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers):
        return False
    kept = [index for index in range(len(graph.tensors)) if index not in same]
    new = {index: place for place, index in enumerate(kept)}
    new |= {index: new[first] for index, first in same.items()}
    renumber(model, graph, new)
    graph.tensors = [graph.tensors[index] for index in kept]
    empty_unread(model)
    return True


def empty_unread(model: Any) -> None:
    """Drop the values that no tensor of a model with one graph has."""
    read = {tensor.buffer for tensor in model.subgraphs[0].tensors} | {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in read:
            buffer.data = None


def _equal(graph: Any, buffers: Sequence[Any]) -> tuple[dict[int, int], int]:
    """Constants that say what an earlier one says, with the index of that one; and the bytes of their values."""
    ends = {int(index) for index in (*graph.inputs, *graph.outputs)}
    first: dict[tuple[Any, ...], int] = {}
    same: dict[int, int] = {}
    freed: dict[int, int] = {}
    for index, tensor in enumerate(graph.tensors):
        values = buffers[tensor.buffer].data
        if values is None or not len(values) or index in ends or tensor.isVariable or tensor.sparsity:
            continue
        shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
        key = (tensor.type, shape, _scales(tensor.quantization), bytes(values))
        if key not in first:
            first[key] = index
        else:
            same[index] = first[key]
            freed[tensor.buffer] = len(values)
    kept = {tensor.buffer for index, tensor in enumerate(graph.tensors) if index not in same}
    return same, sum(size for buffer, size in freed.items() if buffer not in kept)


def _scales(quantization: Any) -> tuple[Any, ...]:
    if quantization is None or quantization.scale is None:
        return ()
    points = () if quantization.zeroPoint is None else tuple(int(point) for point in quantization.zeroPoint)
    return tuple(float(scale) for scale in quantization.scale), points, int(quantization.quantizedDimension)


def renumber(model: Any, graph: Any, new: dict[int, int]) -> None:
    """Give every reference to a tensor its new number; -1 stands for an input that is left out."""
    for operator in graph.operators:
        for name in ("inputs", "outputs", "intermediates"):
            places = getattr(operator, name)
            if places is not None:
                setattr(operator, name, [new.get(int(index), -1) for index in places])
    graph.inputs = [new[int(index)] for index in graph.inputs]
    graph.outputs = [new[int(index)] for index in graph.outputs]
    for signature in model.signatureDefs or ():
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            entry.tensorIndex = new[int(entry.tensorIndex)]
