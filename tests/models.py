"""Small ONNX models and data for build tests: real weights from a seed, no downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgeship.build import oracle
from edgeship.build.progress import Silence
from edgeship.build.sources import SourceModel

CLASSES = 6
SIDE = 8


def classifier(path: Path, *, opset: int = 17, domain: str = "", dead: bool = False, bias_rows: bool = False) -> Path:
    """Two convolutions, pooling, two matrices: ``x`` [N, 1, 8, 8] float32 to ``scores`` [N, 6].

    Args:
        path: where to write it.
        opset: of the default domain.
        domain: of the first operator, where not empty.
        dead: all weights zero, so that it says one class and ends without an error.
        bias_rows: the last bias as [1, 6], as old exporters write it, and the one before as a single number.
    """
    rng = np.random.default_rng(5)
    scale = 0.0 if dead else 1.0
    weights = {
        "w1": rng.normal(0, 0.5, (4, 1, 3, 3)),
        "b1": rng.normal(0, 0.1, 4),
        "w2": rng.normal(0, 0.3, (16, 4, 3, 3)),
        "b0": rng.normal(0, 0.1, 16),
        "h": rng.normal(0, 0.1, (16 * 16, 64)),
        "bh": rng.normal(0, 0.1, () if bias_rows else 64),
        "w3": rng.normal(0, 0.2, (64, CLASSES)),
        "b3": rng.normal(0, 0.1, (1, CLASSES) if bias_rows else CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], domain=domain),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b0"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "h", "bh"], ["g"]),
        helper.make_node("Relu", ["g"], ["rg"]),
        helper.make_node("MatMul", ["rg", "w3"], ["m"]),
        helper.make_node("Add", ["m", "b3"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(scale * array, np.float32), name) for name, array in weights.items()
    ]
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return _save(
        path, nodes, [_value("x", ["N", 1, SIDE, SIDE])], [_value("scores", ["N", CLASSES])], constants, imports
    )


def large_products(path: Path) -> Path:
    """As :func:`classifier`, with weights of a sign of their own in each map: their products add up, never cancel."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.uniform(0.5, 1.0, (4, 1, 3, 3)),
        "w2": rng.uniform(0.5, 1.0, (16, 4, 3, 3)) * rng.choice([-1.0, 1.0], (16, 1, 1, 1)),
        "b2": rng.normal(0, 10.0, 16),
        "h": rng.normal(0, 0.1, (16 * 16, CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "h"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    ends = [_value("x", ["N", 1, SIDE, SIDE])], [_value("scores", ["N", CLASSES])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def padded_shortcut(path: Path) -> Path:
    """A shortcut without weights in s8 QDQ form, every second pixel and a map of zeros on each side; then a product."""
    weights = {"h": np.random.default_rng(6).normal(0, 0.2, (4 * 16, CLASSES)), "scale": np.asarray(0.03)}
    sizes = {"first": [0, 0], "last": [SIDE, SIDE], "axes": [2, 3], "steps": [2, 2], "sides": [0, 1, 0, 0, 0, 1, 0, 0]}
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["two"], axis=1),
        helper.make_node("QuantizeLinear", ["two", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xd"]),
        helper.make_node("Slice", ["xd", *list(sizes)[:4]], ["half"]),
        helper.make_node("QuantizeLinear", ["half", "scale", "zero"], ["half8"]),
        helper.make_node("DequantizeLinear", ["half8", "scale", "zero"], ["halfd"]),
        helper.make_node("Pad", ["halfd", "sides"], ["wide"]),
        helper.make_node("Flatten", ["wide"], ["f"]),
        helper.make_node("MatMul", ["f", "h"], ["scores"]),
    ]
    constants = [
        *(numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()),
        *(numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in sizes.items()),
        numpy_helper.from_array(np.asarray(-7, np.int8), "zero"),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("scores", [1, CLASSES])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def quantized(model: Path, path: Path, *, signed: bool = False, only: list[str] | None = None) -> Path:
    """A model of these in QDQ form: weights of all 8 bits per channel, ranges from :func:`inputs`.

    Args:
        model: in float.
        path: where to write it.
        signed: activations too (s8s8), else they are unsigned (u8s8).
        only: kinds of operators that are quantized; None for all.
    """
    kind = QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_static(str(model), str(path), _Feed(inputs(40, seed=9)), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=kind, weight_type=QuantType.QInt8, op_types_to_quantize=only)  # fmt: skip
    return path


class _Feed(CalibrationDataReader):
    """Samples, one after the other."""

    def __init__(self, x: np.ndarray) -> None:
        self._left = iter(x)

    def get_next(self) -> dict[str, np.ndarray] | None:
        value = next(self._left, None)
        return None if value is None else {"x": value[None]}


def grouped(path: Path) -> Path:
    """A raw model of two convolutions in four groups each: ``x`` [1, 8, 8, 8] to ``y`` [1, 16, 8, 8]."""
    rng = np.random.default_rng(6)
    shapes = {"v": (16, 2, 1, 1), "w": (16, 4, 3, 3)}
    constants = [numpy_helper.from_array(rng.normal(0, 0.4, shapes[name]).astype(np.float32), name) for name in shapes]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], kernel_shape=[1, 1], group=4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4),
    ]
    ends = [_value("x", [1, 8, SIDE, SIDE])], [_value("y", [1, 16, SIDE, SIDE])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def grouped_signal(path: Path) -> Path:
    """A raw model of two convolutions over one dimension, in four groups: ``x`` [1, 8, 8, 8] to ``y`` [1, 8, 30]."""
    rng = np.random.default_rng(6)
    constants = [numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)
                 for name, shape in (("v", (16, 2, 5)), ("w", (8, 4, 3)))]  # fmt: skip
    constants.append(numpy_helper.from_array(np.array([1, 8, SIDE * SIDE], np.int64), "signal"))
    nodes = [
        helper.make_node("Reshape", ["x", "signal"], ["s"]),
        helper.make_node("Conv", ["s", "v"], ["a"], strides=[2], pads=[2, 2], group=4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"], group=4),
    ]
    ends = [_value("x", [1, 8, SIDE, SIDE])], [_value("y", [1, 8, 30])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def spectrum(path: Path) -> Path:
    """Squares of the spectrum of a signal of 64 steps: ``x`` [1, 1, 8, 8] to ``y`` [1, 7, 9]."""
    window = np.hanning(16).astype(np.float32)
    constants = [numpy_helper.from_array(value, name) for name, value in (
        ("signal", np.array([1, SIDE * SIDE, 1], np.int64)), ("window", window), ("step", np.int64(8)),
        ("length", np.int64(16)))]  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "signal"], ["s"]),
        helper.make_node("STFT", ["s", "step", "window", "length"], ["parts"], onesided=1),
        helper.make_node("ReduceSumSquare", ["parts"], ["y"], axes=[3], keepdims=0),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, 7, 9])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def attention(path: Path, lowest: float, *, fixed: bool = False) -> Path:
    """Eight rows that look at each other, three of them hidden: ``x`` [1, 1, 8, 8] to ``y`` [1, 8, 8].

    Args:
        path: where to write.
        lowest: what is added to a hidden score.
        fixed: whether the mask stands in the file, or is worked out in each call as if it could differ.
    """
    rng = np.random.default_rng(8)
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (
        ("rows", np.array([1, SIDE, SIDE], np.int64)), ("zero", np.float32(0)), ("lowest", np.float32(lowest)),
        ("three", np.isin(np.arange(SIDE), [1, 4, 5]).astype(np.float32).reshape(1, 1, SIDE)),
        *((name, rng.normal(0, 0.5, (SIDE, SIDE)).astype(np.float32)) for name in ("q", "k", "v")))]  # fmt: skip
    if fixed:
        hidden = numpy_helper.to_array(next(each for each in constants if each.name == "three")) > 0
        mask = np.where(hidden, np.float32(lowest), np.float32(0))
        constants.append(numpy_helper.from_array(mask, "mask"))
    worked_out = [
        helper.make_node("Mul", ["r", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "three"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "lowest"], ["mask"]),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"]),
        *(helper.make_node("MatMul", ["r", name], [f"r{name}"]) for name in ("q", "k", "v")),
        helper.make_node("Transpose", ["rk"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rq", "turned"], ["scores"]),
        *([] if fixed else worked_out),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "rv"], ["y"]),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, SIDE, SIDE])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


