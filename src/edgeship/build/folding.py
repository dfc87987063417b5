"""Which part of a preprocessing contract can move into the files: the arithmetic between bytes and a float input.

A contract such as *resize, cast, scale, normalize, transpose* becomes *resize, transpose* for the device, exact in
integers, and *cast, scale, normalize* for the file, which then takes bytes: a quarter of the data, and no arithmetic in
numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import structs

from edgeship_agent.contract.manifest import (
    Cast,
    ColourOrder,
    Crop,
    InputContract,
    Normalize,
    Offset,
    Pad,
    Reshape,
    Resize,
    Scale,
    Step,
    TensorSpec,
    Transpose,
)
from edgeship_agent.processing.steps import apply_step
from edgeship_agent.runtime.engine import Array

RAW: Final = "uint8"
_FLOAT: Final = "float32"
#: Steps that make floats of bytes.
_ARITHMETIC: Final = (Cast, Scale, Offset, Normalize)


def shorten(contract: InputContract, spec: TensorSpec) -> InputContract | str:
    """The contract with its arithmetic folded, or why that cannot be.

    Args:
        contract: as the user wrote it.
        spec: the model input that it feeds.

    Returns:
        The shortened contract; an empty sentence where there is no arithmetic to fold.

    >>> from edgeship_agent.contract.manifest import Reshape, Scale
    >>> contract = InputContract(tensor="x", dtype="uint8", shape=(8, 8),
    ...                          steps=(Scale(factor=0.5), Reshape(shape=(1, 8, 8))))
    >>> short = shorten(contract, TensorSpec(name="x", dtype="float32", shape=(-1, 1, 8, 8)))
    >>> short.steps, short.folded
    ((Reshape(shape=(1, 8, 8)),), (Scale(factor=0.5),))
    """
    position = next((at for at, step in enumerate(contract.steps) if _makes_floats(step)), None)
    if position is None or contract.sequence:
        return ""
    if contract.dtype != RAW:
        return f"the raw input is {contract.dtype}, not bytes"
    if spec.dtype != _FLOAT:
        return f"the model takes {spec.dtype}"
    before = contract.steps[:position]
    if any(isinstance(step, Cast) for step in before):
        return "the integers before it are not bytes any more"
    rank = len(contract.shape)
    for step in before:
        rank = len(step.shape) if isinstance(step, Reshape) else rank
    moved = _part(contract.steps[position:], rank)
    if isinstance(moved, str):
        return moved
    layout, folded = moved
    return structs.replace(contract, steps=(*before, *layout), folded=folded)


def whole(contract: InputContract) -> InputContract:
    """The contract from the raw sample to the source's input, whatever the files do of it."""
    return structs.replace(contract, steps=(*contract.steps, *contract.folded), folded=())


def source_sample(contracts: Sequence[InputContract], fed: Mapping[str, Array]) -> dict[str, Array]:
    """What the source takes, from what the files take: name → array, batch axis included."""
    arrays = dict(fed)
    for contract in contracts:
        for step in contract.folded:
            arrays[contract.tensor] = apply_step(step, arrays[contract.tensor])
    return arrays


def operations_of(steps: Sequence[Step], rank: int) -> list[tuple[str, Array]]:
    """Folded steps as ``mul``, ``add``, ``sub`` and ``div``: what numpy would do, in its order and in float32.

    Args:
        steps: folded ones.
        rank: axes of the input, batch included.

    Returns:
        Operation → operand of that rank, with one number or one a channel.

    >>> [(name, operand.item()) for name, operand in operations_of([Scale(factor=0.5), Offset(value=-1.0)], 2)]
    [('mul', 0.5), ('add', -1.0)]
    """
    found: list[tuple[str, Array]] = []
    for step in steps:
        if isinstance(step, Scale):
            found.append(("mul", _shaped((step.factor,), -1, rank)))
        elif isinstance(step, Offset):
            found.append(("add", _shaped((step.value,), -1, rank)))
        elif isinstance(step, Normalize):
            found += [("sub", _shaped(step.mean, step.axis, rank)), ("div", _shaped(step.std, step.axis, rank))]
    return found


