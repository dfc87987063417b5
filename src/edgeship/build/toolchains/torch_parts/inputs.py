"""Inputs of a model: what the file says of them, and what the user adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .model import Arguments, Model, Parameter, Refused, shown


def pin(found: list[Parameter], wanted: list[dict[str, Any]]) -> list[Parameter]:
    """Free axes of an exported program get the sizes that were asked for; the batch may stay free.

    Raises:
        Refused: a size that the program does not have, or an axis that nobody has fixed.
    """
    asked = _assign([parameter.name for parameter in found if parameter.shape is not None], wanted)
    return [_pinned(parameter, asked.get(parameter.name)) for parameter in found]


def _pinned(parameter: Parameter, asked: Mapping[str, Any] | None) -> Parameter:
    name, shape = parameter.name, parameter.shape
    if shape is None:
        return parameter
    if asked:
        wanted = tuple(asked["shape"])
        fits = len(wanted) == len(shape) and all(have in {-1, want} for have, want in zip(shape, wanted, strict=True))
        if not fits:
            raise Refused(f"the input {name} has the shape {shown(shape)}, not {shown(wanted)}")
        if asked["dtype"] and asked["dtype"] != parameter.dtype:
            raise Refused(f"the input {name} is of {parameter.dtype}, not {asked['dtype']}")
        shape = wanted
    if not shape or shape[0] not in {-1, 1}:
        raise Refused(
            f"the input {name} was exported for the shape {shown(shape)}: its first axis has to be the batch",
            next_step="export it again with a first axis of 1, or a free one (torch.export.Dim)",
        )
    if -1 in shape[1:]:
        sizes = ",".join("N" if axis < 0 else str(axis) for axis in (1, *shape[1:]))
        raise Refused(f"axis {shape.index(-1, 1)} of the input {name} is free, {shown(shape)}",
                      next_step=f"fix it with --input-shape {name}={sizes}")  # fmt: skip
    return Parameter(name=name, shape=shape, dtype=parameter.dtype)


def shaped(names: list[str], constants: Mapping[str, Any], wanted: list[dict[str, Any]]) -> list[Parameter]:
    """Inputs whose shapes only the user knows.

    Args:
        names: of the tensors, in order.
        constants: name → default of arguments that are numbers, None without one; they take the number itself.
        wanted: ``--input-shape``.

    Raises:
        Refused: a shape or number is missing, or there is one too many.
    """
    numbers = {each["name"]: each["shape"][0] for each in wanted if each["name"] in constants}
    asked = _assign(names, [each for each in wanted if each["name"] not in constants])
    return [_tensor(name, asked.get(name)) for name in names] + [
        _constant(name, numbers.get(name, default)) for name, default in constants.items()
    ]


def _tensor(name: str, asked: Mapping[str, Any] | None) -> Parameter:
    if asked is None:
        raise Refused(f"the model does not say the shape of its input {name}",
                      next_step=f"say it, a batch of 1 first: --input-shape {name}=1,3,224,224")  # fmt: skip
    shape = tuple(asked["shape"])
    if not shape or shape[0] != 1:
        raise Refused(f"the shape {shown(shape)} of the input {name} does not begin with a batch of 1",
                      next_step=f"--input-shape {name}={','.join(str(axis) for axis in (1, *shape[1:]))}")  # fmt: skip
    return Parameter(name=name, shape=shape, dtype=asked["dtype"] or "float32")


def _constant(name: str, value: Any) -> Parameter:
    if value is None:
        raise Refused(f"the argument {name} is a number, which has to be fixed",
                      next_step=f"--input-shape {name}=NUMBER")  # fmt: skip
    return Parameter(name=name, value=value)


def _assign(names: list[str], wanted: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Which shape is for which input: by name, and those without a name in order."""
    named = {each["name"]: each for each in wanted if each["name"]}
    for name in named:
        if name not in names:
            raise Refused(f"the model has no input {name}, but {', '.join(names) or 'none'}")
    rest = iter([name for name in names if name not in named])
    for each in wanted:
        if not each["name"]:
            free = next(rest, None)
            if free is None:
                raise Refused(f"more input shapes than inputs ({', '.join(names) or 'none'})")
            named[free] = each
    return named


def by_name(parameters: list[Parameter]) -> Callable[[list[Any]], Arguments]:
    """Every parameter as a keyword argument."""
    names = [parameter.name for parameter in parameters]
    return lambda values: ((), dict(zip(names, values, strict=True)))


def examples(model: Model) -> list[Any]:
    """One call's inputs, states included: normal values, and zeros for whole numbers since they may be indices.

    Raises:
        Refused: PyTorch has no such type.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for each in model.tensors:
        assert each.shape is not None
        shape = (1, *each.shape[1:])
        kind = getattr(torch, each.dtype, None)
        if not isinstance(kind, torch.dtype):
            raise Refused(f"PyTorch has no type {each.dtype} (input {each.name})")
        values = torch.randn(shape, generator=generator) if kind.is_floating_point else torch.zeros(shape)
        made.append(values.to(kind))
    return made + [state.value for state in model.memory]