#: Centre and width of each column of :func:`columns`, in units of their own.
CENTERS = np.array([300.13, 309.9, 1541.7, 39.9, 0.51, 108.3, 3001.3, -7.1], np.float32)
WIDTHS = np.array([2.0, 1.5, 180.0, 10.0, 0.01, 64.0, 1.5, 4.0], np.float32)


def columns(path: Path) -> Path:
    """Eight columns of unlike size, which the model itself makes alike: ``x`` [1, 1, 8, 8] to ``y`` [1, 8, 4]."""
    rng = np.random.default_rng(9)
    constants = [numpy_helper.from_array(value, name) for name, value in (
        ("rows", np.array([1, SIDE, SIDE], np.int64)), ("centers", CENTERS), ("scale", 1 / WIDTHS),
        ("w", rng.normal(0, 0.4, (SIDE, 16)).astype(np.float32)),
        ("v", rng.normal(0, 0.4, (16, 4)).astype(np.float32)))]  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"]),
        helper.make_node("Sub", ["r", "centers"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["alike"]),
        helper.make_node("MatMul", ["alike", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, SIDE, 4])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def two_outputs(path: Path) -> Path:
    """A raw model: ``x`` [1, 2, 8, 8] to ``map`` [1, 3, 8, 8] and ``mean`` [1, 3]."""
    rng = np.random.default_rng(6)
    constants = [numpy_helper.from_array(rng.normal(0, 0.4, (3, 2, 3, 3)).astype(np.float32), "w")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["map"], ["mean"], axes=[2, 3], keepdims=0),
    ]
    outputs = [_value("map", [1, 3, SIDE, SIDE]), _value("mean", [1, 3])]
    return _save(path, nodes, [_value("x", [1, 2, SIDE, SIDE])], outputs, constants, [helper.make_opsetid("", 13)])


