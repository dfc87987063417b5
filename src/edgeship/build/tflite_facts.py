"""What a TFLite model is made of, and what the installed runtimes say about it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from edgeship.build import partitions
from edgeship.build.backends.tflite_plain import with_plain_operators
from edgeship.build.microcontroller import operators
from edgeship.build.microcontroller.arena import estimate
from edgeship.build.microcontroller.lifetimes import buffers_of
from edgeship.build.microcontroller.planner import least_bytes
from edgeship.build.tflite_file import TfliteModel, TfliteTensor, read_tflite
from edgeship.targets import ModelFacts, OperatorUse, Partitions
from edgeship.targets.wording import free_shape
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime import runtime_version

#: How LiteRT names a custom operator that it does not have.
_CUSTOM: Final = re.compile(r"unresolved custom op: ([^\s.]+)")


def facts_of_tflite(path: Path, runtimes: Collection[str]) -> ModelFacts:
    """Everything that :func:`edgeship.targets.check` asks about a TFLite model.

    Args:
        path: the file.
        runtimes: those that are asked where they are installed.

    Raises:
        InputError: the file cannot be used.
    """
    with TemporaryDirectory(prefix="edgeship-") as folder:
        return _facts(_plain(path, Path(folder)), runtimes, path)


def _plain(path: Path, folder: Path) -> Path:
    """The file as converters and quantizers get it; a quantized one is passed through as it is."""
    if is_quantized(read_tflite(path)):
        return path
    data = path.read_bytes()
    try:
        written = with_plain_operators(data)
    except (ValueError, RuntimeError):  # LiteRT refuses its constants: it says so when it is asked below
        return path
    if written == data:
        return path
    plain = folder / path.name
    plain.write_bytes(written)
    return plain


def _facts(asked: Path, runtimes: Collection[str], path: Path) -> ModelFacts:
    model = read_tflite(asked)
    try:
        peak = least_bytes(buffers_of(model))
    except ValueError as error:
        raise InputError(str(error), file=path, expected="graphs that call each other in order") from error
    unsupported = {"tflm": operators.unsupported(model)}
    pieces = {}
    main = model.main
    ends = [main.tensors[index] for index in (*main.inputs, *main.outputs)]
    free = [tensor for tensor in ends[: len(main.inputs)] if max(tensor.free_axes, default=0)]
    if "litert" in runtimes and runtime_version("litert") and not free:  # with sizes of 1 it may not even load
        pieces["litert"] = partitions.of_model("litert", "XNNPACK", asked)
        unsupported["litert"] = _refused_by_litert(pieces["litert"])
    if "openvino" in runtimes and runtime_version("openvino"):
        from edgeship.build.model_facts import unknown_to_openvino

        unsupported["openvino"] = unknown_to_openvino(asked)
    return ModelFacts(
        format="tflite",
        operators=_uses(model),
        weight_bytes=model.weight_bytes,
        peak_activation_bytes=None if free else peak,
        dynamic_inputs=tuple(tensor.name for tensor in free),
        shape_options=tuple(free_shape(tensor.name, _sizes(tensor)) for tensor in free),
        io_dtypes=tuple(sorted({tensor.dtype for tensor in ends})),
        quantized=is_quantized(model),
        unsupported=unsupported,
        partitions=pieces,
        arena_bytes=estimate(model).total_bytes if operators.is_full_int8(model) and not free else None,
    )


def _sizes(tensor: TfliteTensor) -> tuple[int, ...]:
    """A tensor's sizes, -1 for those that are free."""
    return tuple(-1 if axis in tensor.free_axes else size for axis, size in enumerate(tensor.shape))


def is_quantized(model: TfliteModel) -> bool:
    """Whether any of its weights are integers of 8 bits or fewer, as a converter's default leaves them."""
    return any(
        tensor.constant and tensor.scales and tensor.dtype in {"int8", "uint8", "int4"} and len(tensor.shape) > 1
        for graph in model.graphs
        for tensor in graph.tensors
    )


def _uses(model: TfliteModel) -> tuple[OperatorUse, ...]:
    found: dict[str, list[tuple[str, int]]] = {}
    counts: dict[str, int] = {}
    for graph in model.graphs:
        for operator in graph.operators:
            inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
            found.setdefault(operator.name, []).extend((tensor.dtype, len(tensor.shape)) for tensor in inputs)
            counts[operator.name] = counts.get(operator.name, 0) + 1
    return tuple(
        OperatorUse(op=name, count=counts[name], dtypes=tuple(sorted({dtype for dtype, _ in found[name]})),
                    max_rank=max((rank for _, rank in found[name]), default=0))
        for name in sorted(found)
    )  # fmt: skip


def _refused_by_litert(answer: Partitions) -> tuple[str, ...]:
    if not answer.refused:
        return ()
    named = _CUSTOM.search(answer.refused)
    return (f"CUSTOM::{named[1]}" if named else f"something in it: {answer.refused[:160]}",)
