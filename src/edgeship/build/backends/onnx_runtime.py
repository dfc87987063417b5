"""ONNX Runtime: the source as it is, and static QDQ int8 with true min–max ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeship.build import layout
from edgeship.build.backends.base import Artifact, Bindings, Job, Samples, Scheme
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Array

RUNTIME: Final = "onnxruntime"
#: DequantizeLinear has an axis from here on, so weights can be quantized per channel. Source: ONNX operator changelog.
PER_CHANNEL_OPSET: Final = 13
#: Weights need not be inputs from here on. Source: ONNX, docs/IR.md, version 4.
_CONSTANT_WEIGHTS_IR: Final = 4
_TYPES: Final = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


class OnnxRuntimeBackend:
    """Float as a route delivers it; int8 by ONNX Runtime's own quantizer."""

    def convert(self, job: Job, model: Path) -> Artifact:
        """The file with its weights as constants, and the layout found by running it against the source."""
        folder = job.folder / "fp32"
        folder.mkdir(parents=True)
        file = folder / "model.onnx"
        data, notes = _with_constant_weights(model.read_bytes())
        file.write_bytes(data)
        engine = open_engine(RUNTIME, file)
        try:
            inputs, outputs = layout.find_bindings(job, engine, RUNTIME)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="fp32", model=file, inputs=inputs, outputs=outputs, notes=notes)

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Static QDQ int8 from a private copy of the float file, its opset raised first where that allows more."""
        folder = job.folder / f"int8-{scheme.name}"
        folder.mkdir(parents=True)
        ready, opset = _prepare(float_artifact.model, folder)
        per_channel = opset >= PER_CHANNEL_OPSET
        model = folder / "model.onnx"
        try:
            with quiet():
                quantize_static(
                    str(ready),
                    str(model),
                    _Reader(float_artifact.inputs, job.samples),
                    quant_format=QuantFormat.QDQ,
                    per_channel=per_channel,
                    reduce_range=scheme.weight_bits == 7,
                    activation_type=_TYPES[scheme.activation],
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
        except Exception as error:
            raise ConversionError(f"ONNX Runtime's quantizer: {_first_line(error)}", target=RUNTIME) from error
        inputs, outputs = _rebind(float_artifact, model)
        fallback = f"per tensor: the model could not be raised from opset {opset} to {PER_CHANNEL_OPSET}"
        fallbacks = () if per_channel else (fallback,)
        return Artifact(
            runtime=RUNTIME,
            precision="int8",
            model=model,
            inputs=inputs,
            outputs=outputs,
            scheme=scheme.text if per_channel else scheme.text.replace("per channel", "per tensor"),
            notes=fallbacks,
            fallbacks=fallbacks,
        )


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
    document.ir_version = max(document.ir_version, _CONSTANT_WEIGHTS_IR)
    return (
        document.SerializeToString(deterministic=True),
        (f"{len(listed)} weights that the model listed among its inputs are constants",),
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration samples over one by one."""

    def __init__(self, bindings: Sequence[Binding], samples: Samples) -> None:
        self._bindings = bindings
        self._samples: Iterator[Mapping[str, Array]] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next sample in the file's names and layout, or None."""
        sample = next(self._samples, None)
        if sample is None:
            return None
        return {
            each.artifact_name: np.asarray(to_artifact(each, sample[each.name]), order="C") for each in self._bindings
        }


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
            _flatten_biases(ready)
    except Exception:  # noqa: BLE001 (an optional step: without it the same model is quantized with fewer fusions)
        return raised, opset
    return ready, opset


def _opset(document: Any) -> int:
    return max((entry.version for entry in document.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _flatten_biases(model: Path) -> None:
    """Biases of Gemm as vectors: the fusion leaves [1, N], on which the quantizer's per-channel rule fails."""
    document = onnx.load(str(model))
    weights = {tensor.name: tensor for tensor in document.graph.initializer}
    for node in document.graph.node:
        bias = weights.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if bias is not None and len(bias.dims) == 2 and bias.dims[0] == 1:
            del bias.dims[0]
    # shapes that old files state for their weights, as inputs or in between, would contradict
    for values in (document.graph.input, document.graph.value_info):
        for value in [each for each in values if each.name in weights]:
            values.remove(value)
    model.write_bytes(document.SerializeToString(deterministic=True))


def _rebind(float_artifact: Artifact, model: Path) -> Bindings:
    engine = open_engine(RUNTIME, model)
    try:
        return (
            layout.rebind(float_artifact.inputs, engine.signature.inputs, RUNTIME),
            layout.rebind(float_artifact.outputs, engine.signature.outputs, RUNTIME),
        )
    finally:
        engine.close()


def _first_line(error: BaseException) -> Any:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
