"""ONNX Runtime: the source as it is, and static QDQ int8 from ranges and weights of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from msgspec import Struct, structs
from onnx import numpy_helper, version_converter
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeship.build import layout
from edgeship.build.backends import onnx_nncf, onnx_precisions
from edgeship.build.backends.base import Artifact, Job, Samples, Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.onnx_ends import with_float_ends
from edgeship.build.backends.onnx_graph import OnnxGraph
from edgeship.build.backends.onnx_masks import bound_masks
from edgeship.build.backends.onnx_quantizer import WholeTensorQuantizer
from edgeship.build.backends.onnx_scales import fold_scales
from edgeship.build.backends.products import refuse_without_products
from edgeship.build.model_facts import CONSTANT_WEIGHTS_IR
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import open_engine

RUNTIME: Final = "onnxruntime"
#: DequantizeLinear has an axis from here on, so weights can be quantized per channel. Source: ONNX operator changelog.
PER_CHANNEL_OPSET: Final = 13
#: Layers whose third input is a bias.
_BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})
_TYPES: Final = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


class OnnxRuntimeBackend:
    """Float as a route delivers it; int8 by ONNX Runtime's own quantizer."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], Prepared] = {}

    def convert(self, job: Job, model: Path) -> Artifact:
        """The file with its weights as constants, and the layout found by running it against the source."""
        folder = job.folder / "fp32"
        folder.mkdir(parents=True)
        file = folder / "model.onnx"
        data, notes = _with_constant_weights(model.read_bytes())
        file.write_bytes(with_float_ends(data))
        engine = open_engine(RUNTIME, file)
        try:
            inputs, outputs = layout.find_bindings(job, engine, RUNTIME)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="fp32", model=file, inputs=inputs, outputs=outputs, notes=notes)

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Another precision from a private copy of the float file; int8 is static QDQ, the opset raised first."""
        refuse_without_products(float_artifact.model, RUNTIME)
        folder = job.folder / scheme.name
        folder.mkdir(parents=True)
        model = folder / "model.onnx"
        if scheme.precision != "int8":
            onnx_precisions.lower(float_artifact.model, scheme.precision, model)
            return _artifact(float_artifact, model, scheme)
        prepared = self._prepared(job, float_artifact)
        per_channel = scheme.per_channel and prepared.opset >= PER_CHANNEL_OPSET
        used = structs.replace(scheme, per_channel=per_channel)
        try:
            with quiet():
                if used.tool == "nncf":
                    onnx_nncf.quantize(prepared, float_artifact.inputs, job.samples, used, model)
                else:
                    _quantize(prepared, used, model)
        except Exception as error:
            raise ConversionError(f"ONNX Runtime's quantizer: {_first_line(error)}", target=RUNTIME) from error
        fallback = f"per tensor: the model could not be raised from opset {prepared.opset} to {PER_CHANNEL_OPSET}"
        fallbacks = () if per_channel or not scheme.per_channel else (fallback,)
        made = _artifact(float_artifact, model, used)
        return structs.replace(made, notes=fallbacks, fallbacks=fallbacks)

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """Operators and ranges of the float file, after shape inference and fusions."""
        return self._prepared(job, float_artifact).calibration

    def _prepared(self, job: Job, float_artifact: Artifact) -> Prepared:
        key = (float_artifact.model, id(job.samples))
        if key not in self._known:
            folder = job.folder / "ready"
            folder.mkdir(parents=True, exist_ok=True)
            ready, opset = _prepare(float_artifact.model, folder)
            graph = OnnxGraph(ready, float_artifact.inputs)
            calibration = Calibration(graph, job.samples, lambda name: folder / f"{name}.onnx", ready)
            self._known[key] = Prepared(opset=opset, calibration=calibration, samples=job.samples)
        return self._known[key]


def _with_constant_weights(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The model without weights among its inputs, as old exporters list them: an input is never folded or fused.

    A detector of 242 operators takes 7.4 ms this way and 15.9 ms with its weights as inputs.
    """
    document = onnx.ModelProto.FromString(data)
    weights = {tensor.name for tensor in document.graph.initializer}
    listed = [value for value in document.graph.input if value.name in weights]
    if not listed:
        return data, ()
    for value in listed:
        document.graph.input.remove(value)
    document.ir_version = max(document.ir_version, CONSTANT_WEIGHTS_IR)
    return (
        document.SerializeToString(deterministic=True),
        (f"{len(listed)} weights that the model listed among its inputs are constants",),
    )


class Prepared(Struct, frozen=True, kw_only=True):
    """A float file that is ready for the quantizer.

    Attributes:
        samples: kept so that they are not mistaken for others.
    """

    opset: int
    calibration: Calibration
    samples: Samples


