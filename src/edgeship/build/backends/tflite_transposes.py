"""Transpositions that a converter wrote around slices and padding, taken out of a TFLite file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship.build.backends.tflite_constants import empty_unread, renumber
from edgeship.build.backends.tflite_edit import edited

#: Operators that treat every value alike, whatever its place.
_ALIKE: Final = ("RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "LOGISTIC", "TANH", "HARD_SWISH", "ABS", "NEG",
                 "QUANTIZE", "DEQUANTIZE")  # fmt: skip
_PADS: Final = ("PAD", "MIRROR_PAD")
#: Operators that can clamp their result themselves.
_CLAMPING: Final = {"ADD": "AddOptions", "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}
_CLAMPS: Final = {"RELU": "RELU", "RELU6": "RELU6"}


class _Slice(Struct, frozen=True, kw_only=True):
    """What a strided slice keeps of one axis; ends of 0 and below count from the end, None is the end itself."""

    begin: int | None = None
    end: int | None = None
    stride: int = 1

    @property
    def whole(self) -> bool:
        """Whether it keeps everything."""
        return self.begin in {None, 0} and self.end is None and self.stride == 1


def with_fewer_transposes(data: bytes) -> bytes:
    """The same model; what lies between a transposition and its inverse works in the other order of axes.

    A shortcut of a residual net that slices and pads is written channels first by some exporters: two transpositions
    and two slices, which runtimes do value by value, where one slice of whole channels does. Files of several graphs
    are left as they are.
    """
    return edited(data, _reduce)


def _reduce(model: Any, schema: Any) -> bool:
    if len(model.subgraphs) != 1 or any(buffer.offset for buffer in model.buffers):
        return False
    graph = _Graph(model, schema)
    changed = False
    for operator in [each for each in graph.operators if graph.kind(each) == "TRANSPOSE"]:
        if operator in graph.operators:
            changed |= graph.sink(operator)
    if changed:
        for operator in list(graph.operators):
            kind = graph.kind(operator)
            if kind == "STRIDED_SLICE":
                graph.join_slices(operator)
            elif kind in _CLAMPS:
                graph.clamp_before(operator)
        graph.drop_unread()
    return changed


class _Graph:
    """The one graph of a parsed model."""

    def __init__(self, model: Any, schema: Any) -> None:
        self._model = model
        self._schema = schema
        self._graph = model.subgraphs[0]
        self._kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    @property
    def operators(self) -> list[Any]:
        """In the order of their execution."""
        found: list[Any] = self._graph.operators
        return found

    def kind(self, operator: Any) -> str:
        """Name of what an operator does."""
        code = self._model.operatorCodes[operator.opcodeIndex]
        return str(self._kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), ""))

    def sink(self, transpose: Any) -> bool:
        """Take a transposition out together with its inverse further down, or with a mean over what it moves.

        Returns:
            Whether it could be.
        """
        axes = self._constant(transpose.inputs[1])
        if axes is None:
            return False
        order = [int(axis) for axis in axes]
        changes: list[Callable[[], None]] = []
        passed: list[Any] = []
        operator = self._reader(transpose)
        while operator is not None:
            if self._ends(operator, order, changes):
                break
            change = self._moved(operator, order)
            if change is None or not self._plain(operator.outputs[0], len(order)):
                return False
            changes.append(change)
            passed.append(operator)
            operator = self._reader(operator)
        if operator is None or (not passed and operator.outputs[0] in self._graph.outputs):
            return False
        self._take_out(transpose, passed, operator, order)
        for change in changes:
            change()
        return True

    def join_slices(self, second: Any) -> None:
        """Two slices in a row, of different axes, as one."""
        first = self._maker(second.inputs[0])
        if first is None or self.kind(first) != "STRIDED_SLICE" or self._reader(first) is not second:
            return
        before, after = self._slices(first), self._slices(second)
        if before is None or after is None:
            return
        if all(one.whole or other.whole for one, other in zip(before, after, strict=True)):
            self._set_slices(second, [other if one.whole else one for one, other in zip(before, after, strict=True)])
            second.inputs = [first.inputs[0], *second.inputs[1:]]
            self.operators.remove(first)

    def clamp_before(self, clamp: Any) -> None:
        """A rectifier as the last step of the operator before it."""
        maker = self._maker(clamp.inputs[0])
        options = None if maker is None else _CLAMPING.get(self.kind(maker))
        if maker is None or options is None or self._reader(maker) is not clamp:
            return
        activations = self._schema.ActivationFunctionType
        if maker.builtinOptions is None or maker.builtinOptions.fusedActivationFunction != activations.NONE:
            return
        if self._type(maker.outputs[0]) != self._schema.TensorType.FLOAT32:
            return  # the two may have scales of their own
        maker.builtinOptions.fusedActivationFunction = getattr(activations, _CLAMPS[self.kind(clamp)])
        maker.outputs = [clamp.outputs[0]]
        self.operators.remove(clamp)

    def drop_unread(self) -> None:
        """Take out the tensors that no operator knows any more: calibrators read every one."""
        graph = self._graph
        known = {int(index) for each in self.operators for index in (*each.inputs, *each.outputs)}
        known |= {int(index) for each in self.operators for index in each.intermediates or ()}
        known |= {int(index) for index in (*graph.inputs, *graph.outputs)}
        kept = sorted(known - {-1})
        renumber(self._model, graph, {index: place for place, index in enumerate(kept)})
        graph.tensors = [graph.tensors[index] for index in kept]
        empty_unread(self._model)

    def _ends(self, operator: Any, order: Sequence[int], changes: list[Callable[[], None]]) -> bool:
        """Whether the way of a transposition ends here, at its inverse or at a mean; what a mean needs is added."""
        kind = self.kind(operator)
        constant = self._constant(operator.inputs[1]) if kind in {"TRANSPOSE", "MEAN"} else None
        if constant is None:
            return False
        if kind == "TRANSPOSE":
            return [order[int(axis)] for axis in constant] == list(range(len(order)))
        options, rank = operator.builtinOptions, len(order)
        gone = {int(axis) % rank for axis in constant.reshape(-1)}
        left = [order[axis] for axis in range(rank) if axis not in gone]
        if options is None or options.keepDims or left != sorted(left):
            return False
        axes = sorted(order[axis] for axis in gone)
        changes.append(lambda: self._set_constant(operator, 1, np.array(axes, np.int32)))
        return True

    def _moved(self, operator: Any, order: Sequence[int]) -> Callable[[], None] | None:
        """What makes an operator do the same to the other order of axes; None where nothing does."""
        kind = self.kind(operator)
        if kind in _ALIKE:
            return lambda: None
        if kind in _PADS:
            pads = self._constant(operator.inputs[1])
            if pads is None:
                return None
            turned = np.empty_like(pads)
            turned[list(order)] = pads
            return lambda: self._set_constant(operator, 1, turned)
        if kind == "STRIDED_SLICE" and (slices := self._slices(operator)) is not None and len(slices) == len(order):
            places = dict(zip(order, slices, strict=True))
            return lambda: self._set_slices(operator, [places[axis] for axis in range(len(order))])
        return None

    def _take_out(self, transpose: Any, passed: Sequence[Any], last: Any, order: Sequence[int]) -> None:
        """The operators in between read from and write to one another in the order before the transposition."""
        source = int(transpose.inputs[0])
        self.operators.remove(transpose)
        for operator in passed:
            operator.inputs = [source, *operator.inputs[1:]]
            source = int(operator.outputs[0])
            tensor = self._graph.tensors[source]
            shape = np.array(tensor.shape)
            turned = np.empty_like(shape)
            turned[list(order)] = shape
            tensor.shape, tensor.shapeSignature = turned, None
        if self.kind(last) != "TRANSPOSE":
            last.inputs = [source, *last.inputs[1:]]
            return
        result = int(last.outputs[0])
        self.operators.remove(last)
        if passed:
            passed[-1].outputs = [result]
            return
        for operator in self.operators:
            operator.inputs = [source if int(index) == result else int(index) for index in operator.inputs]

    def _reader(self, operator: Any) -> Any:
        """The one operator that reads another's result as its first input; None where others do, or it leaves."""
        result = int(operator.outputs[0])
        readers = [each for each in self.operators if result in [int(index) for index in each.inputs]]
        alone = len(readers) == 1 and result not in self._graph.outputs
        first = alone and [int(index) for index in readers[0].inputs].index(result) == 0
        return readers[0] if first else None

    def _maker(self, tensor: Any) -> Any:
        return next((each for each in self.operators if int(tensor) in [int(index) for index in each.outputs]), None)

    def _plain(self, index: Any, rank: int) -> bool:
        """Whether a tensor has these many axes of known size, and no more than one scale."""
        tensor = self._graph.tensors[int(index)]
        scales = None if tensor.quantization is None else tensor.quantization.scale
        known = tensor.shape is not None and len(tensor.shape) == rank
        fixed = tensor.shapeSignature is None or all(int(size) >= 0 for size in tensor.shapeSignature)
        return known and fixed and (scales is None or len(scales) <= 1)

    def _type(self, index: Any) -> int:
        return int(self._graph.tensors[int(index)].type)

    def _constant(self, index: Any) -> Any:
        """Values of a constant of 32-bit integers, or None."""
        tensor = self._graph.tensors[int(index)]
        held = self._model.buffers[tensor.buffer].data
        if held is None or not len(held) or tensor.type != self._schema.TensorType.INT32:
            return None
        return np.frombuffer(bytes(held), np.int32).reshape([int(size) for size in tensor.shape]).copy()

    def _set_constant(self, operator: Any, place: int, values: Any) -> None:
        """Another constant as an operator's input: others may read the old one."""
        buffer, tensor = self._schema.BufferT(), self._schema.TensorT()
        buffer.data = np.frombuffer(values.astype(np.int32).tobytes(), np.uint8)
        tensor.shape, tensor.hasRank = np.array(values.shape, np.int32), True
        tensor.type, tensor.buffer = self._schema.TensorType.INT32, len(self._model.buffers)
        tensor.name = f"axes_{len(self._graph.tensors)}"
        self._model.buffers.append(buffer)
        inputs = [int(index) for index in operator.inputs]
        inputs[place] = len(self._graph.tensors)
        operator.inputs = inputs
        self._graph.tensors.append(tensor)

    def _slices(self, operator: Any) -> list[_Slice] | None:
        """What a strided slice keeps of each axis; None where it adds or drops axes, or its places are computed."""
        options = operator.builtinOptions
        numbers = [self._constant(index) for index in operator.inputs[1:4]]
        if options is None or any(each is None for each in numbers) or options.offset:
            return None
        if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask:
            return None
        tensor = self._graph.tensors[int(operator.inputs[0])]
        shape = tensor.shape
        if tensor.shapeSignature is not None and min(tensor.shapeSignature, default=0) < 0:
            return None
        begins, ends, strides = ([int(value) for value in each] for each in numbers)
        if shape is None or len(shape) != len(begins) or min(strides) < 1:
            return None
        return [
            _Slice(begin=None if options.beginMask >> axis & 1 else begins[axis],
                   end=None if options.endMask >> axis & 1 or ends[axis] >= int(shape[axis]) else ends[axis],
                   stride=strides[axis])
            for axis in range(len(begins))
        ]  # fmt: skip

    def _set_slices(self, operator: Any, slices: Sequence[_Slice]) -> None:
        self._set_constant(operator, 1, np.array([each.begin or 0 for each in slices]))
        self._set_constant(operator, 2, np.array([each.end or 0 for each in slices]))
        self._set_constant(operator, 3, np.array([each.stride for each in slices]))
        options = operator.builtinOptions
        options.beginMask = sum(1 << axis for axis, each in enumerate(slices) if each.begin is None)
        options.endMask = sum(1 << axis for axis, each in enumerate(slices) if each.end is None)
