"""Calling a model with a flat list of tensors, its memory included."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from .inputs import examples
from .model import Model, Refused, State, last_line, unique


class Flat(torch.nn.Module):  # type: ignore[misc]
    """From a flat list of tensors to a flat tuple of tensors.

    Args:
        model: what is called; where it has states, they are set before the call and read after it.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model.module
        self._model = model
        self.training = False  # not by eval(), which an exported program does not know

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        """One call."""
        model = self._model
        count = len(model.tensors)
        memory = iter(tensors[count:])
        for state in model.states:
            value = next(memory) if state.is_tensor else state.value
            setattr(state.holder(self.inner), state.attribute, value)
        arguments, keywords = model.arguments(tensors[:count])
        outputs = [leaf for leaf in pytree.tree_leaves(self.inner(*arguments, **keywords)) if leaf is not None]
        return (*outputs, *(getattr(state.holder(self.inner), state.attribute) for state in model.memory))


def lift_states(model: Model) -> None:
    """Attributes that a TorchScript call writes to become inputs and outputs: an exported graph has no memory.

    Raises:
        Refused: the model keeps something that is neither a tensor nor a plain value, or fails on its shapes.
    """
    found = _written(model.module)
    if not found:
        return
    arguments, keywords = model.arguments(examples(model))
    try:
        model.module(*arguments, **keywords)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise fails(error) from error
    taken = {each.name for each in model.tensors}
    for state in found:
        value = getattr(state.holder(model.module), state.attribute)
        if isinstance(value, torch.Tensor):
            state.value = value.detach().clone()
            state.name = unique(f"{state.owner}.{state.attribute}".replace(".", "_").strip("_"), taken)
            model.notes.append(f"the model's memory {state.attribute} became the input {state.name} and the output "
                               f"{state.name}_out")  # fmt: skip
        elif value is None or isinstance(value, int | float | bool | str):
            state.value = value
        else:
            raise Refused(f"the model keeps a {type(value).__name__} in {state.attribute} from call to call",
                          next_step="make it an input and an output, as a tensor")  # fmt: skip
    model.states = found


def _written(module: Any) -> list[State]:
    """Attributes that ``forward`` sets, by following the graph's objects back to the module."""
    graph = module.inlined_graph
    places = {next(iter(graph.inputs())).debugName(): ""}
    found: dict[tuple[str, str], State] = {}

    def walk(block: Any) -> None:
        for node in block.nodes():
            first = next((value.debugName() for value in node.inputs()), "")
            if node.kind() == "prim::GetAttr" and first in places:
                places[node.output().debugName()] = f"{places[first]}.{node.s('name')}".strip(".")
            elif node.kind() == "prim::SetAttr":
                owner, attribute = places.get(first, ""), node.s("name")
                found[owner, attribute] = State(owner=owner, attribute=attribute)
            for inner in node.blocks():
                walk(inner)

    walk(graph)
    return list(found.values())


def fails(error: BaseException) -> Refused:
    """The model does not take what it was given."""
    return Refused(f"the model fails on inputs of these shapes: {last_line(error)}", next_step="check --input-shape")


def call_twice(flat: Flat, model: Model) -> list[tuple[str, Any]]:
    """Call it twice on the same values: what differs has a memory, or draws random numbers.

    Returns:
        Name and value of every output.

    Raises:
        Refused: it fails, differs, or gives something else than tensors.
    """
    given = examples(model)
    try:
        first, second = flat(*given), flat(*given)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise fails(error) from error
    if not first:
        raise Refused("the model has no outputs")
    for index, value in enumerate(first):
        if not isinstance(value, torch.Tensor):
            raise Refused(f"output {index} of the model is {type(value).__name__}, not a tensor")
    if not all(map(_same, first, second)):
        raise Refused(
            "the same input gave different outputs in two calls: the model keeps something from call to call, "
            "or draws random numbers (dropout that still trains)",
            next_step="make its memory an input and an output; call eval() before exporting",
        )
    return list(zip(_output_names(model, given), first, strict=True))


def _same(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))


def _output_names(model: Model, given: list[Any]) -> list[str]:
    """Keys of a dictionary, or numbers; a single output is ``output``."""
    arguments, keywords = model.arguments(given[: len(model.tensors)])
    leaves, _ = pytree.tree_flatten_with_path(model.module(*arguments, **keywords))
    taken = {each.name for each in model.tensors} | {state.name for state in model.states}
    names = []
    for path, leaf in leaves:
        if leaf is not None:
            parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
            plain = "".join(sign if sign.isalnum() or sign == "_" else "_" for sign in "_".join(parts))
            names.append(unique(plain if plain and not plain[0].isdigit() else f"output_{plain}".strip("_"), taken))
    return names + [f"{state.name}_out" for state in model.memory]
