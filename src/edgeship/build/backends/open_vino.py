"""OpenVINO: its own reader, and NNCF int8 with min–max ranges and without bias correction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import openvino

from edgeship.build.backends.base import Artifact, Bindings, Job, Samples, Scheme, bind_by_position
from edgeship.build.quiet import quiet
from edgeship.build.sources import SourceModel
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import open_engine

RUNTIME: Final = "openvino"
#: NNCF sends usage figures unless it believes to run in a test system; Edgeship sends none.
_SILENT: Final = "NNCF_CI"


class OpenVinoBackend:
    """Reads ONNX with OpenVINO's frontend; quantizes with NNCF."""

    def convert(self, job: Job) -> Artifact:
        """The source as OpenVINO's IR in full float32, with a batch of 1."""
        copy = job.source.copy_to(job.folder / "source")
        try:
            with quiet():
                network = openvino.Core().read_model(str(copy))
                shapes = {
                    index: [1, *spec.shape[1:]] for index, spec in enumerate(job.source.inputs) if spec.shape[0] != 1
                }
                if shapes:
                    network.reshape(shapes)
                _fold_constants(network)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConversionError(f"OpenVINO: {_cause(error)}", target=RUNTIME) from error
        return _artifact(job.source, network, job.folder / "fp32", "fp32", "")

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Int8 by NNCF's min–max algorithm alone.

        Its default, fast bias correction and mean ranges, lies two to three times further from the source (build.md).
        """
        network = openvino.Core().read_model(str(float_artifact.model))
        try:
            with quiet():
                quantized = _quantize(network, job.samples, overflow_safe=scheme.weight_bits == 7)
        except Exception as error:
            raise ConversionError(f"NNCF: {_cause(error)}", target=RUNTIME) from error
        return _artifact(job.source, quantized, job.folder / f"int8-{scheme.name}", "int8", scheme.text)


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


def _quantize(network: Any, samples: Samples, *, overflow_safe: bool) -> Any:
    os.environ.setdefault(_SILENT, "1")
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    names = [port.get_any_name() for port in network.inputs]
    order = _input_order(samples, names)
    dataset = nncf.Dataset([[sample[name] for name in order] for sample in samples])
    parameters = AdvancedQuantizationParameters(
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        weights_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        # right in ONNX Runtime and wrong in OpenVINO on the CPU (build.md, trap 2)
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        overflow_fix=OverflowFix.ENABLE if overflow_safe else OverflowFix.FIRST_LAYER,
    )
    return nncf.quantize(network, dataset, subset_size=len(samples), advanced_parameters=parameters)


def _input_order(samples: Samples, names: Sequence[str]) -> list[str]:
    """The samples' keys in the network's order; OpenVINO keeps the source's order and may add names."""
    keys = list(samples[0])
    return [name if name in keys else keys[index] for index, name in enumerate(names)]


def _artifact(source: SourceModel, network: Any, folder: Path, precision: str, scheme: str) -> Artifact:
    folder.mkdir(parents=True)
    model = folder / "model.xml"
    _name_by_position(network)
    with quiet():
        openvino.save_model(network, str(model), compress_to_fp16=False)
    inputs, outputs = _bindings(source, model)
    return Artifact(
        runtime=RUNTIME,
        precision=precision,
        model=model,
        weights=model.with_suffix(".bin"),
        inputs=inputs,
        outputs=outputs,
        scheme=scheme,
    )


def _bindings(source: SourceModel, model: Path) -> Bindings:
    engine = open_engine(RUNTIME, model)
    try:
        return bind_by_position(source, engine.signature, RUNTIME)
    finally:
        engine.close()


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
