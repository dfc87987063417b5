"""What is known about the runtimes without asking them: operators of converters, wheels, memory."""

from __future__ import annotations

from typing import Final

_TFLITE_ROUTE: Final = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu
CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh
CumProd CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor FusedConv FusedMatMul GRU Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNorm GroupNormalization
HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization Inverse IsInf IsNaN LRN
LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul
MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul
MultiHeadAttention Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot OptionalHasElement Or
PRelu Pad Pow QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool
QLinearLeakyRelu QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear RNN RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
RotaryEmbedding Round STFT Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze StringNormalizer Sub Sum Tan
Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
"""

#: ONNX operators (standard domain) that the ONNX → TFLite route lowers.
#: Source: onnx2tf 2.6.9, registry of its ``flatbuffer_direct`` backend; constants are folded before it.
TFLITE_ROUTE_OPERATORS: Final = frozenset(_TFLITE_ROUTE.split())

#: Oldest glibc that a runtime's wheels ask for, by architecture.
#: Source: wheel tags of ai-edge-litert 2.3.0, onnxruntime 1.32.0 and openvino 2026.4.1 (manylinux_<major>_<minor>).
WHEEL_GLIBC: Final = {
    ("litert", "x86_64"): (2, 27),
    ("litert", "aarch64"): (2, 27),
    ("onnxruntime", "x86_64"): (2, 28),
    ("onnxruntime", "aarch64"): (2, 28),
    ("openvino", "x86_64"): (2, 28),
    ("openvino", "aarch64"): (2, 35),
}

#: Pythons that every runtime has wheels for, of these versions. Source: their wheel tags, cp310 to cp314.
WHEEL_PYTHONS: Final = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))

#: Newest version of a runtime, and where it left a Python behind, the last one for that Python.
#: Source: as above; onnxruntime 1.24 and newer ask for Python 3.11, so that pip takes 1.23.2 on Python 3.10.
NEWEST_WHEEL: Final[dict[tuple[str, tuple[int, ...] | None], tuple[int, ...]]] = {
    ("litert", None): (2, 3, 0),
    ("onnxruntime", None): (1, 32, 0),
    ("onnxruntime", (3, 10)): (1, 23, 2),
    ("openvino", None): (2026, 4, 1),
}

#: Newest opset of ONNX's own domain and newest IR version that an ONNX Runtime reads.
#: Source: tried with onnxruntime 1.23.2, which refuses opset 24 and IR version 12.
ONNX_VERSIONS: Final[dict[tuple[int, ...], tuple[int, int]]] = {(1, 23): (23, 11)}

#: Oldest Python of the device agent. Source: requires-python in device_agent/pyproject.toml.
AGENT_PYTHON: Final = (3, 10)

#: Resident memory of a worker process with a runtime loaded and a model of a few kilobytes, in bytes, rounded up.
#: Source: measured on x86-64 with the versions above (Python and numpy 26 MB, then 35, 56 and 95 MB).
RUNTIME_MEMORY_BYTES: Final = {"litert": 40_000_000, "onnxruntime": 60_000_000, "openvino": 100_000_000}
