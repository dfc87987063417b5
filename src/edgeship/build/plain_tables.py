"""Operators of ``ai.onnx.ml`` that have a plain form, written so: only ONNX Runtime has that domain.

Columns that are picked, filled or made one-hot stand before most models of tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeship_agent.contract.errors import ConversionError

_DOMAIN: Final = "ai.onnx.ml"


def written_out(model: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The model without that domain.

    Args:
        model: a private copy.
        folder: for the new file.

    Returns:
        The file, and what it does otherwise than the source where the source refuses to answer.

    Raises:
        ConversionError: an operator has no plain form, as trees have none.
    """
    document = onnx.load(str(model))
    plain, nodes, left = _Plain(document), [], set()
    for node in document.graph.node:
        form = _FORMS.get(node.op_type) if node.domain == _DOMAIN else None
        made = form(plain, node) if form else None
        if node.domain == _DOMAIN and made is None:
            left.add(node.op_type)
        nodes += made or [node]
    if left:
        raise ConversionError(f"{', '.join(sorted(left))}: no form in plain ONNX")
    del document.graph.node[:]
    document.graph.node.extend(nodes)
    kept = [each for each in document.opset_import if each.domain != _DOMAIN]
    del document.opset_import[:]
    document.opset_import.extend(kept)
    file = folder / "model.onnx"
    file.write_bytes(onnx.shape_inference.infer_shapes(document).SerializeToString(deterministic=True))
    return file, tuple(dict.fromkeys(plain.notes))


class _Plain:
    """Names and constants for one graph."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.notes: list[str] = []

    def name(self, base: str) -> str:
        """A new one."""
        found = next(
            name for count in range(len(self._taken) + 1) if (name := f"{base}_plain{count}") not in self._taken
        )
        self._taken.add(found)
        return found

    def constant(self, base: str, values: Any) -> str:
        """The name of a new one."""
        name = self.name(base)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _settings(node: Any) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _picked(plain: _Plain, node: Any) -> list[Any] | None:
    """Columns by their numbers, along the last axis."""
    if node.input[1] not in plain.constants:
        return None
    columns = plain.constant(node.output[0], plain.constants[node.input[1]].reshape(-1).astype(np.int64))
    return [helper.make_node("Gather", [node.input[0], columns], list(node.output), axis=-1)]


def _filled(plain: _Plain, node: Any) -> list[Any] | None:
    """Values that are missing, or stand for that, replaced by one a column."""
    given = _settings(node)
    if "imputed_value_floats" not in given:
        return None
    values = plain.constant(node.output[0], np.array(given["imputed_value_floats"], np.float32).reshape(1, -1))
    missing, marker = plain.name(node.output[0]), float(given.get("replaced_value_float", 0.0))
    if math.isnan(marker):
        found = helper.make_node("IsNaN", [node.input[0]], [missing])
    else:
        what = plain.constant(node.output[0], np.array(marker, np.float32))
        found = helper.make_node("Equal", [node.input[0], what], [missing])
    return [found, helper.make_node("Where", [missing, values, node.input[0]], list(node.output))]


def _one_hot(plain: _Plain, node: Any) -> list[Any] | None:
    """A new last axis, one place a category; a value that is none of them is zero everywhere."""
    given = _settings(node)
    if "cats_int64s" not in given:
        return None
    if not given.get("zeros", 1):
        plain.notes.append("a category that training did not have becomes zeros, where the source refuses to answer")
    base = node.output[0]
    whole, column, same = plain.name(base), plain.name(base), plain.name(base)
    last = plain.constant(base, np.array([-1], np.int64))
    categories = plain.constant(base, np.array(given["cats_int64s"], np.int64))
    return [
        helper.make_node("Cast", [node.input[0]], [whole], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", [whole, last], [column]),
        helper.make_node("Equal", [column, categories], [same]),
        helper.make_node("Cast", [same], list(node.output), to=TensorProto.FLOAT),
    ]


_FORMS: Final[dict[str, Callable[[_Plain, Any], list[Any] | None]]] = {
    "ArrayFeatureExtractor": _picked,
    "Imputer": _filled,
    "OneHotEncoder": _one_hot,
}
