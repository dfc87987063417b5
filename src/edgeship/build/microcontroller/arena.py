"""How large a tensor arena TensorFlow Lite Micro needs for a file: what tensors share, and what stays. Pure.

Three parts. The *planned* part holds the tensors between operators and the scratch memory of kernels, and is planned as
TFLM plans it (:mod:`edgeship.build.microcontroller.planner`). The *persistent* part holds what TFLM keeps for each
tensor, each operator and each input and output, and the variables. While TFLM plans, its notes need a place as well,
which is the planned part's own: of these two, the larger counts.

How exact it is: for 64-bit machines with the reference kernels it was compared with the arena that TFLM itself records,
see ``tests/unit/test_build_microcontroller_arena.py``. For 32-bit devices structures of pointers are taken at their
32-bit size and everything else at its 64-bit size, so that the estimate lies above what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from edgeship.build.microcontroller.lifetimes import Scratch, buffers_of
from edgeship.build.microcontroller.planner import aligned, least_bytes, plan
from edgeship.build.tflite_file import TfliteGraph, TfliteModel, TfliteOperator

#: Bytes of a pointer on a Cortex-M.
WORD_BYTES: Final = 4
#: What TFLM needs before it has seen a model: allocator, planner, interpreter.
#: Source: measured with tflite-micro 0.dev20261023182759 on x86-64, its recording of allocations included.
_BASE_BYTES: Final = 488
#: Operator → (bytes that its kernel keeps, bytes of its parsed options), both at their 64-bit size.
#: Source: measured one by one with the same package, on single operators of int8 and float files.
_OPERATOR_BYTES: Final[dict[str, tuple[int, int]]] = {
    "ADD": (60, 8),
    "AVERAGE_POOL_2D": (32, 40),
    "CONCATENATION": (80, 8),
    "CONV_2D": (80, 28),
    "DEPTHWISE_CONV_2D": (80, 28),
    "FULLY_CONNECTED": (72, 32),
    "LOGISTIC": (16, 0),
    "MAX_POOL_2D": (32, 40),
    "MUL": (36, 4),
    "PACK": (0, 8),
    "QUANTIZE": (32, 0),
    "RESHAPE": (0, 36),
    "SOFTMAX": (80, 4),
    "SPLIT": (0, 4),
    "SPLIT_V": (0, 8),
    "STRIDED_SLICE": (84, 24),
    "TANH": (16, 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (688, 48),
    "UNPACK": (0, 8),
    "VAR_HANDLE": (8, 16),
}
#: Of an operator that was not measured: as much as an ordinary one, and the estimate names it.
_UNKNOWN_BYTES: Final = (80, 40)
#: Axis of the filter that counts output channels. Source: TensorFlow Lite schema, filters are OHWI and 1HWO.
_CHANNEL_AXIS: Final = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
_PER_CHANNEL_BYTES: Final = 4
#: What the planner notes of one buffer. Source: TFLM, ``GreedyMemoryPlanner::per_buffer_size()``; beside it stands an
#: ``AllocationInfo`` a tensor, of two words and four integers.
_PLANNER_BYTES: Final = 40


class Estimate(Struct, frozen=True, kw_only=True):
    """What an arena must hold.

    Attributes:
        planned_bytes: tensors and scratch memory, sharing their places over time.
        least_bytes: largest sum of them that is alive at once; no plan can do with less.
        persistent_bytes: everything that stays from the start to the end.
        planning_bytes: TFLM's notes while it plans.
        not_measured: operators whose own memory is a guess.
    """

    planned_bytes: int
    least_bytes: int
    persistent_bytes: int
    planning_bytes: int
    not_measured: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Size of the arena, a multiple of its alignment."""
        return aligned(max(self.planned_bytes, self.planning_bytes) + self.persistent_bytes)


def estimate(model: TfliteModel, *, word_bytes: int = WORD_BYTES, cmsis_nn: bool = True) -> Estimate:
    """Estimate the arena of a file.

    Args:
        model: the file.
        word_bytes: size of a pointer: 4 on a microcontroller, 8 on the machine that the figures were compared on.
        cmsis_nn: whether the kernels are those of CMSIS-NN for cores with DSP instructions (Cortex-M4, M7, M33), which
            want scratch memory for convolutions; otherwise the reference kernels.

    Raises:
        ValueError: its graphs call each other in a circle.
    """
    scratch = tuple(_scratch(model, cmsis_nn=cmsis_nn))
    buffers = buffers_of(model, scratch)
    names = {operator.name for operator in model.operators}
    return Estimate(
        planned_bytes=plan(buffers).size_bytes,
        least_bytes=least_bytes(buffers),
        persistent_bytes=_persistent(model, word_bytes) + len(scratch) * word_bytes,
        planning_bytes=_structure(2 * word_bytes + 16, word_bytes) * sum(len(graph.tensors) for graph in model.graphs)
        + _PLANNER_BYTES * len(buffers),
        not_measured=tuple(sorted(names - _OPERATOR_BYTES.keys() - _FREE)),
    )


