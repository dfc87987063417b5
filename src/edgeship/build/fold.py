"""ONNX with one batch and its constant parts computed: converters stumble over shapes that a graph computes itself."""

from __future__ import annotations

from pathlib import Path

from edgeship.build.quiet import quiet
from edgeship.build.sources import SourceModel
from edgeship_agent.contract.errors import ConversionError


def fold(source: SourceModel, model: Path, folder: Path) -> Path:
    """Pin free axes to one call of the source and let ONNX Runtime fold constants, in standard operators.

    Args:
        source: says the shapes of one call.
        model: an ONNX file with the source's inputs in its order.
        folder: to write in.

    Raises:
        ConversionError: ONNX Runtime refuses the file.
    """
    import onnx
    import onnxruntime  # a build that finds everything remembered folds nothing

    document = onnx.load(str(model))
    weights = {tensor.name for tensor in document.graph.initializer}
    values = [value for value in document.graph.input if value.name not in weights]
    for value, spec in zip(values, source.inputs, strict=False):
        axes = value.type.tensor_type.shape.dim
        if len(axes) == len(spec.shape):
            for axis, size in zip(axes, spec.call_shape, strict=True):
                axis.dim_value = size
    folded = folder / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 4
    try:
        with quiet():
            onnxruntime.InferenceSession(document.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ConversionError(f"ONNX Runtime cannot fold its constants: {reason}") from error
    return folded
