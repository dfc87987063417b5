"""What the user asked to be read, before anything is opened."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

_FORM: Final = "[NAME=]1,3,224,224[:DTYPE]"
_SHAPE: Final = re.compile(r"(?:(?P<name>.+)=)?(?P<sizes>\d*(?:,\d+)*)(?::(?P<dtype>[a-z]+\d+|bool))?")


class InputShape(Struct, frozen=True, kw_only=True):
    """A shape that the user gave for an input.

    Attributes:
        name: of the input; empty for the only one, or by position.
        shape: of one call, batch axis included.
        dtype: numpy's name; empty where the source says it (float32 if it does not).
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""

    @classmethod
    def parse(cls, text: str) -> InputShape:
        """Read ``[NAME=]1,3,224,224[:DTYPE]``.

        Raises:
            ConfigError: it has another form, or an unknown dtype.

        >>> InputShape.parse("image=1,3,32,32:uint8")
        InputShape(shape=(1, 3, 32, 32), name='image', dtype='uint8')
        >>> InputShape.parse("1,10").shape
        (1, 10)
        """
        found = _SHAPE.fullmatch(text.strip())
        if not found:
            raise ConfigError("cannot be read", key="--input-shape", expected=_FORM, got=repr(text),
                              next_step="write the sizes of one call, batch of 1 included")  # fmt: skip
        dtype = found["dtype"] or ""
        try:
            np.dtype(dtype or "float32")
        except TypeError as error:
            raise ConfigError("unknown dtype", key="--input-shape", expected="float32, int32, uint8, …", got=dtype,
                              next_step="name a numpy dtype, or leave it out for float32") from error  # fmt: skip
        sizes = tuple(int(size) for size in found["sizes"].split(",") if size)
        return cls(shape=sizes, name=found["name"] or "", dtype=dtype)


class InputValue(Struct, frozen=True, kw_only=True):
    """A number that the user gave for an input, which is a constant from then on."""

    name: str
    value: float

    @classmethod
    def parse(cls, text: str) -> InputValue:
        """Read ``NAME=NUMBER``.

        Raises:
            ConfigError: it has another form.

        >>> InputValue.parse("sr=16000")
        InputValue(name='sr', value=16000.0)
        """
        name, equals, number = text.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not equals or not name or math.isnan(value):
            raise ConfigError("cannot be read", key="--input-value", expected="NAME=NUMBER", got=repr(text),
                              next_step="name an input and its value, such as rate=16000")  # fmt: skip
        return cls(name=name, value=value)


class SourceOptions(Struct, frozen=True, kw_only=True):
    """What some sources leave open.

    Attributes:
        input_shapes: for inputs whose shape the source leaves open.
        input_values: for inputs that are to be constants.
        weights: state dict for a factory.
        allow_pickle: whether files that can run code when they are read may be read.
        input_tensors, output_tensors: where to cut a graph; empty for its own ends.
        signature: of a SavedModel that has several; empty for its default one.
    """

    input_shapes: tuple[InputShape, ...] = ()
    input_values: tuple[InputValue, ...] = ()
    weights: Path | None = None
    allow_pickle: bool = False
    input_tensors: tuple[str, ...] = ()
    output_tensors: tuple[str, ...] = ()
    signature: str = ""


class SourceRequest(SourceOptions, frozen=True, kw_only=True):
    """A trained model as the user named it.

    Attributes:
        text: a path, ``package.module:factory`` or a tracker's address.
    """

    text: str

    @property
    def path(self) -> Path:
        """The text as a path."""
        return Path(self.text)
