"""A TFLite file's operators, weights and tensors, for the search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship.build.backends.base import Samples
from edgeship.build.backends.tflite_edit import text_of
from edgeship.build.search.graph import Layer, Operator
from edgeship.build.search.masks import logits_of
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Array

_IDENTIFIER: Final = b"TFL3"
#: Where the biases of operators with weights stand among their inputs.
_BIAS: Final = 2

#: Operators with weights at their second place → the axis that counts their outputs.
_WEIGHTED: Final = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": -1, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0, "CONV_3D": -1,
                    "BATCH_MATMUL": -1, "UNIDIRECTIONAL_SEQUENCE_LSTM": 0}  # fmt: skip
_LSTM_GATES: Final = 4
#: No activation comes near this; converters pad a maximum with the least float32, -3.4e38.
_PADDING: Final = -1e30


class TfliteGraph:
    """A float ``.tflite`` file.

    Args:
        model: the file.
        inputs: how the source's inputs reach it.
    """

    def __init__(self, model: Path, inputs: Sequence[Binding]) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._data = model.read_bytes()
        self._inputs = inputs
        self._schema = schema
        self._model = self._parsed()
        self._graph = self._model.subgraphs[0]
        self._kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        self._names = [text_of(tensor.name) for tensor in self._graph.tensors]

    def operators(self) -> tuple[Operator, ...]:
        """In the order of their execution; an operator's name is that of its first output."""
        return tuple(
            Operator(
                name=self._names[each.outputs[0]],
                kind=self._kind(each),
                inputs=tuple(self._names[index] for index in each.inputs if index >= 0 and not self._constant(index)),
                outputs=tuple(self._names[index] for index in each.outputs),
                layer=self._layer(each),
                fan_in=self._fan_in(each),
            )
            for each in self._graph.operators or ()
            if len(each.outputs)
        )

    def watch(self, samples: Samples) -> Iterator[dict[str, Array]]:
        """Every float tensor of every sample, the graph's inputs among them."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=self._data, num_threads=1, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
        entries = interpreter.get_input_details()
        outputs = {index for each in self._graph.operators or () for index in each.outputs}
        watched = sorted(index for index in {*outputs, *self._graph.inputs}
                         if self._graph.tensors[index].type == self._schema.TensorType.FLOAT32)  # fmt: skip
        logits = logits_of(self.operators())  # what masks a score is no padding
        for sample in samples:
            for each in self._inputs:
                interpreter.set_tensor(entries[each.artifact_index]["index"], to_artifact(each, sample[each.name]))
            interpreter.reset_all_variables()  # samples do not follow one another
            interpreter.invoke()
            held = ((self._names[index], _held(interpreter, index)) for index in watched)
            yield {name: value if name in logits else _without_padding(value) for name, value in held
                   if value is not None}  # fmt: skip

    def write(self, weights: Mapping[str, Array], biases: Mapping[str, Array], file: Path) -> None:
        """The same file with other weights, and with something added to biases.

        Args:
            weights: operator → weights in the layout of its layer.
            biases: operator → what its bias gains, [outputs].
            file: where to write.
        """
        import flatbuffers

        model = self._parsed()
        graph = model.subgraphs[0]
        for each in graph.operators or ():
            name = self._names[each.outputs[0]] if len(each.outputs) else ""
            if name in weights:
                self._put(model, each.inputs[1], _stored(self._kind(each), weights[name]))
            if name in biases:
                self._put(model, each.inputs[_BIAS], self._value(each.inputs[_BIAS]) + biases[name])
        builder = flatbuffers.Builder(len(self._data) + 1024)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        file.write_bytes(bytes(builder.Output()))

    def _parsed(self) -> Any:
        return self._schema.ModelT.InitFromObj(self._schema.Model.GetRootAsModel(self._data, 0))

    def _kind(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        return str(self._kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM"))

    def _constant(self, index: int) -> bool:
        data = self._model.buffers[self._graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def _value(self, index: int) -> Array:
        tensor = self._graph.tensors[index]
        data = bytes(bytearray(self._model.buffers[tensor.buffer].data))
        return np.frombuffer(data, np.float32).reshape([int(size) for size in tensor.shape])

    def _put(self, model: Any, index: int, values: Array) -> None:
        tensor = model.subgraphs[0].tensors[index]
        raw = np.ascontiguousarray(values, dtype=np.float32).tobytes()
        model.buffers[tensor.buffer].data = np.frombuffer(raw, np.uint8)

    def _writable(self, index: int) -> bool:
        """Whether it is a float constant that nobody else reads, not even through a shared buffer."""
        tensor = self._graph.tensors[index]
        if not self._constant(index) or tensor.type != self._schema.TensorType.FLOAT32:
            return False
        return self._users[tensor.buffer] == 1 and self._readers[index] == 1

    @cached_property
    def _users(self) -> Counter[int]:
        """Buffer → how many tensors lie in it."""
        return Counter(int(each.buffer) for graph in self._model.subgraphs for each in graph.tensors)

    @cached_property
    def _readers(self) -> Counter[int]:
        """Tensor → how many operators read it."""
        return Counter(int(index) for each in self._graph.operators or () for index in set(each.inputs))

    def _fan_in(self, operator: Any) -> int:
        """Products that one output value sums, from the weights' sizes; 0 where they are computed."""
        kind = self._kind(operator)
        index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
        if kind not in _WEIGHTED or index < 0 or not self._constant(index):
            return 0
        sizes = [int(size) for size in self._graph.tensors[index].shape]
        if kind == "BATCH_MATMUL":
            return sizes[-1 if operator.builtinOptions.adjY else -2] if len(sizes) > 1 else 0
        if kind == "UNIDIRECTIONAL_SEQUENCE_LSTM":
            return _LSTM_GATES * sum(sizes)
        return math.prod(sizes) // sizes[_WEIGHTED[kind]]

    def _groups(self, operator: Any) -> int:
        """Of a convolution whose weights see a part of the channels each: the file says it by the sizes alone."""
        given, weights = (self._graph.tensors[operator.inputs[place]].shape for place in (0, 1))
        return max(int(given[3]) // int(weights[3]), 1) if given is not None and len(given) == len(weights) else 1

    def _layer(self, operator: Any) -> Layer | None:
        kind = self._kind(operator)
        if kind not in {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} or not self._writable(operator.inputs[1]):
            return None
        weight = self._value(operator.inputs[1])
        bias = len(operator.inputs) > _BIAS and operator.inputs[_BIAS] >= 0 and self._writable(operator.inputs[_BIAS])
        if kind == "FULLY_CONNECTED":
            return Layer(weight=weight, convolution=False, bias=bias, packed=True)
        options = operator.builtinOptions
        same = options.padding == self._schema.Padding.SAME
        depthwise = kind == "DEPTHWISE_CONV_2D"
        groups = int(weight.shape[3]) // max(int(options.depthMultiplier), 1) if depthwise else self._groups(operator)
        return Layer(
            # [1, height, width, outputs] of a depthwise one, [outputs, height, width, inputs] of others
            weight=weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2),
            convolution=True,
            bias=bias,
            groups=groups,
            strides=(int(options.strideH), int(options.strideW)),
            dilations=(int(options.dilationHFactor), int(options.dilationWFactor)),
            pads=None if same else ((0, 0), (0, 0)),
            channels_last=True,
        )


def _held(interpreter: Any, index: int) -> Array | None:
    """A tensor's value; None where the runtime keeps none, as of a recurrent layer's scratch outputs."""
    try:
        value: Array = interpreter.get_tensor(index)
    except ValueError:
        return None
    return value


def _without_padding(value: Array) -> Array:
    """What a maximum is padded with, the least number that there is, as the least that is computed: it has no range."""
    padding = value <= _PADDING
    if not padding.any() or padding.all():
        return value
    return np.where(padding, value[~padding].min(), value)


def _stored(kind: str, weight: Array) -> Array:
    """Weights in the file's own layout."""
    if kind == "FULLY_CONNECTED":
        return weight
    return weight.transpose(1, 2, 3, 0) if kind == "DEPTHWISE_CONV_2D" else weight.transpose(0, 2, 3, 1)