def scale_of(steps: Sequence[Step], rank: int) -> tuple[float, int] | None:
    """Folded steps as a scale and the byte that stands for zero, where one number serves all channels and a byte does.

    >>> scale_of([Normalize(mean=(128.0,), std=(64.0,))], 2), scale_of([Offset(value=-127.5)], 2)
    ((0.015625, 128), None)
    """
    factor, offset = 1.0, 0.0
    for kind, operand in operations_of(steps, rank):
        if operand.size != 1:
            return None
        number = float(operand.item())
        if kind in {"mul", "div"}:
            number = number if kind == "mul" else 1.0 / number if number else 0.0
            factor, offset = factor * number, offset * number
        else:
            offset += number if kind == "add" else -number
    point = -offset / factor if factor > 0.0 else -1.0
    # float32 holds seven digits: 127.5 is no byte, 127.9999999 is 128
    return (factor, round(point)) if 0 <= round(point) <= 255 and abs(point - round(point)) <= 1e-5 else None


def words(steps: Sequence[Step]) -> str:
    """Steps by their names.

    >>> words([Cast(dtype="float32"), Scale(factor=0.5)])
    'cast, scale'
    """
    return ", ".join(str(type(step).__struct_config__.tag) for step in steps)


def _shaped(values: tuple[float, ...], axis: int, rank: int) -> Array:
    array = np.asarray(values, np.float32)
    shape = [1] * rank
    shape[axis] = array.size
    return array.reshape(shape)


def _makes_floats(step: Step) -> bool:
    return isinstance(step, _ARITHMETIC) and not (isinstance(step, Cast) and not step.dtype.startswith("float"))


def _part(steps: Sequence[Step], rank: int) -> tuple[tuple[Step, ...], tuple[Step, ...]] | str:
    """Layout steps, then arithmetic with its axes as the layout leaves them; or why they cannot change places."""
    layout: list[Step] = []
    folded: list[Step] = []
    for step in steps:
        if isinstance(step, Cast):
            if step.dtype != _FLOAT:
                return f"it casts to {step.dtype} on the way"
            folded.append(step)
        elif isinstance(step, Normalize):
            folded.append(_from_the_end(step, rank))
        elif isinstance(step, Scale | Offset):
            folded.append(step)
        elif type(step) not in _BEHIND:
            return f"{words((step,))} comes behind it"
        else:
            turned = [_behind(type(step))(step, each, rank) for each in folded]
            refused = next((each for each in turned if isinstance(each, str)), None)
            if refused is not None:
                return refused
            folded = [each for each in turned if not isinstance(each, str)]
            layout.append(step)
            rank = len(step.shape) if isinstance(step, Reshape) else rank
    return tuple(layout), tuple(folded)


def _from_the_end(step: Normalize, rank: int) -> Normalize:
    return structs.replace(step, axis=step.axis if step.axis < 0 else step.axis - rank)


def _per_channel(step: Step) -> bool:
    return isinstance(step, Normalize) and max(len(step.mean), len(step.std)) > 1


def _behind_transpose(layout: Transpose, step: Step, rank: int) -> Step | str:
    if not isinstance(step, Normalize) or not _per_channel(step):
        return step
    return structs.replace(step, axis=layout.axes.index(step.axis + rank) - rank)


def _behind_colours(_: ColourOrder, step: Step, _rank: int) -> Step | str:
    if not isinstance(step, Normalize) or not _per_channel(step) or step.axis != -1:
        return step
    return structs.replace(step, mean=step.mean[::-1], std=step.std[::-1])


def _behind_crop(_: Crop, step: Step, rank: int) -> Step | str:
    if isinstance(step, Normalize) and _per_channel(step) and step.axis + rank < 2:
        return "it crops along the channels behind the normalisation"
    return step


def _behind_reshape(_: Reshape, step: Step, _rank: int) -> Step | str:
    return "it reshapes channels that were normalised one by one" if _per_channel(step) else step


def _behind_pad(_: Pad, _step: Step, _rank: int) -> Step | str:
    return "it pads behind the normalisation, with a number that no byte stands for"


def _behind_resize(_: Resize, _step: Step, _rank: int) -> Step | str:
    return "it resizes behind the normalisation, which rounds otherwise in bytes"


_BEHIND: Final[Mapping[type, Callable[[Any, Step, int], Step | str]]] = {
    Transpose: _behind_transpose,
    ColourOrder: _behind_colours,
    Crop: _behind_crop,
    Reshape: _behind_reshape,
    Pad: _behind_pad,
    Resize: _behind_resize,
}


def _behind(kind: type) -> Callable[[Any, Step, int], Step | str]:
    return _BEHIND[kind]
