"""Free axes of TFLite files given sizes, as the runtime works them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from edgeship.build.backends.tflite_edit import edited
from edgeship.build.quiet import quiet

Shape = tuple[int, ...]
#: Values to tell sizes that depend on them by. Some models end a call on one of them, such as integers divided by 0.
_FILLS: Final = (0, 1, 2)


def with_shapes(data: bytes, shapes: Mapping[int, Shape]) -> bytes:
    """The same model with fixed shapes: those given for inputs, and those that follow from them for all other tensors.

    LiteRT works them out when it is told the inputs' shapes, and the rest while it runs, where an operator makes a
    shape of another's numbers. What depends on the values that go in stays free.

    Args:
        data: a TFLite file.
        shapes: position of an input → its shape.

    Raises:
        ValueError: the operators do not fit the shapes; with LiteRT's own words.
    """
    found = _worked_out(data, shapes)

    def pin(model: Any, _schema: Any) -> bool:
        graph = model.subgraphs[0]
        for position, shape in shapes.items():
            _write(graph.tensors[graph.inputs[position]], shape)
        for index in {int(index) for operator in graph.operators or () for index in operator.outputs}:
            if index in found:
                _write(graph.tensors[index], found[index])
        return True

    return edited(data, pin)


def _write(tensor: Any, shape: Shape) -> None:
    tensor.shape, tensor.shapeSignature = np.array(shape, np.int32), None
    tensor.hasRank = True


def _worked_out(data: bytes, shapes: Mapping[int, Shape]) -> dict[int, Shape]:
    """Tensor of the first graph → its shape, where it does not depend on values."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with quiet():
            interpreter: Any = Interpreter(
                model_content=data, num_threads=1, experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )  # fmt: skip
            entries = interpreter.get_input_details()
            for position, shape in shapes.items():
                interpreter.resize_tensor_input(entries[position]["index"], list(shape))
            interpreter.allocate_tensors()
            first, *others = _seen(interpreter)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(str(error).strip().split("\n", 1)[0] or type(error).__name__) from error
    return {index: shape for index, shape in first.items() if all(other[index] == shape for other in others)}


def _seen(interpreter: Any) -> list[dict[int, Shape]]:
    """Shapes of all tensors after calls with different values, at least two.

    Raises:
        RuntimeError: hardly any values can be computed.
    """
    found, failures = [], []
    for fill in _FILLS:
        try:
            found.append(_shapes_for(interpreter, fill))
        except RuntimeError as error:
            failures.append(error)
    if len(found) < 2:
        raise failures[0]
    return found


def _shapes_for(interpreter: Any, fill: int) -> dict[int, Shape]:
    """Shapes of all tensors after a call with one number in all places."""
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], np.full(entry["shape"], fill, entry["dtype"]))
    interpreter.invoke()
    return {int(each["index"]): tuple(map(int, each["shape"])) for each in interpreter.get_tensor_details()}
