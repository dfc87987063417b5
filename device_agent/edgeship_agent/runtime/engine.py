"""What an inference runtime must do, and what every adapter checks the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

from edgeship_agent.contract.errors import EngineError
from edgeship_agent.processing.arrays import Array, dtype_name
from edgeship_agent.runtime.options import EngineOptions

__all__ = [
    "Array",
    "Engine",
    "EngineOptions",
    "Place",
    "Signature",
    "SteppingEngine",
    "TensorInfo",
    "check_arrays",
    "copies",
    "fill",
    "pinned_shape",
    "places_of",
    "run_steps",
    "state_of",
]

#: Number of an input, the array that the runtime reads, and what is assigned to; see :func:`places_of`.
Place = tuple[int, Array, Array]
#: From so many bytes on the C library copies with one instruction. Source: glibc 2.36, x86_rep_movsb_threshold (2112).
_ONE_INSTRUCTION_BYTES: Final = 2048


class TensorInfo(Struct, frozen=True, kw_only=True):
    """One input or output of a model file.

    Attributes:
        index: position among the file's inputs or outputs.
        dtype: numpy's name.
        shape: sizes as they run: a free batch axis is pinned to 1; -1 in an output whose size depends on the data.
        scale, zero_point: per-tensor quantization of an integer tensor; scale 0 for none.
    """

    name: str
    index: int
    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0


class Signature(Struct, frozen=True, kw_only=True):
    """Inputs and outputs of a model file, in the file's order."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Engine(Protocol):
    """One loaded model. Used by one thread at a time."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in the file's order."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference.

        Args:
            arrays: one per input, of exactly the signature's dtype and shape.

        Returns:
            One array per output; the caller owns them.

        Raises:
            EngineError: a wrong array, or the runtime failed.
        """

    def close(self) -> None:
        """Release the model; the engine cannot be used afterwards."""


@runtime_checkable
class SteppingEngine(Protocol):
    """An engine whose files may keep a state from step to step; a call of :meth:`Engine.run` is a sequence of one."""

    state: str

    def run_steps(self, steps: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Inferences one after the other, from a new state that goes from each to the next.

        Raises:
            EngineError: a wrong array, or the runtime failed.
        """


def state_of(engine: Engine) -> str:
    """What its file keeps from step to step; empty for nothing."""
    return engine.state if isinstance(engine, SteppingEngine) else ""


def run_steps(engine: Engine, steps: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """A sequence through an engine.

    Raises:
        EngineError: its runtime keeps no state, or a step failed.
    """
    if not isinstance(engine, SteppingEngine):
        raise EngineError("this runtime keeps no state from step to step")
    return engine.run_steps(steps)


def check_arrays(inputs: tuple[TensorInfo, ...], arrays: Sequence[Array]) -> None:
    """Refuse arrays that are not what the model takes, in the same words for every runtime.

    Raises:
        EngineError: wrong number, dtype or shape.

    >>> import numpy as np
    >>> x = TensorInfo(name="x", index=0, dtype="float32", shape=(1, 4))
    >>> try:
    ...     check_arrays((x,), [np.zeros((1, 3), np.float32)])
    ... except EngineError as error:
    ...     print(error)
    x: wrong input (expected float32 (1, 4), got float32 (1, 3))
    """
    if len(arrays) != len(inputs):
        raise EngineError("wrong number of inputs", expected=len(inputs), got=len(arrays))
    for info, array in zip(inputs, arrays):  # noqa: B905 (counted above; every call comes here)
        if array.shape != info.shape or dtype_name(array.dtype) != info.dtype:
            raise EngineError(
                "wrong input",
                key=info.name,
                expected=f"{info.dtype} {info.shape}",
                got=f"{array.dtype} {array.shape}",
            )


def places_of(buffers: Sequence[Array]) -> list[Place]:
    """Number every buffer, and choose what is assigned to so that it holds an array's bytes.

    Many integers are assigned to a view of the other sign: the bytes are the same, but a loop of numpy's moves them
    then, and not the C library's memcpy. From 2 KiB on that is one processor instruction (``rep movsb``), after which
    an application's next write into memory that it shares took 13 µs instead of 8 (150 kB, AMD Zen 3), and which
    itself takes ten times as long between some addresses. Source: ADR 0029.

    >>> import numpy as np
    >>> [(_, place, target)] = places_of([np.zeros(4096, np.uint8)])
    >>> target[...] = np.full(4096, 200, np.uint8)
    >>> place.dtype, target.dtype, place[0]
    (dtype('uint8'), dtype('int8'), np.uint8(200))
    """
    return [(index, buffer, _other_sign(buffer)) for index, buffer in enumerate(buffers)]


def _other_sign(buffer: Array) -> Array:
    other = {"u": "i", "i": "u"}.get(buffer.dtype.kind)
    if other is None or buffer.nbytes < _ONE_INSTRUCTION_BYTES:
        return buffer
    return buffer.view(f"{other}{buffer.itemsize}")


def fill(places: Sequence[Place], inputs: tuple[TensorInfo, ...], arrays: Sequence[Array]) -> None:
    """Copy a call's arrays to where the runtime reads them.

    Every call comes here, with caches that the last inference has filled with other things: an assignment takes less
    than half of :func:`numpy.copyto` then, types that are the same object need no names, and iterators such as ``zip``
    are code that has to be fetched first.

    Args:
        places: one per input; see :func:`places_of`.
        inputs: what they are.
        arrays: of the call.

    Raises:
        EngineError: as :func:`check_arrays`.

    >>> import numpy as np
    >>> place = np.zeros((1, 2), np.float32)
    >>> x = TensorInfo(name="x", index=0, dtype="float32", shape=(1, 2))
    >>> fill(places_of([place]), (x,), [np.ones((1, 2), np.float32)])
    >>> place.tolist()
    [[1.0, 1.0]]
    """
    if len(arrays) != len(places):
        check_arrays(inputs, arrays)
    for index, place, target in places:
        array = arrays[index]
        if array.shape == place.shape and array.dtype is place.dtype:
            target[...] = array
        else:
            check_arrays(inputs, arrays)
            place[...] = array


def copies(buffers: Sequence[Array]) -> list[Array]:
    """Of every output, one that the caller owns; a loop, for the reasons of :func:`fill`."""
    found = []
    for buffer in buffers:
        found.append(buffer.copy())  # noqa: PERF401 (a comprehension is a call of its own before Python 3.12)
    return found


def pinned_shape(name: str, sizes: Sequence[int | None], file: object) -> tuple[int, ...]:
    """Shape of an input with its free batch axis pinned to 1.

    Args:
        name: of the input, for the message.
        sizes: None for every free axis.
        file: the model, for the message.

    Raises:
        EngineError: an axis other than the first is free.

    >>> pinned_shape("x", [None, 4], "m.onnx")
    (1, 4)
    """
    if any(size is None for size in sizes[1:]):
        shown = [size if size is not None else "?" for size in sizes]
        raise EngineError(
            "an axis other than the batch has no fixed size",
            file=file,
            key=name,
            expected="fixed sizes after the first axis",
            got=shown,
            next_step="export the model with fixed input sizes",
        )
    return tuple(1 if size is None else int(size) for size in sizes)
