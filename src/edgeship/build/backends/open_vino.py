"""OpenVINO: its own reader, and NNCF int8 with min–max ranges and without bias correction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import openvino

from edgeship.build import layout
from edgeship.build.backends.base import Artifact, Job, Samples, Scheme
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import to_artifact

RUNTIME: Final = "openvino"
#: NNCF sends usage figures unless it believes to run in a test system; Edgeship sends none.
_SILENT: Final = "NNCF_CI"


class OpenVinoBackend:
    """Reads ONNX with OpenVINO's frontend; quantizes with NNCF."""

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float file as OpenVINO's IR in full float32, with a batch of 1."""
        try:
            with quiet():
                network = openvino.Core().read_model(str(model))
                _pin_batch(network)
                _fold_constants(network)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConversionError(f"OpenVINO: {_cause(error)}", target=RUNTIME) from error
        file = _save(network, job.folder / "fp32")
        engine = open_engine(RUNTIME, file)
        try:
            inputs, outputs = layout.find_bindings(job, engine, RUNTIME)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="fp32", model=file, weights=file.with_suffix(".bin"), inputs=inputs,
                        outputs=outputs)  # fmt: skip

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Int8 by NNCF's min–max algorithm alone.

        Its default, fast bias correction and mean ranges, lies two to three times further from the source (build.md).
        """
        network = openvino.Core().read_model(str(float_artifact.model))
        try:
            with quiet():
                quantized = _quantize(network, float_artifact.inputs, job.samples, scheme)
        except Exception as error:
            raise ConversionError(f"NNCF: {_cause(error)}", target=RUNTIME) from error
        file = _save(quantized, job.folder / f"int8-{scheme.name}")
        engine = open_engine(RUNTIME, file)
        try:
            inputs = layout.rebind(float_artifact.inputs, engine.signature.inputs, RUNTIME)
            outputs = layout.rebind(float_artifact.outputs, engine.signature.outputs, RUNTIME)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="int8", model=file, weights=file.with_suffix(".bin"), inputs=inputs,
                        outputs=outputs, scheme=scheme.text)  # fmt: skip


def _pin_batch(network: Any) -> None:
    """Free first axes become 1."""
    shapes = {}
    for index, port in enumerate(network.inputs):
        sizes = [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
        if sizes and sizes[0] is None:
            shapes[index] = [1, *sizes[1:]]
    if shapes:
        network.reshape(shapes)


def _fold_constants(network: Any) -> None:
    """Weights behind a reshape become weights: NNCF would look for their channels on the wrong axis."""
    from openvino.passes import ConstantFolding, Manager

    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(network)


def _name_by_position(network: Any) -> None:
    """Names that depend on the graph alone: OpenVINO numbers unnamed operators through the whole process."""
    for position, operator in enumerate(network.get_ordered_ops()):
        if operator.get_type_name() not in {"Parameter", "Result"}:
            operator.set_friendly_name(f"{operator.get_type_name()}_{position}")


def _quantize(network: Any, bindings: Sequence[Binding], samples: Samples, scheme: Scheme) -> Any:
    os.environ.setdefault(_SILENT, "1")
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    order = sorted(bindings, key=lambda each: each.artifact_index)
    dataset = nncf.Dataset([[to_artifact(each, sample[each.name]) for each in order] for sample in samples])
    parameters = AdvancedQuantizationParameters(
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        weights_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        # right in ONNX Runtime and wrong in OpenVINO on the CPU (build.md, trap 2)
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        overflow_fix=OverflowFix.ENABLE if scheme.weight_bits == 7 else OverflowFix.FIRST_LAYER,
    )
    return nncf.quantize(network, dataset, subset_size=len(samples), advanced_parameters=parameters)


def _save(network: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    model = folder / "model.xml"
    _name_by_position(network)
    with quiet():
        openvino.save_model(network, str(model), compress_to_fp16=False)
    return model


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
