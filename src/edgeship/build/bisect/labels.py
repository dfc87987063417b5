"""What kind of fault it is: conversion, layout, quantization or runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from onnx import TensorProto, numpy_helper

from edgeship.build.bisect.outcome import Outcome
from edgeship.build.bisect.sides import is_quantized, without_rounding

Label = Literal["conversion", "layout", "quantization", "runtime"]


class Judgement(Struct, frozen=True, kw_only=True):
    """A kind of fault, and why it is that one."""

    label: Label
    why: str


_MOVED = Judgement(label="layout", why="the numbers are right, their places are not")


def of_runtime(runtime: str, outcome: Outcome) -> Judgement:
    """The fault of a part that a runtime reads or converts.

    >>> of_runtime("litert", Outcome(kind="refused", stage="conversion")).label
    'conversion'
    """
    if outcome.kind == "diverges":
        return _MOVED if outcome.layout else _of_kernels(runtime, plain_agrees=outcome.plain_agrees)
    if outcome.stage == "conversion":
        ended = "ended the process that made" if outcome.kind == "killed" else "did not make"
        return Judgement(label="conversion", why=f"the converter {ended} a file for {runtime} of it")
    return Judgement(label="runtime", why=f"{runtime} does not run the file that was made of it")


def _of_kernels(runtime: str, *, plain_agrees: bool | None) -> Judgement:
    """Whether the file is wrong or what runs it; reference kernels share no code with the fast ones."""
    if runtime == "onnxruntime":
        return Judgement(label="runtime", why="the same file differs with and without ONNX Runtime's optimisations")
    if plain_agrees:
        return Judgement(label="runtime", why=f"{runtime}'s reference kernels compute the source's numbers from it")
    if plain_agrees is None:
        return Judgement(label="conversion", why=f"{runtime} has no reference kernels for it that would say otherwise")
    return Judgement(label="conversion", why=f"{runtime}'s reference kernels differ from the source as well")


def of_artifact(source: Any, artifact: Any, outcome: Outcome, run: Callable[[Any], Outcome]) -> Judgement:
    """The fault of a part of another file.

    Args:
        source: the source's part as a model.
        artifact: the other file's.
        outcome: how it fails.
        run: runs another model in the artifact's place.
    """
    if outcome.kind == "killed":
        return Judgement(label="runtime", why="no file may end the process that runs it")
    if _content(source) == _content(artifact):
        return Judgement(label="runtime", why="both files hold the same operators and weights there")
    if outcome.kind == "refused":
        return Judgement(label="conversion", why="ONNX Runtime runs the source's part and refuses the other one")
    return _MOVED if outcome.layout else _of_numbers(artifact, run)


def _of_numbers(artifact: Any, run: Callable[[Any], Outcome]) -> Judgement:
    """Whether a file that computes something else does so because it rounds."""
    rounds = any(node.op_type == "QuantizeLinear" for node in artifact.graph.node)
    if rounds and run(without_rounding(artifact)).kind == "agrees":
        return Judgement(label="quantization", why="it agrees where its activations are not rounded")
    if rounds:
        return Judgement(label="conversion", why="it diverges even where its activations are not rounded")
    if is_quantized(artifact):
        return Judgement(label="quantization", why="it computes with few bits")
    if _is_half(artifact):
        return Judgement(label="quantization", why="it computes in half precision")
    return Judgement(label="conversion", why="its operators, attributes or weights are not the source's")


def _content(model: Any) -> tuple[object, ...]:
    """What a model computes with: operators, weights and operator sets."""
    nodes = []
    for node in model.graph.node:
        attributes = tuple(sorted(each.SerializeToString(deterministic=True) for each in node.attribute))
        nodes.append((node.domain, node.op_type, tuple(node.input), tuple(node.output), attributes))
    weights = [(tensor.name, tuple(tensor.dims), tensor.data_type, _bytes(tensor)) for tensor in
               model.graph.initializer]  # fmt: skip
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return (tuple(nodes), tuple(sorted(weights)), tuple(opsets))


def _bytes(tensor: Any) -> bytes:
    return bytes(numpy_helper.to_array(tensor).tobytes())


def _is_half(model: Any) -> bool:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return bool(kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16})