#: Operators that keep nothing worth counting. Source: as above.
_FREE: Final = frozenset({"READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})


def _persistent(model: TfliteModel, word: int) -> int:
    """What stays: structures a tensor, an operator, an input or output, a channel; variables."""
    total = _BASE_BYTES
    for graph in model.graphs:
        total += _structure(2 * word + 4, word) * len(graph.tensors)  # TfLiteEvalTensor: data, dims, type
        total += (7 * word + _structure(4, word)) * len(graph.operators)  # TfLiteNode and its registration
        total += sum(_operator(graph, operator) for operator in graph.operators)
        total += sum(aligned(tensor.size_bytes) for tensor in graph.tensors if tensor.variable)
    main = model.main
    for group in (main.inputs, main.outputs):
        total += aligned(word * len(group))  # pointers to the tensors below
    for index in (*main.inputs, *main.outputs):
        total += _structure(4 * word + 21, word) + word  # TfLiteTensor
        channels = len(main.tensors[index].scales)
        if channels:
            total += _structure(2 * word + 4, word) + _structure(4 + 4 * channels, word)  # TfLiteAffineQuantization
    return total + _resources(model)


def _operator(graph: TfliteGraph, operator: TfliteOperator) -> int:
    if operator.name in _FREE:
        return 0
    kept, options = _OPERATOR_BYTES.get(operator.name, _UNKNOWN_BYTES)
    total = aligned(kept) + options
    axis = _CHANNEL_AXIS.get(operator.name)
    if axis is not None:
        total += 2 * aligned(_PER_CHANNEL_BYTES * graph.tensors[operator.inputs[1]].shape[axis])
    return total


def _resources(model: TfliteModel) -> int:
    """Variables that operators read and assign by name."""
    sizes: dict[str, int] = {}
    for graph in model.graphs:
        names = {operator.outputs[0]: str(operator.options.get("sharedName", "")) for operator in graph.operators
                 if operator.name == "VAR_HANDLE"}  # fmt: skip
        for operator in graph.operators:
            if operator.name == "ASSIGN_VARIABLE" and operator.inputs[0] in names:
                sizes[names[operator.inputs[0]]] = graph.tensors[operator.inputs[1]].size_bytes
    return sum(aligned(size) + 40 for size in sizes.values())


def _structure(size_bytes: int, word: int) -> int:
    """A C structure whose widest member is a pointer."""
    return aligned(size_bytes, word)


def _scratch(model: TfliteModel, *, cmsis_nn: bool) -> Iterator[Scratch]:
    for graph_index, graph in enumerate(model.graphs):
        for position, operator in enumerate(graph.operators):
            if operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
                yield from (Scratch(graph_index, position, size) for size in _lstm(graph, operator))
            elif cmsis_nn and (size := _cmsis_nn(graph, operator)):
                yield Scratch(graph_index, position, size)


def _lstm(graph: TfliteGraph, operator: TfliteOperator) -> list[int]:
    """Four gates of one cell state each, which agrees with what TFLM records."""
    cell = next((graph.tensors[index] for index in reversed(operator.inputs) if index >= 0
                 and graph.tensors[index].variable), None)  # fmt: skip
    return [] if cell is None else [cell.size_bytes] * 4


def _cmsis_nn(graph: TfliteGraph, operator: TfliteOperator) -> int:
    """Scratch bytes of an int8 kernel. Source: CMSIS-NN, ``arm_*_get_buffer_size`` for ``ARM_MATH_DSP``."""
    tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
    if not tensors or tensors[0].dtype != "int8":
        return 0
    if operator.name == "AVERAGE_POOL_2D":
        return 4 * tensors[0].shape[-1]
    if operator.name not in _CHANNEL_AXIS:
        return 0
    options = operator.options
    dilated = (options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)) != (1, 1)
    return _convolution(operator.name, tensors[0].shape[-1], tensors[1].shape, dilated=dilated)


def _convolution(name: str, channels_in: int, filters: tuple[int, ...], *, dilated: bool) -> int:
    _, height, width, last = filters
    if name == "DEPTHWISE_CONV_2D":
        in_place = channels_in != last or dilated or (height, width) == (3, 3)
        return 0 if in_place else 2 * math.prod((height, width, channels_in))
    if (height, width) == (1, 1) and not dilated:
        return 4 * channels_in  # with Arm's compiler; 0 with gcc
    return 4 * aligned(height * width * channels_in, 4)
