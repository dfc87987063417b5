"""PyTorch → ONNX: one file of float32, the same bytes for the same model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from . import bags
from .calling import Flat
from .inputs import examples
from .model import Model, Refused, reason

#: The oldest opset that the exporter writes without converting down. Source: torch.onnx.export, ``opset_version``.
OPSET = 18
_INNER = "inner."


def convert(flat: Flat, model: Model, outputs: list[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``model.onnx``.

    Args:
        flat: the model.
        model: its inputs.
        outputs: their names, in order.
        request: ``to`` and ``folder``.

    Returns:
        ``file``, and ``fallbacks``: what was given up on the way.

    Raises:
        Refused: neither exporter can do it.
    """
    if request["to"] != "onnx":
        raise Refused(f"PyTorch does not write {request['to']}", kind="conversion", next_step="go through ONNX")
    path = Path(request["folder"]) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = [each.name for each in model.tensors] + [state.name for state in model.memory]
    fallbacks = []
    try:
        _export(flat, model, inputs, outputs, path)
    except Exception as error:  # noqa: BLE001 (the exporter raises whatever a step of it meets); it is told
        fallbacks.append(f"torch.export could not take it ({reason(error)}): PyTorch's older exporter did")
        _export_traced(flat, model, inputs, outputs, path, error)
    _tidy(path, inputs, outputs)
    return {"file": str(path), "fallbacks": fallbacks}


def _export(flat: Flat, model: Model, inputs: list[str], outputs: list[str], path: Path) -> None:
    given = tuple(examples(model))
    captured = _captured_script(flat, model, given) if model.is_script else flat
    program = torch.export.export(captured, given, strict=False)
    bags.write_out(program)
    written = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
    )
    assert written is not None
    for value in list(written.model.graph.initializers.values()):
        value.name = value.name.removeprefix(_INNER)
    written.save(path, external_data=False)


def _captured_script(flat: Flat, model: Model, given: tuple[Any, ...]) -> Any:
    """TorchScript as a graph of operators: recorded while it runs; what branches on values of a tensor raises."""
    with torch.jit.optimized_execution(False):
        graph = make_fx(flat)(*given)
    places = {each.data_ptr(): name for name, each in
              (*model.module.named_parameters(), *model.module.named_buffers())}  # fmt: skip
    taken: set[str] = set()
    renamed: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        if node.target in renamed:  # read a second time
            node.target = renamed[node.target]
            continue
        tensor = getattr(graph, node.target)
        name = places.get(tensor.data_ptr(), "").replace(".", "_") if isinstance(tensor, torch.Tensor) else ""
        if name and name not in taken:
            taken.add(name)
            graph.register_buffer(name, tensor.detach())
            delattr(graph, node.target)
            renamed[node.target] = name
            node.target = name
    graph.recompile()
    return graph


def _export_traced(
    flat: Flat, model: Model, inputs: list[str], outputs: list[str], path: Path, first: Exception
) -> None:
    if model.states:
        raise Refused(f"torch.export: {reason(first)}; PyTorch's older exporter would lose the model's memory",
                      kind="conversion") from first  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            given = tuple(examples(model))
            # tracing keeps the branches of TorchScript; where Python itself branches on a value, it warns
            traced = torch.jit.trace(flat, given, check_trace=False)
            torch.onnx.export(
                traced, given, str(path), dynamo=False, opset_version=OPSET, input_names=inputs, output_names=outputs
            )
    except Exception as error:
        raise Refused(f"neither exporter can do it; torch.export: {reason(first)}; the older one: "
                      f"{reason(error)}", kind="conversion") from error  # fmt: skip


def _tidy(path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Check the signature, and leave out what tells of the machine and the moment.

    Raises:
        Refused: the file has other inputs or outputs than the model, or does not fit one file.
    """
    proto = onnx.load(str(path))
    if [value.name for value in proto.graph.input] != inputs or [value.name for value in proto.graph.output] != outputs:
        raise Refused("the exported file has other inputs or outputs than the model", kind="conversion")
    proto.producer_name, proto.producer_version, proto.doc_string = "pytorch", "", ""
    del proto.metadata_props[:]
    for graph in [proto.graph, *proto.functions]:
        _strip(graph)
    try:
        data = proto.SerializeToString(deterministic=True)
    except ValueError as error:
        raise Refused("the model does not fit one ONNX file of 2 GB", kind="conversion") from error
    path.write_bytes(data)


def _strip(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _strip(inner)
    for field in ("input", "output", "value_info", "initializer"):
        for value in getattr(graph, field, ()):
            if not isinstance(value, str):
                value.doc_string = ""
                del value.metadata_props[:]
