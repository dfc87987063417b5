"""LiteRT: onnx2tf in its own environment, then ai-edge-quantizer with true min–max ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgeship.build import layout
from edgeship.build.backends.base import Artifact, Job, Samples, Scheme
from edgeship.build.backends.tflite_signature import with_signature
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Array, Engine

RUNTIME: Final = "litert"


class LiteRtBackend:
    """Float as a route delivers it; int8 by ai-edge-quantizer."""

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float32 ``.tflite``, with the layout found by running it against the source."""
        folder = job.folder / "fp32"
        folder.mkdir(parents=True)
        file = folder / "model.tflite"
        file.write_bytes(with_signature(model.read_bytes()))
        engine = _open(file)
        try:
            inputs, outputs = layout.find_bindings(job, engine, RUNTIME)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="fp32", model=file, inputs=inputs, outputs=outputs)

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Int8 throughout, with float inputs and outputs."""
        folder = job.folder / f"int8-{scheme.name}"
        folder.mkdir(parents=True)
        model = folder / "model.tflite"
        try:
            with quiet():
                data = _quantize(float_artifact, job.samples, scheme)
        except Exception as error:
            raise ConversionError(f"ai-edge-quantizer: {_first_line(error)}", target=RUNTIME) from error
        model.write_bytes(data)
        engine = _open(model)
        try:
            inputs = layout.rebind(float_artifact.inputs, engine.signature.inputs, RUNTIME)
            outputs = layout.rebind(float_artifact.outputs, engine.signature.outputs, RUNTIME)
        finally:
            engine.close()
        return Artifact(
            runtime=RUNTIME, precision="int8", model=model, inputs=inputs, outputs=outputs, scheme=scheme.text
        )


def _quantize(float_artifact: Artifact, samples: Samples, scheme: Scheme) -> bytes:
    """Int8 from ranges that hold every calibration value.

    ``Quantizer.calibrate()`` averages the ranges of successive samples (factor .95) and clips; the calibrator beneath
    takes the rule by which ranges are merged, and minimum and maximum are the true ones.
    """
    from ai_edge_quantizer import calibrator, quantizer
    from ai_edge_quantizer.utils import qsv_utils

    path = str(float_artifact.model)
    calibration = calibrator.Calibrator(path, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    manager = _rules(scheme, float_outputs=not _outputs_are_used(calibration))
    signature, names = _signature_inputs(calibration)
    inputs = [{names[each.artifact_name]: _array(each, sample[each.name]) for each in float_artifact.inputs}
              for sample in samples]  # fmt: skip
    calibration.calibrate({signature: inputs}, manager)
    result = quantizer.Quantizer(path, manager.get_quantization_recipe()).quantize(
        calibration.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)


def _outputs_are_used(calibration: Any) -> bool:
    """Whether an output of the graph is an operator's input too: kept float, it would be read as if it were int8."""
    graph = calibration._flatbuffer_model.subgraphs[0]
    return any(index in graph.outputs for operator in graph.operators for index in operator.inputs)


def _rules(scheme: Scheme, *, float_outputs: bool) -> Any:
    """Everything in int8 but the ends: float inputs and outputs are converted faster inside than by the caller."""
    from ai_edge_quantizer import recipe, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    # with one scale a channel, LiteRT's BATCH_MATMUL answers nothing but zeros
    products = [TFLOperationName.BATCH_MATMUL]
    products += [TFLOperationName.FULLY_CONNECTED] if scheme.matmul_per_tensor else []
    for product in products:
        manager.add_static_config(".*", product, 8, 8, weight_granularity=QuantGranularity.TENSORWISE)
    for end in [TFLOperationName.INPUT, *([TFLOperationName.OUTPUT] if float_outputs else [])]:
        manager.add_quantization_config(regex=".*", operation_name=end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return manager


def _signature_inputs(calibration: Any) -> tuple[str, dict[str, str]]:
    """The one signature's key, and tensor name → its argument."""
    interpreter = calibration._tfl_interpreter
    key = next(iter(interpreter.get_signature_list()))
    details = interpreter.get_signature_runner(key).get_input_details()
    return str(key), {str(detail["name"]): str(argument) for argument, detail in details.items()}


def _array(binding: Binding, array: Array) -> Array:
    return to_artifact(binding, array)


def _open(model: Path) -> Engine:
    try:
        with quiet():
            return open_engine(RUNTIME, model)
    except EngineError as error:
        raise ConversionError(f"the converted file does not load: {error.message}", target=RUNTIME) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
