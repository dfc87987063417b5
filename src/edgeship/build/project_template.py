"""A project file for a model that was looked at: every key with its meaning, optional ones as comments."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship.build.project import FILE_NAME, Project
from edgeship.build.sources import SourceModel
from edgeship_agent.contract.manifest import TensorSpec

_WIDTH: Final = 110
#: Words in names of files and folders that tell what a data set is for.
_DATA: Final = frozenset({".npz", ".csv", ".parquet"})
_ROLES: Final = {"calibration": ("calib", "train"), "evaluation": ("eval", "val", "test")}

#: The target that a project starts with, by the ISA class of this machine: its own int8 kernels judge it.
_FIRST_TARGET: Final = {"x86_64+vnni": "x86-64-server", "x86_64": "x86-64-v2", "aarch64": "raspberry-pi-4"}
_OTHER_TARGET: Final = "raspberry-pi-5"


class Answers(Struct, frozen=True, kw_only=True):
    """What the new file is to say.

    Attributes:
        values: dotted key → value, for keys that are not commented out.
        found: roles of data sets that were found on the disk; the others are names to be replaced.
    """

    values: Mapping[str, Any]
    found: tuple[str, ...] = ()


def first_target(isa_class: str) -> str:
    """The hardware target that is like a machine of this ISA class, so that figures taken on it hold for the target.

    >>> first_target("x86_64+vnni"), first_target("x86_64")
    ('x86-64-server', 'x86-64-v2')
    """
    return _FIRST_TARGET.get(isa_class, _OTHER_TARGET)


def find_data(folder: Path) -> dict[str, str]:
    """Data sets in a folder, by their names: role → file or folder, where exactly one fits."""
    found = {}
    for role, words in _ROLES.items():
        for word in words:
            fits = [entry.name for entry in sorted(folder.iterdir())
                    if word in entry.name.lower() and (entry.suffix in _DATA or entry.is_dir())]  # fmt: skip
            if len(fits) == 1:
                found[role] = fits[0]
                break
    return found


def render(model: SourceModel, answers: Answers) -> str:
    """The text of a new project file.

    Args:
        model: the source, looked at.
        answers: what is known besides.
    """
    lines = [
        f"# {FILE_NAME}: what `edgeship build` reads in this folder. Paths are relative to this file.",
        "# A key in a comment has its default value, or none where … stands. See docs/reference/project-file.md.",
        "",
        *_section(Project, "", answers.values),
    ]
    for field in msgspec.structs.fields(Project):
        kind = field.type
        if isinstance(kind, type) and issubclass(kind, Struct):
            lines += ["", f"[{field.name}]", *_comment(_summary(kind))]
            lines += _facts(field.name, model, answers)
            lines += _section(kind, field.name, answers.values)
            lines += _example(field.name, model)
    return "\n".join(lines) + "\n"


def _section(kind: type[Struct], name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The keys of one table, each below its meaning."""
    meanings = _meanings(kind)
    for field in msgspec.structs.fields(kind):
        path = f"{name}.{field.name}".lstrip(".")
        if field.name not in meanings or _holds_tables(field.type):
            continue
        yield from _comment(meanings[field.name])
        if path in values:
            yield f"{field.name} = {_toml(values[path])}"
        else:
            yield f"# {field.name} = {'…' if field.default is None else _toml(field.default)}"


def _holds_tables(kind: Any) -> bool:
    return "dict" in str(kind) or (isinstance(kind, type) and issubclass(kind, Struct))


def _facts(section: str, model: SourceModel, answers: Answers) -> list[str]:
    """What was seen, as comments."""
    if section == "model":
        sides = (("input", model.inputs), ("output", model.outputs))
        return [f"# {side} {spec.name}: {spec.dtype} {list(spec.shape)}" for side, specs in sides for spec in specs]
    if section == "data":
        missing = [role for role in _ROLES if role not in answers.found]
        return [f"# There is no {' and no '.join(missing)} data here yet: put the right paths in."] if missing else []
    return []


def _example(section: str, model: SourceModel) -> list[str]:
    """The inline tables, as comments, for the model's own inputs."""
    if section == "preprocessing":
        tables = [_contract(spec) for spec in model.inputs]
    elif section == "input_schema":
        tables = [_feature(spec) for spec in model.inputs]
    else:
        return []
    return [f"# {line}".rstrip() for table in tables for line in ("", *table)]


def _contract(spec: TensorSpec) -> list[str]:
    shape = spec.call_shape[1:] if spec.batched else spec.shape
    return ["[[preprocessing.input]]", f"tensor = {_toml(spec.name)}", f"dtype = {_toml(spec.dtype)}",
            f"shape = {_toml(list(shape))}", "steps = []"]  # fmt: skip


def _feature(spec: TensorSpec) -> list[str]:
    return ["[[input_schema.feature]]", f"tensor = {_toml(spec.name)}", f"name = {_toml(spec.name)}",
            'unit = "unknown"', 'meaning = ""', "low = 0.0", "high = 1.0"]  # fmt: skip


def _toml(value: Any) -> str:
    """A value as TOML writes it: JSON's spelling of text, numbers, booleans and lists is TOML's too.

    >>> _toml(("a", "b")), _toml(True), _toml(0.1)
    ('["a", "b"]', 'true', '0.1')
    """
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _summary(kind: type[Struct]) -> str:
    return _plain(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0])


def _meanings(kind: type[Struct]) -> dict[str, str]:
    """Field → its sentence in the type's docstring, in the order of the fields."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    for names, meaning in re.findall(r"^    ([a-z0-9_, ]+): (.+(?:\n {8,}.+)*)", text, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), _plain(meaning))
    return found


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").strip()


def candidates(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Model files in a folder, by suffix."""
    return [entry.name for entry in sorted(folder.iterdir()) if entry.is_file() and entry.suffix.lower() in suffixes]
