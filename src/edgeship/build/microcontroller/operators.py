"""What TensorFlow Lite Micro runs: its operators, and the types that its kernels take. Pure."""

from __future__ import annotations

from typing import Final

from edgeship.build.tflite_file import TfliteGraph, TfliteModel, TfliteOperator

_BUILTIN: Final = """
ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER
GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD
PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH
SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""

#: Builtin operators. Source: tried one by one with the interpreter of the package tflite-micro
#: 0.dev20261023182759, which says "Didn't find op for builtin opcode" for every other one of the schema.
MICRO_OPERATORS: Final = frozenset(_BUILTIN.split())
#: Custom operators that come with it. Source: TensorFlow Lite Micro, ``PythonOpsResolver``.
MICRO_CUSTOM: Final = frozenset({"CUSTOM::CIRCULAR_BUFFER", "CUSTOM::TFLite_Detection_PostProcess"})
#: Operators whose kernels take int8 but not uint8, the type of files quantized before 2020.
#: Source: tried one by one with the same package, on operators of int8 files whose types were changed.
_NO_UINT8: Final = frozenset(
    {
        "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LOGISTIC",
        "SOFTMAX", "SPLIT_V", "STRIDED_SLICE",
    }
)  # fmt: skip
#: Operators that take no int8 weights with float activations. Source: as above.
_NO_HYBRID: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
_INTEGERS: Final = frozenset({"int8", "uint8", "int16", "int32", "bool"})
_FLOATS: Final = frozenset({"float16", "float32", "float64"})


def unsupported(model: TfliteModel) -> tuple[str, ...]:
    """What keeps a file from running there: operators without a kernel, or with a type that their kernel does not take.

    >>> from edgeship.build.tflite_file import TfliteTensor
    >>> tensors = (TfliteTensor(name="x", dtype="int8", shape=(1, 4)),)
    >>> operators = (TfliteOperator(name="TOPK_V2", inputs=(0,)), TfliteOperator(name="ABS", inputs=(0,)))
    >>> unsupported(TfliteModel(graphs=(TfliteGraph(tensors=tensors, operators=operators, inputs=(0,), outputs=(0,)),),
    ...                         weight_bytes=0))
    ('TOPK_V2',)
    """
    found = {label for graph in model.graphs for operator in graph.operators if (label := _refused(graph, operator))}
    return tuple(sorted(found))


def is_full_int8(model: TfliteModel) -> bool:
    """Whether inputs, outputs and every tensor between operators are integers."""
    main = model.main
    ends = [main.tensors[index].dtype for index in (*main.inputs, *main.outputs)]
    return all(dtype in _INTEGERS for dtype in ends) and not floats_inside(model)


def floats_inside(model: TfliteModel) -> tuple[str, ...]:
    """Operators that read or write floats that are no constants.

    A recurrent layer in integers may name empty float tensors beside its inputs, which nothing reads.

    >>> from edgeship.build.tflite_file import TfliteTensor
    >>> tensors = tuple(TfliteTensor(name=name, dtype=name, shape=(1, 4)) for name in ("int8", "float32"))
    >>> operators = (TfliteOperator(name="DEQUANTIZE", inputs=(0,), outputs=(1,)),)
    >>> graph = TfliteGraph(tensors=tensors, operators=operators, inputs=(0,), outputs=(0,))
    >>> floats_inside(TfliteModel(graphs=(graph,), weight_bytes=0))
    ('DEQUANTIZE',)
    """
    found = {
        operator.name: None
        for graph in model.graphs
        for operator in graph.operators
        for index in (*operator.inputs, *operator.outputs)
        if index >= 0 and not graph.tensors[index].constant and graph.tensors[index].dtype in _FLOATS
    }
    return tuple(found)


def _refused(graph: TfliteGraph, operator: TfliteOperator) -> str:
    """Words for what is refused, empty for nothing."""
    if operator.name not in MICRO_OPERATORS | MICRO_CUSTOM:
        return operator.name
    types = [graph.tensors[index].dtype for index in operator.inputs if index >= 0]
    if operator.name in _NO_UINT8 and types[:1] == ["uint8"]:
        return f"{operator.name} of uint8"
    if operator.name in _NO_HYBRID and types[:2] == ["float32", "int8"]:
        return f"{operator.name} with int8 weights and float activations"
    return ""
