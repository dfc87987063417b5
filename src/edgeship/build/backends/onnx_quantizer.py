"""ONNX Runtime's quantizer without its loops over channels and over all nodes: the same file, byte for byte.

It works out scales and integers channel by channel in Python, and looks through every node and every constant for each
name: 30,000 channels and 300 operators take it 2.6 s a candidate, and a graph three times as large nine times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import base_quantizer, qdq_quantizer
from onnxruntime.quantization.base_quantizer import QuantizationParams
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer, QDQQuantTensorType
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType, quantize_onnx_initializer

_FLOAT: Final = onnx.TensorProto.FLOAT
_INT8: Final = onnx.TensorProto.INT8


class WholeTensorQuantizer(QDQQuantizer):  # type: ignore[misc]  # the library has no types
    """Takes the library's arguments and quantizes in its manner."""

    model: Any
    tensors_to_quantize: dict[str, Any]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.model = IndexedModel(self.model.model)

    def quantize_model(self) -> Any:
        """The model with its pairs of quantize and dequantize operators."""
        with _named_at_once(self.model):
            return super().quantize_model()

    def _calc_initializer_quant_params(self) -> dict[str, Any]:
        wanted = self.tensors_to_quantize
        ours = {name: axis for name, each in wanted.items() if (axis := self._channels(name, each)) is not None}
        self.tensors_to_quantize = {name: each for name, each in wanted.items() if name not in ours}
        try:
            found: dict[str, Any] = super()._calc_initializer_quant_params()
        finally:
            self.tensors_to_quantize = wanted
        return found | {name: self._by_channel(name, axis) for name, axis in ours.items()}

    def _channels(self, name: str, tensor: Any) -> int | None:
        """The axis of a weight that gets one scale a channel; None for anything else, which the library does itself."""
        constant = self.model.get_initializer(name)
        plain = self.weight_qType == _INT8 and self.min_real_range is None and not self.tensor_quant_overrides
        if constant is None or not plain or tensor.axis is None or tensor.tensor_type is not QDQQuantTensorType.WEIGHT:
            return None
        filled = constant.data_type == _FLOAT and all(constant.dims)
        rank = len(constant.dims)
        return int(tensor.axis) % rank if filled and -rank <= tensor.axis < rank else None

    def _by_channel(self, name: str, axis: int) -> Any:
        """Symmetric scales, one a channel; where there is nothing but zeros, or next to nothing, 1."""
        values = numpy_helper.to_array(self.model.get_initializer(name))
        low, high = get_qmin_qmax_for_qType(_INT8, self.reduce_range, symmetric=True)
        largest = np.abs(values).max(axis=tuple(other for other in range(values.ndim) if other != axis))
        scales = 2.0 * largest.astype(np.float64) / (float(high) - float(low))
        scales = np.where(scales < np.finfo(np.float32).tiny, 1.0, scales).astype(np.float32)
        return QuantizationParams(zero_point=np.zeros(len(scales), np.int8), scale=scales, quant_type=_INT8, axis=axis)


class IndexedModel(ONNXModel):  # type: ignore[misc]  # the library has no types
    """Knows its constants by name, and who reads what; subgraphs are nobody's, as in the library."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._index()

    def _index(self) -> None:
        self._readers: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            self._add(node)

    def _add(self, node: Any) -> None:
        for name in dict.fromkeys(node.input):
            self._readers.setdefault(name, []).append(node)

    def add_node(self, node: Any) -> None:
        """Append a copy."""
        super().add_node(node)
        self._add(self.model.graph.node[-1])

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        """Whoever read the one reads the other."""
        for node in (moved := self._readers.pop(old_input_name, [])):
            self.replace_node_input(node, old_input_name, new_input_name)
        self._readers.setdefault(new_input_name, []).extend(moved)

    def replace_input_of_nodes(self, old_input_name: str, new_input_name: str, node_names_set: set[str]) -> None:
        """Some of those that read the one read the other."""
        super().replace_input_of_nodes(old_input_name, new_input_name, node_names_set)
        self._index()

    def get_initializer(self, name: str) -> Any:
        """A constant, or None."""
        return self._constants.get(name)

    def add_initializer(self, tensor: Any) -> None:
        """Append a copy, unless the name is taken."""
        if tensor.name not in self._constants:
            self.initializer_extend([tensor])

    def initializer_extend(self, inits: Sequence[Any]) -> None:
        """Append copies."""
        for tensor in inits:
            self.model.graph.initializer.append(tensor)
            self._constants[tensor.name] = self.model.graph.initializer[-1]

    def remove_initializer(self, tensor: Any) -> None:
        """Take a constant away."""
        self._constants.pop(tensor.name, None)
        super().remove_initializer(tensor)


@contextmanager
def _named_at_once(model: IndexedModel) -> Iterator[None]:
    """While it lasts the library's functions look constants up in the index and quantize whole weights."""
    find, quantize = qdq_quantizer.find_by_name, qdq_quantizer.quantize_onnx_initializer

    def find_indexed(name: str, _constants: Any) -> Any:
        return model.get_initializer(name)  # the library looks for nothing else

    qdq_quantizer.find_by_name = base_quantizer.find_by_name = find_indexed
    qdq_quantizer.quantize_onnx_initializer = _quantized
    try:
        yield
    finally:
        qdq_quantizer.find_by_name = base_quantizer.find_by_name = find
        qdq_quantizer.quantize_onnx_initializer = quantize


def _quantized(weight: Any, kind: Any, zero_point: Any, scale: Any, axis: int | None = None, **more: Any) -> Any:
    """Integers of a weight: of all its channels at once, each value by its channel's scale."""
    if axis is None or more.get("block_size"):
        return quantize_onnx_initializer(weight, kind, zero_point, scale, axis, **more)
    column = [-1 if place == axis else 1 for place in range(len(weight.dims))]
    spread = [np.broadcast_to(each.reshape(column), tuple(weight.dims)).ravel() for each in (zero_point, scale)]
    return quantize_onnx_initializer(weight, kind, *spread)
