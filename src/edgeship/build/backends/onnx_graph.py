"""An ONNX file's operators, weights and tensors, for the search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgeship.build.backends.base import Samples
from edgeship.build.search.graph import Layer, Operator, pair, planar
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Array

_FATAL_ONLY: Final = 4
#: Operators with weights at their second place → the axis that counts their outputs.
_WEIGHTED: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1, "LSTM": 0, "GRU": 0, "RNN": 0}
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}


class OnnxGraph:
    """A float ``.onnx`` file.

    Args:
        model: the file; every node is named.
        inputs: how the source's inputs reach it.
    """

    def __init__(self, model: Path, inputs: Sequence[Binding]) -> None:
        self._document = onnx.load(str(model))
        self._inputs = inputs
        self._constants = {tensor.name: tensor for tensor in self._document.graph.initializer}
        self._readers = Counter(name for node in self._document.graph.node for name in set(node.input))

    def operators(self) -> tuple[Operator, ...]:
        """In the order of their execution."""
        return tuple(
            Operator(
                name=node.name,
                kind=node.op_type,
                inputs=tuple(name for name in node.input if name and name not in self._constants),
                outputs=tuple(name for name in node.output if name),
                layer=self._layer(node),
                fan_in=self._fan_in(node),
            )
            for node in self._document.graph.node
        )

    def watch(self, samples: Samples) -> Iterator[dict[str, Array]]:
        """Every float tensor of every sample, the graph's inputs among them."""
        watched = onnx.ModelProto()
        watched.CopyFrom(self._document)
        known = {value.name for value in watched.graph.output}
        for node in watched.graph.node:
            for name in node.output:
                if name and name not in known:
                    watched.graph.output.append(helper.make_empty_tensor_value_info(name))
                    known.add(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for sample in samples:
            fed = {each.artifact_name: np.asarray(to_artifact(each, sample[each.name]), order="C")
                   for each in self._inputs}  # fmt: skip
            found = {**fed, **dict(zip(names, session.run(None, fed), strict=True))}
            yield {name: array for name, array in found.items() if getattr(array, "dtype", None) == np.float32}

    def write(self, weights: Mapping[str, Array], biases: Mapping[str, Array], file: Path) -> None:
        """The same file with other weights, and with something added to biases.

        Args:
            weights: operator → weights in the layout of its layer.
            biases: operator → what its bias gains, [outputs].
            file: where to write.
        """
        document = onnx.ModelProto()
        document.CopyFrom(self._document)
        constants = {tensor.name: tensor for tensor in document.graph.initializer}
        for node in document.graph.node:
            if node.name in weights:
                stored = constants[node.input[1]]
                _put(stored, _stored(node, weights[node.name]).reshape(tuple(stored.dims)))
            if node.name in biases:
                bias = constants[node.input[2]]
                _put(bias, numpy_helper.to_array(bias) + biases[node.name].reshape(tuple(bias.dims)))
        file.write_bytes(document.SerializeToString(deterministic=True))

    def _layer(self, node: Any) -> Layer | None:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or len(node.input) < 2 or self._shared(node.input[1]):
            return None
        constant = self._constants.get(node.input[1])
        if constant is None or constant.data_type != onnx.TensorProto.FLOAT:
            return None
        weight = numpy_helper.to_array(constant)
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        bias = len(node.input) > 2 and node.input[2] in self._constants and not self._shared(node.input[2])
        if node.op_type != "Conv":
            return _product(node, weight, attributes, bias=bias)
        return _convolution(weight, attributes, bias=bias)

    def _fan_in(self, node: Any) -> int:
        """Products that one output value sums, from the weights' sizes; 0 where they are computed."""
        constant = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        if constant is None or len(constant.dims) < 2 or node.op_type not in _WEIGHTED:
            return 0
        sizes = [int(size) for size in constant.dims]
        if node.op_type in {"LSTM", "GRU", "RNN"}:
            hidden = sizes[1] // _GATES[node.op_type]
            return _GATES[node.op_type] * (sizes[2] + hidden)
        if node.op_type == "Gemm":
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            return sizes[1 if turned else 0]
        return sizes[-2] if node.op_type == "MatMul" else math.prod(sizes) // sizes[_WEIGHTED[node.op_type]]

    def _shared(self, name: str) -> bool:
        return self._readers[name] > 1


def _product(node: Any, weight: Array, attributes: Mapping[str, Any], *, bias: bool) -> Layer | None:
    plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    if weight.ndim != 2 or not plain:
        return None
    rows = weight if attributes.get("transB") else weight.T
    return Layer(weight=rows, convolution=False, bias=bias and node.op_type == "Gemm")


def _convolution(weight: Array, attributes: Mapping[str, Any], *, bias: bool) -> Layer | None:
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    dimensions = weight.ndim - 2
    if automatic not in {"NOTSET", "SAME_UPPER", "VALID"} or dimensions not in {1, 2}:
        return None
    ends = attributes.get("pads", (0,) * 2 * dimensions)
    (top, left), (bottom, right) = (pair(each, height=0) for each in (ends[:dimensions], ends[dimensions:]))
    ones = (1,) * dimensions
    return Layer(
        weight=planar(weight),
        convolution=True,
        bias=bias,
        groups=int(attributes.get("group", 1)),
        strides=pair(attributes.get("strides", ones)),
        dilations=pair(attributes.get("dilations", ones)),
        pads=None if automatic == "SAME_UPPER" else ((top, bottom), (left, right)),
    )


def _stored(node: Any, weight: Array) -> Array:
    """Weights in the file's own layout."""
    turned = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not any(each.name == "transB" and each.i for each in node.attribute)
    )
    return weight.T if turned else weight


def _put(tensor: Any, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), tensor.name))
