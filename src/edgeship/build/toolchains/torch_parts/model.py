"""A loaded PyTorch model, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
_LONGEST = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: How unpickling says that a module does not define what the file names. Source: CPython, pickle.py and _pickle.c.
_UNDEFINED = re.compile(r"Can't get attribute '(?P<name>[^']+)' on <module '(?P<module>[^']+)'")


class Refused(Exception):
    """An answer that says no.

    Args:
        error: one sentence.
        kind: ``input`` where the file or an option cannot be used, ``conversion`` where this way does not work.
        next_step: what mends it.
    """

    def __init__(self, error: str, *, kind: str = "input", next_step: str = "") -> None:
        super().__init__(error)
        self.kind = kind
        self.next_step = next_step


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One argument of the model: a tensor where ``shape`` is set, else the constant ``value``.

    Attributes:
        shape: of one call, -1 for a free batch.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    value: Any = None


@dataclass(kw_only=True)
class State:
    """An attribute of a TorchScript module that a call writes to.

    Attributes:
        owner: dotted path of the submodule, empty for the model itself.
        value: after one call.
        name: of the input that it becomes.
    """

    owner: str
    attribute: str
    value: Any = None
    name: str = ""

    @property
    def is_tensor(self) -> bool:
        """Whether it becomes an input and an output; else it is put back before every call."""
        return isinstance(self.value, torch.Tensor)

    def holder(self, module: Any) -> Any:
        """The submodule that has the attribute."""
        for name in filter(None, self.owner.split(".")):
            module = getattr(module, name)
        return module


@dataclass(kw_only=True)
class Model:
    """A loaded model.

    Attributes:
        module: what is called.
        arrange: one value per parameter → positional and keyword arguments.
        states: of TorchScript.
        code: source files that the factory came from.
    """

    module: Any
    parameters: list[Parameter]
    arrange: Callable[[list[Any]], Arguments]
    states: list[State] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    is_script: bool = False

    @property
    def tensors(self) -> list[Parameter]:
        """Those of the parameters that are inputs."""
        return [parameter for parameter in self.parameters if parameter.shape is not None]

    @property
    def memory(self) -> list[State]:
        """Those of the states that are inputs and outputs."""
        return [state for state in self.states if state.is_tensor]

    def arguments(self, tensors: Sequence[Any]) -> Arguments:
        """Positional and keyword arguments of one call; the constants are filled in."""
        given = iter(tensors)
        return self.arrange([each.value if each.shape is None else next(given) for each in self.parameters])


def dtype_name(dtype: Any) -> str:
    """``torch.float32`` → ``float32``."""
    return str(dtype).removeprefix("torch.")


def shown(shape: Sequence[int]) -> str:
    """A shape for a sentence."""
    return "[" + ", ".join("free" if axis < 0 else str(axis) for axis in shape) + "]"


def first_line(error: BaseException) -> str:
    """What an exception says, in one line without colours; the exporter's own say a step, and their cause why."""
    if str(error).startswith("Failed to convert the exported program") and error.__cause__ is not None:
        return first_line(error.__cause__)
    plain = _COLOUR.sub("", str(error)).strip()
    return (plain.partition("\n")[0] or type(error).__name__)[:_LONGEST]


def last_line(error: BaseException) -> str:
    """What a TorchScript exception says: its reason comes after the traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip(" ~^")]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST]


def reason(error: BaseException) -> str:
    """The line of an exception that says why."""
    return last_line(error) if "TorchScript interpreter" in str(error) else first_line(error)


def unreadable(error: BaseException, what: str) -> Refused:
    """A file that PyTorch does not read."""
    undefined = _UNDEFINED.search(str(error))
    if undefined:
        return _undefined(undefined["name"], undefined["module"])
    return Refused(f"PyTorch cannot read it as {what}: {first_line(error)}", next_step="copy or export the file again")


def _undefined(name: str, module: str) -> Refused:
    """A pickle names its classes by the module that they stood in; those of a script or notebook stood in __main__."""
    if module != "__main__":
        return Refused(f"the pickled model needs {name}, which the Python module {module} does not define here",
                       next_step="build in the folder of the training code")  # fmt: skip
    return Refused(
        f"the file names the class {name} of the script or notebook that saved it, and holds none of its code",
        next_step=f"save the weights alone there, torch.save(model.state_dict(), FILE), and name the file that defines "
        f"{name}: edgeship build path/file.py:{name} --weights FILE",
    )


def unique(name: str, taken: set[str]) -> str:
    """The name, with underscores until it is free; it is taken then."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