def _quantize(prepared: Prepared, scheme: Scheme, model: Path) -> None:
    """Static QDQ by ONNX Runtime's quantizer, from ranges of our own."""
    ranges = prepared.calibration.ranges(scheme.estimator)
    known = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    document = onnx.load(str(prepared.calibration.file(scheme)))
    bound_masks(document, prepared.calibration)
    # the quantizer sets the range of every softmax, and breaks off where there was none: in double precision
    doubles = [node.name for node in document.graph.node if node.op_type == "Softmax" and node.output[0] not in known]
    quantizer = WholeTensorQuantizer(
        document,
        scheme.per_channel,
        scheme.weight_bits == 7,
        QuantType.QInt8,
        _TYPES[scheme.activation],
        TensorsData(CalibrationMethod.MinMax, known),
        [],
        [*scheme.floats, *doubles],
        sorted({*QLinearOpsRegistry, *QDQRegistry}),
        {"ActivationSymmetric": scheme.symmetric, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    document = quantizer.model.model
    _open_ends(document)
    model.write_bytes(document.SerializeToString(deterministic=True))


def _open_ends(document: Any) -> None:
    """Products whose result is an output give it in float, as they sum it: nothing reads it in 8 bits."""
    graph = document.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        widen = _made_by("DequantizeLinear", output.name, makers)
        narrow = _made_by("QuantizeLinear", widen.input[0], makers) if widen is not None else None
        product = makers.get(narrow.input[0]) if narrow is not None else None
        if widen is None or narrow is None or product is None or product.op_type not in {"Gemm", "MatMul"}:
            continue
        between = {product.output[0], narrow.output[0]}
        if sum(bool(between.intersection(node.input)) for node in graph.node) == 2:  # these two and nobody else
            product.output[0] = output.name
            graph.node.remove(narrow)
            graph.node.remove(widen)


def _made_by(kind: str, name: str, makers: Mapping[str, Any]) -> Any:
    """The operator of that kind that makes a tensor, or None."""
    maker = makers.get(name)
    return maker if maker is not None and maker.op_type == kind else None


def _artifact(float_artifact: Artifact, model: Path, scheme: Scheme) -> Artifact:
    inputs, outputs = layout.rebound(float_artifact, model, RUNTIME)
    return Artifact(
        runtime=RUNTIME, precision=scheme.precision, model=model, inputs=inputs, outputs=outputs, scheme=scheme.text
    )


def _prepare(model: Path, folder: Path) -> tuple[Path, int]:
    """The float file with shapes inferred and constants folded; and its opset, raised where it could be."""
    raised = folder / "raised.onnx"
    document = onnx.load(str(model))
    opset = _opset(document)
    if opset < PER_CHANNEL_OPSET:
        try:
            with quiet():
                document = version_converter.convert_version(document, PER_CHANNEL_OPSET)
            opset = PER_CHANNEL_OPSET
        except Exception:  # noqa: BLE001 (onnx's converter raises what its C++ part throws); the caller records it
            document = onnx.load(str(model))
    raised.write_bytes(document.SerializeToString(deterministic=True))
    ready = folder / "ready.onnx"
    try:
        with quiet():
            quant_pre_process(str(raised), str(ready), skip_symbolic_shape=True)
            _settle_products(ready)
            _part_biases(ready)
    except Exception:  # noqa: BLE001 (an optional step: without it the same model is quantized with fewer fusions)
        ready = raised
    _name_nodes(ready)
    return ready, opset


def _name_nodes(model: Path) -> None:
    """Every node gets a name of its own: the quantizer knows them by nothing else."""
    document = onnx.load(str(model))
    seen: set[str] = set()
    for position, node in enumerate(document.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{position}"
        seen.add(node.name)
    model.write_bytes(document.SerializeToString(deterministic=True))


def _opset(document: Any) -> int:
    return max((entry.version for entry in document.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _settle_products(model: Path) -> None:
    """Biases of Gemm as vectors [N]: on [1, N], which the fusion leaves, and on numbers the quantizer fails.

    What multiplies and adds behind it goes into it, so that nothing is rounded in between.
    """
    document = onnx.load(str(model))
    weights = {tensor.name: tensor for tensor in document.graph.initializer}
    for position, node in enumerate(document.graph.node):
        bias = weights.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if bias is None or (len(bias.dims) == 1 and bias.dims[0] > 1):
            continue
        value = numpy_helper.to_array(bias)
        columns = _columns(node, weights.get(node.input[1])) or (value.size if value.ndim == 2 else 0)
        if columns and value.size in {1, columns} and value.shape[-1:] in {(), (1,), (columns,)}:
            name = f"{bias.name}/row{position}"
            row = np.broadcast_to(value.reshape(-1), (columns,))
            document.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(row), name))
            node.input[2] = name
    fold_scales(document)
    # shapes that old files state for their weights, as inputs or in between, would contradict
    for values in (document.graph.input, document.graph.value_info):
        for value in [each for each in values if each.name in weights]:
            values.remove(value)
    model.write_bytes(document.SerializeToString(deterministic=True))


def _part_biases(model: Path) -> None:
    """A bias of its own for each layer: to copies that it makes, the quantizer gives names that may be taken.

    It appends a number to the bias's name, and in files that came from TFLite ``conv1d_252`` is the result of the layer
    whose bias is ``conv1d_25``: the file that it wrote did not load.
    """
    document = onnx.load(str(model))
    weights = {tensor.name: tensor for tensor in document.graph.initializer}
    seen: set[str] = set()
    for position, node in enumerate(document.graph.node):
        bias = weights.get(node.input[2]) if node.op_type in _BIASED and len(node.input) > 2 else None
        if bias is None:
            continue
        if bias.name in seen:
            own = onnx.TensorProto()
            own.CopyFrom(bias)
            own.name = f"{bias.name}/layer{position}"
            document.graph.initializer.append(own)
            node.input[2] = own.name
        seen.add(bias.name)
    model.write_bytes(document.SerializeToString(deterministic=True))


def _columns(gemm: Any, weight: Any) -> int:
    """How many values a row of a Gemm's result has; 0 where its second factor is computed."""
    if weight is None:
        return 0
    turned = any(each.name == "transB" and each.i for each in gemm.attribute)
    return int(weight.dims[0 if turned else 1])


def _first_line(error: BaseException) -> Any:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