def one_score(path: Path, *, logit: bool = False) -> Path:
    """A binary classifier with a single end: ``x`` [N, 16] to ``score`` [N, 1], a probability or its logit.

    About a fifth of standard normal samples is of class 1.
    """
    rng = np.random.default_rng(12)
    weights = {"w": rng.normal(0, 0.5, (16, 128)), "h": rng.normal(0, 0.5, (128, 1)), "b": np.asarray([-8.0])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Gemm", ["r", "h", "b"], ["score" if logit else "g"]),
        *([] if logit else [helper.make_node("Sigmoid", ["g"], ["score"])]),
    ]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    ends = [_value("x", ["N", 16])], [_value("score", ["N", 1])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def double_softmax(path: Path) -> Path:
    """A raw model with a softmax in double precision: ``x`` [1, 1, 8, 8] to ``y`` [1, 4, 8, 8]."""
    weights = np.random.default_rng(6).normal(0, 0.4, (4, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["map"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Softmax", ["wide"], ["shares"], axis=1),
        helper.make_node("Cast", ["shares"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, 4, SIDE, SIDE])]
    return _save(path, nodes, *ends, [numpy_helper.from_array(weights, "w")], [helper.make_opsetid("", 17)])


def shared_bias(path: Path) -> Path:
    """A raw model whose three layers share a bias ``b``; one gives ``b0``: ``x`` [1, 1, 8, 8] to ``y`` [1, 4, 8, 8]."""
    rng = np.random.default_rng(6)
    shape = {"v": (4, 1, 3, 3), "w": (4, 4, 3, 3), "u": (4, 4, 3, 3)}
    constants = [numpy_helper.from_array(rng.normal(0, 0.4, size).astype(np.float32), name)
                 for name, size in shape.items()]  # fmt: skip
    constants.append(numpy_helper.from_array(rng.normal(0, 0.4, 4).astype(np.float32), "b"))
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["first"], **same),
        helper.make_node("Conv", ["first", "w", "b"], ["b0"], **same),
        helper.make_node("Tanh", ["b0"], ["bent"]),
        helper.make_node("Conv", ["bent", "u", "b"], ["y"], **same),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, 4, SIDE, SIDE])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def recurrent(path: Path) -> Path:
    """A raw model whose products all lie in the body of a loop over 8 rows: ``x`` [1, 1, 8, 8] to ``y`` [1, 32]."""
    rng = np.random.default_rng(6)
    constants = [
        numpy_helper.from_array(rng.normal(0, 0.3, (SIDE, 32)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(0, 0.15, (32, 32)).astype(np.float32), "u"),
        numpy_helper.from_array(np.zeros((1, 32), np.float32), "before"),
        numpy_helper.from_array(np.array([SIDE, 1, SIDE], np.int64), "rows"),
    ]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", "w"], ["seen"]),
            helper.make_node("MatMul", ["state", "u"], ["kept"]),
            helper.make_node("Add", ["seen", "kept"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
        ],
        "step", [_value("state", [1, 32]), _value("row", [1, SIDE])], [_value("next", [1, 32])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["sequence"]),
        helper.make_node("Scan", ["before", "sequence"], ["y"], num_scan_inputs=1, body=body),
    ]
    ends = [_value("x", [1, 1, SIDE, SIDE])], [_value("y", [1, 32])]
    return _save(path, nodes, *ends, constants, [helper.make_opsetid("", 17)])


def beyond_the_converter(path: Path) -> Path:
    """A valid model with an operator that the TFLite route does not lower."""
    nodes = [
        helper.make_node("ImageDecoder", ["x"], ["pixels"]),
        helper.make_node("Cast", ["pixels"], ["y"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8, 3])]
    return _save(path, nodes, inputs, outputs, [], [helper.make_opsetid("", 20)])


def inputs(count: int, *, seed: int = 0, channels: int = 1) -> np.ndarray:
    """[count, channels, 8, 8] float32."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (count, channels, SIDE, SIDE)).astype(np.float32)


def answers(source: SourceModel, samples: list, folder: Path) -> list:
    """What the source says to each sample."""
    opened = oracle.open_oracle(source, folder)
    said = opened.run(samples, "source", Silence())
    opened.close()
    return said


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _save(path: Path, nodes: list, graph_inputs: list, outputs: list, constants: list, imports: list) -> Path:
    graph = helper.make_graph(nodes, "test", graph_inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.save(model, path)
    return path
