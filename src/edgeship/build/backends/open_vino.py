"""OpenVINO: its own reader, and NNCF int8 with ranges and weights of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import openvino
from msgspec import structs

from edgeship.build import layout
from edgeship.build.backends import openvino_quantizer
from edgeship.build.backends.base import Artifact, Job, Samples, Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.openvino_biases import with_unlike_biases
from edgeship.build.backends.openvino_graph import OpenVinoGraph
from edgeship.build.backends.openvino_halves import halve_constants, halve_float_weights
from edgeship.build.quiet import quiet
from edgeship.build.search import floats
from edgeship.build.search.gain import is_fine, no_gain
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.open_vino import signature_of

RUNTIME: Final = "openvino"
#: Samples from which NNCF derives ranges that are replaced afterwards.
_FEW: Final = 4
#: Arithmetic that is no product.
_ELEMENTWISE: Final = frozenset({"Add", "Divide", "Multiply", "Power", "ReduceMean", "Sigmoid", "Softmax", "Sqrt",
                                 "Subtract", "Tanh"})  # fmt: skip


class OpenVinoBackend:
    """Reads ONNX with OpenVINO's frontend; quantizes with NNCF."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], tuple[Calibration, Samples]] = {}
        self._quantized: dict[tuple[Path, str], Path] = {}

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float file as OpenVINO's IR in full float32, with a batch of 1."""
        try:
            with quiet():
                network = openvino.Core().read_model(str(model))
                _pin_batch(network)
                network = _with_float_ends(network)
                _fold_constants(network)
                with_unlike_biases(network)
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
        """Another precision; int8 by NNCF's min–max algorithm, its ranges then replaced by ours.

        Its default, fast bias correction and mean ranges, lies two to three times further from the source (build.md).
        """
        calibration = self.calibration(job, float_artifact)
        weights = float_artifact.weights.stat().st_size if float_artifact.weights else 0
        if reason := no_gain(calibration.operators, scheme.precision, weights, float_artifact.size_bytes):
            raise ConversionError(reason, target=RUNTIME)
        try:
            with quiet():
                if scheme.precision == "int8":
                    network = self._int8(calibration, float_artifact, job.samples, scheme)
                else:
                    network = openvino_quantizer.lower(float_artifact.model, scheme.precision)
        except ConversionError:
            raise
        except Exception as error:
            raise ConversionError(f"NNCF: {_cause(error)}", target=RUNTIME) from error
        half = scheme.precision == "fp16" and not halve_constants(network, floats.scaling(calibration.operators))
        file = _save(network, job.folder / scheme.name, half=half)
        # read and not compiled, which takes ten seconds for a graph of thousands: whoever runs it first loads it
        signature = signature_of(openvino.Core().read_model(str(file)))
        inputs, outputs = layout.rebound(float_artifact, file, RUNTIME, signature)
        return Artifact(runtime=RUNTIME, precision=scheme.precision, model=file, weights=file.with_suffix(".bin"),
                        inputs=inputs, outputs=outputs, scheme=scheme.text)  # fmt: skip

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """Operators and ranges of the float network."""
        key = (float_artifact.model, id(job.samples))
        if key not in self._known:
            folder = job.folder / "ready"
            folder.mkdir(parents=True, exist_ok=True)
            graph = OpenVinoGraph(float_artifact.model, float_artifact.inputs)
            calibration = Calibration(graph, job.samples, lambda name: folder / f"{name}.xml", float_artifact.model)
            self._known[key] = (calibration, job.samples)
        return self._known[key][0]

    def _int8(self, calibration: Calibration, float_artifact: Artifact, samples: Samples, scheme: Scheme) -> Any:
        """NNCF's network; where its ranges are replaced by ours, one serves all estimators."""
        float_file = calibration.file(scheme)
        if scheme.tool:
            network = openvino.Core().read_model(str(float_file))
            openvino_quantizer.bound_masks(network, calibration)
            return openvino_quantizer.quantize(network, float_artifact.inputs, samples, scheme)
        plain = structs.replace(scheme, estimator="minmax")
        key = (float_file, plain.name)
        plain = structs.replace(plain, weight_bits=8)  # fewer bits on a grid of ours, afterwards
        if key not in self._quantized:
            network = openvino.Core().read_model(str(float_file))
            openvino_quantizer.bound_masks(network, calibration)
            if is_fine(calibration.operators):
                plain = structs.replace(plain, floats=_with_all_between_products(network, plain.floats))
            # a few samples do where the ranges are replaced afterwards
            network = openvino_quantizer.quantize(network, float_artifact.inputs, samples[:_FEW], plain)
            if scheme.weight_bits == 7:
                openvino_quantizer.narrow_weights(network)
            file = calibration.original.parent / f"nncf{len(self._quantized)}.xml"
            openvino.save_model(network, str(file), compress_to_fp16=False)
            self._quantized[key] = file
        network = openvino.Core().read_model(str(self._quantized[key]))
        openvino_quantizer.set_ranges(network, calibration.ranges(scheme.estimator))
        halve_float_weights(network)
        return network


def _with_all_between_products(network: Any, floats: Sequence[str]) -> tuple[str, ...]:
    """What stays in float, and all that is no product of a graph of thousands of operators.

    Loops written out are sums, gates and squashes between small products. With quantizers at each of them, a graph of
    2,369 operators had 1,484 quantizers and 4.1 MB of XML instead of 168 and 1.9, and took 11.6 s to load, not 3.4.
    """
    between = [each.get_friendly_name() for each in network.get_ordered_ops() if each.get_type_name() in _ELEMENTWISE]
    return tuple(dict.fromkeys((*floats, *between)))


def _pin_batch(network: Any) -> None:
    """Free first axes become 1."""
    shapes = {}
    for index, port in enumerate(network.inputs):
        sizes = [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
        if sizes and sizes[0] is None:
            shapes[index] = [1, *sizes[1:]]
    if shapes:
        network.reshape(shapes)


def _with_float_ends(network: Any) -> Any:
    """Half and double precision at the ends become float32: devices hand over and take nothing else."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    others = {Type.f16, Type.bf16, Type.f64}
    inputs = [index for index, port in enumerate(network.inputs) if port.get_element_type() in others]
    outputs = [index for index, port in enumerate(network.outputs) if port.get_element_type() in others]
    if not inputs and not outputs:
        return network
    ends = PrePostProcessor(network)
    for index in inputs:
        ends.input(index).tensor().set_element_type(Type.f32)
    for index in outputs:
        ends.output(index).tensor().set_element_type(Type.f32)
    return ends.build()


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


def _save(network: Any, folder: Path, *, half: bool = False) -> Path:
    folder.mkdir(parents=True)
    model = folder / "model.xml"
    _name_by_position(network)
    with quiet():
        openvino.save_model(network, str(model), compress_to_fp16=half)
    return model


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
