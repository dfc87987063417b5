"""Ranges of what flows through a model over the calibration data, as far as its format lets one look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeship.build.sources import SourceModel
from edgeship.build.sufficiency import Sufficiency, TensorRange, range_stability, ranges_of
from edgeship_agent.contract.errors import EngineError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import Array

#: Activations are looked at on so many samples, at equal distances, and in models of so many operators.
_MOST_SAMPLES: Final = 400
_MOST_OPERATORS: Final = 2_000
#: Larger graphs are not copied once more.
_MOST_BYTES: Final = 500_000_000


def sufficiency(
    source: SourceModel, samples: Sequence[Mapping[str, Array]], outputs: Mapping[str, Array], folder: Path
) -> Sufficiency:
    """Whether the calibration data sets stable ranges: of inputs and outputs, and of activations of an ONNX source.

    Args:
        source: the model.
        samples: prepared calibration inputs, batch axis included.
        outputs: name → [N, …], the source's answers to them.
        folder: private, for a copy with more outputs.
    """
    found = ranges_of({spec.name: [sample[spec.name] for sample in samples] for spec in source.inputs})
    found += ranges_of({name: list(array) for name, array in outputs.items()})
    small = 0 < len(source.data) <= _MOST_BYTES and source.operators <= _MOST_OPERATORS
    if source.format == "onnx" and small and len(samples) > 1:
        known = {each.name for each in found}
        chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), _MOST_SAMPLES)).round().astype(int))
        inside = _inside(source, [samples[index] for index in chosen], folder)
        found += [each for each in inside if each.name not in known]
    return range_stability(found)


def _inside(source: SourceModel, samples: Sequence[Mapping[str, Array]], folder: Path) -> list[TensorRange]:
    """Ranges of every float tensor between an ONNX graph's inputs and outputs; nothing where it cannot be run so."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load_from_string(source.data)
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = [value.name for value in inferred.graph.value_info
              if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]  # fmt: skip
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in floats)
    path = folder / "observed.onnx"
    onnx.save(model, path)
    order = [spec.name for spec in source.inputs]
    rows = []
    try:
        engine = open_engine("onnxruntime", path)
    except EngineError:
        return []
    try:
        for sample in samples:
            answers = engine.run([np.ascontiguousarray(sample[name]) for name in order])[len(source.outputs) :]
            rows.append([(answer.min(), answer.max()) if answer.size else (0.0, 0.0) for answer in answers])
    except EngineError:
        return []
    finally:
        engine.close()
    seen = np.asarray(rows, np.float64).reshape(len(rows), len(floats), 2)
    return [TensorRange(name=name, low=seen[:, k, 0], high=seen[:, k, 1]) for k, name in enumerate(floats)]
