"""Options for what some sources leave open, the same for every command that reads a model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from edgeship.build.sources import SourceRequest

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: Parameter → its option, in the order of the help.
_NAMES: Final = {
    "input_shapes": "--input-shape", "input_values": "--input-value", "weights": "--weights",
    "allow_pickle": "--allow-pickle", "input_tensors": "--input-tensor", "output_tensors": "--output-tensor",
    "signature": "--signature",
}  # fmt: skip
_OPTIONS: Final = (
    click.option("--input-shape", "input_shapes", multiple=True, metavar="[NAME=]1,3,224,224[:DTYPE]",
                 help="Shape of an input that the source leaves open; repeat for several."),
    click.option("--input-value", "input_values", multiple=True, metavar="NAME=NUMBER",
                 help="Make an input of an ONNX model a constant; repeat for several."),
    click.option("--weights", type=click.Path(path_type=Path), help="State dict for a package.module:factory source."),
    click.option("--allow-pickle", is_flag=True, help="Read files that can run code when they are read."),
    click.option("--input-tensor", "input_tensors", multiple=True, help="Cut the graph here; repeat for several."),
    click.option("--output-tensor", "output_tensors", multiple=True, help="Cut the graph here; repeat for several."),
    click.option("--signature", default="", help="Signature of a SavedModel that has several."),

)  # fmt: skip


def source_options(command: _Command) -> _Command:
    """Give a command all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request_of(source: Path, given: Mapping[str, Any]) -> SourceRequest:
    """The model that a command names, with its options.

    Raises:
        ConfigError: an option cannot be read.
    """
    from edgeship.build.sources import InputShape, InputValue, SourceRequest

    fields = {name: given[name] for name in _NAMES}
    fields["input_shapes"] = tuple(InputShape.parse(text) for text in given["input_shapes"])
    fields["input_values"] = tuple(InputValue.parse(text) for text in given["input_values"])
    return SourceRequest(text=str(source), **fields)


def words_of(given: Mapping[str, Any]) -> str:
    """The options as they were typed, for a command to go on with; begins with a space where there are any.

    >>> words_of({"input_shapes": ("1,10",), "allow_pickle": True, "weights": None})
    ' --input-shape 1,10 --allow-pickle'
    """
    words: list[str] = []
    for name, option in _NAMES.items():
        value = given.get(name)
        if value is True:
            words.append(option)
        elif value:
            each = value if isinstance(value, tuple) else (value,)
            words += [f"{option} {shlex.quote(str(one))}" for one in each]
    return "".join(f" {word}" for word in words)
