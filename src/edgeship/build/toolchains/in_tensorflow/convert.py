"""The conversions that need TensorFlow: to TFLite by its own converter, to ONNX by tf2onnx.

The same model gives the same bytes each time.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from .files import Refused, first_line, nodes_of
from .graphs import OPSET, caller
from .models import Model

_FILE_IDENTIFIER: Final = b"TFL3"
_MOST_NAMED: Final = 6
#: Operators on variables of the interpreter.
_STATE: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})


def to_tflite(model: Model, file: Path) -> dict[str, Any]:
    """Float32 TFLite with a batch of one.

    Raises:
        Refused: an operator that LiteRT does not have.
    """
    concrete = model.trace(1) if model.holder is not None else frozen_model(model).trace(1)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model.holder or tf.Module())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        data = converter.convert()
    except Exception as error:
        raise Refused(f"TFLiteConverter: {_reason(error)}", kind="conversion") from error
    file.write_bytes(_in_order(data, model))
    return {"file": str(file), "notes": list(model.notes)}


def to_onnx(model: Model, file: Path) -> dict[str, Any]:
    """Float32 ONNX with a batch of one.

    Raises:
        Refused: an operator that ONNX does not have.
    """
    from tf2onnx import tf_loader

    concrete = model.trace(1)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    starts, ends = [each.name for each in frozen.inputs], [each.name for each in frozen.outputs]
    graph = tf_loader.fix_freezing_errors_part2(frozen.graph.as_graph_def(add_shapes=True))
    with tf.Graph().as_default():
        graph = tf_loader.tf_optimize(starts, ends, graph)
    _write_out_erfc(graph)
    document = _tf2onnx(graph, input_names=starts, output_names=ends)
    _name_ends(document, starts, [end.name for end in model.inputs], document.graph.input)
    _name_ends(document, ends, model.outputs, document.graph.output)
    return _write(document, file, model.notes)


def _write_out_erfc(graph: Any) -> None:
    """``Erfc`` as 1 − ``Erf``, in place: ONNX has no other, and Keras writes GELU with it."""
    for node in [each for each in graph.node if each.op == "Erfc"]:
        kind = node.attr["T"]
        one = graph.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].CopyFrom(kind)
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, dtype=tf.as_dtype(kind.type), shape=()))
        inner = graph.node.add(name=f"{node.name}/erf", op="Erf", input=node.input)
        inner.attr["T"].CopyFrom(kind)
        node.op = "Sub"
        node.input[:] = [one.name, inner.name]


def frozen_model(model: Model) -> Model:
    """The same model with its weights as constants: Keras variables would stay variables in the TFLite file."""
    frozen = convert_variables_to_constants_v2(model.trace(1), lower_control_flow=False)
    starts, ends = [each.name for each in frozen.inputs], [each.name for each in frozen.outputs]
    graph = frozen.graph.as_graph_def()
    for node in nodes_of(graph):
        # gradients of their own, as of SiLU: nothing is trained here, and the converter loses the names of the ends
        node.attr.pop("_gradient_op_type", None)
    return replace(model, call=caller(graph, starts, ends), holder=None)


def tflite_to_onnx(source: Path, file: Path) -> dict[str, Any]:
    """ONNX from a ``.tflite`` file, its names and order kept.

    Raises:
        Refused: no TFLite file, or an operator that ONNX does not have.
    """
    data = source.read_bytes()
    if data[4:8] != _FILE_IDENTIFIER:
        raise Refused("not a .tflite file", "copy or export it again")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    _check_convertible(model)
    graph = model.subgraphs[0]
    document = _tf2onnx(None, tflite_path=str(source))
    for places, values in ((graph.inputs, document.graph.input), (graph.outputs, document.graph.output)):
        names = [graph.tensors[index].name.decode() for index in places]
        _name_ends(document, names, names, values)
    return _write(document, file, ())


def _check_convertible(model: Any) -> None:
    """Name what ONNX cannot hold, before tf2onnx stumbles over it.

    Raises:
        Refused: custom operators, operators without a counterpart, or state between calls.
    """
    used = {operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators or ()}
    codes = [code for index, code in enumerate(model.operatorCodes) if index in used]  # others a former step left
    custom = [code.customCode.decode() for code in codes if code.customCode]
    if custom:
        raise Refused(f"ONNX has no operator for the custom {', '.join(custom[:_MOST_NAMED])}", kind="conversion")
    builtin = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    names = [builtin.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?") for code in codes]
    hidden = [name for name in names if name in _STATE]
    if not hidden and any(tensor.isVariable for graph in model.subgraphs for tensor in graph.tensors):
        hidden = [name for name in names if "LSTM" in name or "RNN" in name or name == "SVDF"] or ["variable tensors"]
    if hidden:
        raise Refused(f"the file hides state from one call to the next ({', '.join(hidden[:_MOST_NAMED])}), which ONNX "
                      "does not have", kind="conversion")  # fmt: skip
    unknown = [name for name in names if f"TFL_{name}" not in _converted_by_tf2onnx()]
    if unknown:
        raise Refused(f"tf2onnx has no way for {', '.join(unknown[:_MOST_NAMED])}", kind="conversion")


def _converted_by_tf2onnx() -> set[str]:
    from tf2onnx import handler, tfonnx

    assert tfonnx, "its import registers what tf2onnx can convert"
    return {*handler.tf_op.create_mapping(OPSET, None), *handler.tfl_op.create_tfl_to_tf_mapping()}


def _tf2onnx(graph: Any, **ends: Any) -> Any:
    from tf2onnx import optimizer, tfonnx
    from tf2onnx.graph import Node

    # it walks sets of nodes, whose order would be that of their addresses, and numbers what it makes on the way
    Node.__hash__ = lambda node: hash(node.name)
    with tf.device("/cpu:0"), tf.Graph().as_default() as place:
        if graph is not None:
            tf.import_graph_def(graph, name="")
        try:
            made = tfonnx.process_tf_graph(place, opset=OPSET, **ends)
            document = optimizer.optimize_graph(made).make_model("")
        except Exception as error:
            raise Refused(f"tf2onnx: {_reason(error)}", kind="conversion") from error
    unknown = sorted({node.op_type for node in _onnx_nodes(document.graph.node) if not _is_known(node)})
    if unknown:
        raise Refused(f"tf2onnx: ONNX has no operator for {', '.join(unknown[:_MOST_NAMED])}", kind="conversion")
    try:
        onnx.checker.check_model(document, full_check=True)
    except Exception as error:
        raise Refused(f"tf2onnx wrote an invalid model: {first_line(error)}", kind="conversion") from error
    return document


def _reason(error: BaseException) -> str:
    """What is to blame: the operators that a converter lists, else the first thing that it says."""
    listed: list[str] = re.findall(r"\btf\.([A-Z]\w+)", str(error))
    if listed:
        return "no operator for " + ", ".join(list(dict.fromkeys(listed))[:_MOST_NAMED])
    return first_line(error)


def _onnx_nodes(nodes: Any) -> Any:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _onnx_nodes(graph.node)


def _is_known(node: Any) -> bool:
    return node.domain in {"", "ai.onnx"} and bool(onnx.defs.has(node.op_type, OPSET, ""))


def _name_ends(document: Any, old: Sequence[str], new: Sequence[str], values: Any) -> None:
    """Call a graph's inputs or outputs what the source calls them."""
    graph = document.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} - set(old)
    taken |= {tensor.name for tensor in graph.initializer}
    names = {name: f"{name}/inner" for name in new if name in taken} | dict(zip(old, new, strict=True))
    _rename(graph, names)
    places = {value.name: value for value in values}
    ordered = [onnx.ValueInfoProto.FromString(places[name].SerializeToString()) for name in new]
    del values[:]
    values.extend(ordered)


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                ends[index] = names.get(name, name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for values in (graph.initializer, graph.input, graph.output, graph.value_info):
        for value in values:
            value.name = names.get(value.name, value.name)


def _write(document: Any, file: Path, notes: Sequence[str]) -> dict[str, Any]:
    document.doc_string = document.graph.doc_string = ""
    file.write_bytes(document.SerializeToString(deterministic=True))
    return {"file": str(file), "notes": list(notes)}


def _in_order(data: bytes, model: Model) -> bytes:
    """The file's inputs and outputs in the source's order and under its names; the converter sorts them its own way."""
    import flatbuffers

    document = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph, signature = document.subgraphs[0], document.signatureDefs[0]
    used = {each.tensorIndex for each in (*signature.inputs, *signature.outputs)}
    wanted = {*(end.name for end in model.inputs), *model.outputs}
    for index, tensor in enumerate(graph.tensors):
        if index not in used and tensor.name.decode() in wanted:
            tensor.name += b"/inner"
    for ends, names, places in (
        (signature.inputs, [end.name for end in model.inputs], "inputs"),
        (signature.outputs, model.outputs, "outputs"),
    ):
        ends.sort(key=lambda each: each.name)
        setattr(graph, places, [each.tensorIndex for each in ends])
        for each, name in zip(ends, names, strict=True):
            graph.tensors[each.tensorIndex].name = each.name = name.encode()
    builder = flatbuffers.Builder(len(data))
    builder.Finish(document.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())
