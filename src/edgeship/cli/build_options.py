"""What ``edgeship build`` is told: by its options, and by a project file where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from edgeship_agent.contract.errors import ConfigError

if TYPE_CHECKING:
    from edgeship.build.options import BuildOptions

PROJECT_FILE: Final = "edgeship.toml"
_NOT_GIVEN: Final = frozenset({ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP})


def first_words(given: Mapping[str, Any]) -> str:
    """What is built, for the first line on the screen."""
    if given["source"] is None:
        return f"as {given['project'] or PROJECT_FILE} says"
    targets = ", ".join(given["targets"])
    return f"{given['source']} for {targets}" if targets else str(given["source"])


def options_of(context: click.Context, given: dict[str, Any], *, yes: bool) -> BuildOptions:
    """Options from the command line over those of the project file.

    Args:
        context: knows which options were typed.
        given: parameter → value, defaults included.
        yes: install missing converters without asking.

    Raises:
        ConfigError: no source and no project file, data that nobody named, or a project file that cannot be followed.
    """
    import msgspec

    from edgeship.build.options import BuildOptions

    base = _project(given)
    typed = {key: value for key, value in given.items()
             if key != "project" and context.get_parameter_source(key) not in _NOT_GIVEN}  # fmt: skip
    fields = {**_parsed(typed), "install_toolchains": yes}
    if base is not None:
        return msgspec.structs.replace(base, **fields)
    for key in ("calibration", "evaluation"):
        if key not in fields:
            raise ConfigError("is missing", key=f"--{key}", expected="an .npz file or a folder of images",
                              next_step="name it, or write a project file: edgeship init MODEL")  # fmt: skip
    return BuildOptions(**{"targets": (), **fields})


def _project(given: Mapping[str, Any]) -> BuildOptions | None:
    """What the project file says; None where a source was named and no project file.

    Raises:
        ConfigError: there is none, or it cannot be followed.
    """
    path: Path | None = given["project"]
    if path is None:
        if given["source"] is not None:
            return None
        path = Path(PROJECT_FILE)
        if not path.is_file():
            raise ConfigError("no SOURCE was named, and this folder has no project file", expected=PROJECT_FILE,
                              got="no such file", next_step="edgeship init MODEL")  # fmt: skip
    from edgeship.build import project

    return project.options_of(project.read(path), path)


def _parsed(typed: dict[str, Any]) -> dict[str, Any]:
    """Texts of options as the values that they stand for."""
    from edgeship.build.sources import InputShape, InputValue

    fields = dict(typed)
    if "input_shapes" in fields:
        fields["input_shapes"] = tuple(InputShape.parse(text) for text in fields["input_shapes"])
    if "input_values" in fields:
        fields["input_values"] = tuple(InputValue.parse(text) for text in fields["input_values"])
    if "labels" in fields:
        fields["labels"] = tuple(label.strip() for label in fields["labels"].split(",") if label.strip())
    return fields
