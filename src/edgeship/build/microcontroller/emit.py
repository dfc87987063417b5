"""From a .tflite file to C sources on disk, with a sample call computed by LiteRT's reference kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship.build.microcontroller import operators
from edgeship.build.microcontroller.arena import Estimate, estimate
from edgeship.build.microcontroller.c_source import Array, MicroModel, header, identifier, source
from edgeship.build.microcontroller.planner import aligned
from edgeship.build.quiet import quiet
from edgeship.build.tflite_file import TfliteGraph, TfliteModel, TfliteTensor, parse_tflite
from edgeship_agent.contract.errors import ConversionError, InputError
from edgeship_agent.contract.frames import TensorFile
from edgeship_agent.contract.manifest import Binding, BundleManifest, Variant
from edgeship_agent.processing import prepare
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.tensors import sample_arrays

#: On top of the estimate, as a fraction: on eight published models it was at most 1 % below what TFLM took.
_SPARE: Final = 0.05
#: Of the sample input of a file that comes without data.
_SEED: Final = 20260
_DTYPES: Final = frozenset({"int8", "uint8", "int16", "int32", "bool", "float32"})


def micro_model(
    data: bytes, name: str, *, version: str = "", inputs: Sequence[Array] = (), file: object = None
) -> MicroModel:
    """Everything that the C sources of a file say.

    Args:
        data: the .tflite file.
        name: of the model; its C name is made from it, the same for every version.
        version: of the model, where it has one.
        inputs: a sample in the file's own types; without it, one from a fixed seed.
        file: for errors.

    Raises:
        InputError: not a TFLite file, or damaged.
        ConversionError: TensorFlow Lite Micro does not run it, or it is not in integers throughout.
    """
    model = parse_tflite(data, file=file)
    _check(model, file)
    main = model.main
    ends = [main.tensors[index] for index in main.inputs]
    sample = tuple(inputs) or _random(ends)
    return MicroModel(
        name=identifier(name),
        title=f"{name} {version}".rstrip(),
        data=data,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        inputs=tuple(ends),
        outputs=tuple(main.tensors[index] for index in main.outputs),
        arena_bytes=recommended_bytes(estimate(model)),
        operators=tuple(dict.fromkeys(operator.name for operator in model.operators)),
        sample_inputs=sample,
        sample_outputs=_reference(data, sample, file),
    )


def recommended_bytes(found: Estimate) -> int:
    """The estimate and something to spare.

    >>> recommended_bytes(Estimate(planned_bytes=1000, least_bytes=900, persistent_bytes=1000, planning_bytes=0))
    2112
    """
    return aligned(int(found.total_bytes * (1.0 + _SPARE)))


def write(model: MicroModel, folder: Path) -> tuple[Path, Path]:
    """Write ``<name>.h`` and ``<name>.c`` into a folder that exists."""
    paths = (folder / f"{model.name}.h", folder / f"{model.name}.c")
    paths[0].write_text(header(model), encoding="ascii")
    paths[1].write_text(source(model), encoding="ascii")
    return paths


def golden_inputs(manifest: BundleManifest, variant: Variant, samples: TensorFile) -> list[Array]:
    """The first golden sample of a bundle as the file's own inputs.

    Args:
        manifest: holds the preprocessing.
        variant: holds layout and quantization.
        samples: the variant's golden inputs, as an application would hand them over.
    """
    prepared: Mapping[str, Array] = prepare(manifest.input_contracts, sample_arrays(samples.samples[0]))
    return in_file_order(variant.inputs, prepared)


def in_file_order(bindings: Sequence[Binding], prepared: Mapping[str, Array]) -> list[Array]:
    """Prepared inputs of the source as the file's own, in its order."""
    ordered: list[Any] = [None] * len(bindings)
    for binding in bindings:
        ordered[binding.artifact_index] = to_artifact(binding, prepared[binding.name])
    return ordered


def _check(model: TfliteModel, file: object) -> None:
    refused = operators.unsupported(model)
    if refused:
        raise ConversionError(f"TensorFlow Lite Micro does not run {', '.join(refused)}", target="cortex-m", file=file,
                              next_step="build the model without them, in full int8")  # fmt: skip
    if not operators.is_full_int8(model):
        raise ConversionError(
            "not in integers throughout: inputs and outputs are "
            + ", ".join(sorted({tensor.dtype for tensor in _ends(model.main)})),
            target="cortex-m", file=file, next_step="quantize it in full, with int8 inputs and outputs",
        )  # fmt: skip
    foreign = sorted({tensor.dtype for tensor in _ends(model.main)} - _DTYPES)
    if foreign or any(tensor.free_axes and max(tensor.free_axes) for tensor in _ends(model.main)):
        raise ConversionError("inputs and outputs need fixed sizes and plain types", target="cortex-m", file=file,
                              next_step="export the model with fixed sizes")  # fmt: skip


def _ends(graph: TfliteGraph) -> list[TfliteTensor]:
    return [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]


def _random(tensors: Sequence[TfliteTensor]) -> tuple[Array, ...]:
    rng = np.random.default_rng(_SEED)
    arrays = []
    for tensor in tensors:
        dtype = np.dtype(tensor.dtype)
        limits = np.iinfo(dtype if dtype.kind in "iu" else np.uint8)
        high = 2 if dtype.kind == "b" else limits.max + 1
        low = 0 if dtype.kind == "b" else limits.min
        arrays.append(rng.integers(low, high, [abs(size) for size in tensor.shape], dtype=np.int64).astype(dtype))
    return tuple(arrays)


def _reference(data: bytes, sample: Sequence[Array], file: object) -> tuple[Array, ...]:
    """Outputs by LiteRT's reference kernels, whose arithmetic TFLM's share; XNNPACK rounds elsewhere."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with quiet():
            interpreter: Any = Interpreter(model_content=data, num_threads=1,
                                           experimental_op_resolver_type=OpResolverType.BUILTIN_REF)  # fmt: skip
            interpreter.allocate_tensors()
            for detail, array in zip(interpreter.get_input_details(), sample, strict=True):
                interpreter.set_tensor(detail["index"], array.reshape(detail["shape"]))
            interpreter.invoke()
            return tuple(
                np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()
            )
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"LiteRT's reference kernels refuse it: {str(error).strip().splitlines()[0]}",
                         file=file) from error  # fmt: skip
