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

#: Resident memory of a worker process with a runtime loaded and a model of a few kilobytes, in bytes, rounded up.
#: Source: measured on x86-64 with the versions above (Python and numpy 26 MB, then 35, 56 and 95 MB).
RUNTIME_MEMORY_BYTES: Final = {"litert": 40_000_000, "onnxruntime": 60_000_000, "openvino": 100_000_000}
