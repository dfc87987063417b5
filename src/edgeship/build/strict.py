"""From a TOML table to a frozen type, where every mistake names file, key, what was expected and what stands there."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

S = TypeVar("S", bound=Struct)
#: msgspec: "Expected `float`, got `str` - at `$.metric.max_drop`".
_MISTAKE: Final = re.compile(r"Expected (?P<wanted>.+?), got (?P<got>.+?)(?: - at `\$\.?(?P<place>.*)`)?")
_MISSING: Final = re.compile(r"Object missing required field `(?P<key>\w+)`(?: - at `\$\.?(?P<place>.*)`)?")
_WORDS: Final = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a table", "null": "nothing",
}  # fmt: skip


def read_table(path: Path, next_step: str) -> dict[str, Any]:
    """A TOML file.

    Raises:
        ConfigError: not there, not readable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, next_step=next_step) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read as TOML: {error}", file=path, next_step=next_step) from error


def convert(table: Mapping[str, Any], kind: type[S], path: Path, next_step: str) -> S:
    """A table as a type.

    Args:
        table: as read.
        kind: what it must be.
        path: of its file, for the error.
        next_step: where the keys are explained.

    Raises:
        ConfigError: an unknown or a missing key, or a value of another type.

    >>> class Point(Struct, frozen=True, kw_only=True):
    ...     x: float
    >>> convert({"x": 1}, Point, Path("p.toml"), "read the manual")
    Point(x=1.0)
    >>> convert({"y": 1}, Point, Path("p.toml"), "read the manual")
    Traceback (most recent call last):
    ...
    edgeship_agent.contract.errors.ConfigError: p.toml: y: unknown key (expected x, got y)
    """
    _refuse_unknown(table, kind, path, "", next_step)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), path, next_step) from error


def _refuse_unknown(table: Mapping[str, Any], kind: type[Struct], path: Path, place: str, next_step: str) -> None:
    hints = typing.get_type_hints(kind)
    tag = kind.__struct_config__.tag_field
    for key, value in table.items():
        where = f"{place}.{key}".lstrip(".")
        if key == tag:
            continue
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise ConfigError("unknown key", file=path, key=where, expected=" | ".join(hints), got=key,
                              next_step=f"did you mean {near[0]}?" if near else next_step)  # fmt: skip
        inner, several = _struct_in(hints[key])
        if inner is None:
            continue
        entries = value if several and isinstance(value, list) else [value]
        for index, entry in enumerate(entries):
            if isinstance(entry, Mapping):
                _refuse_unknown(entry, inner, path, f"{where}[{index}]" if several else where, next_step)


def _struct_in(hint: Any) -> tuple[type[Struct] | None, bool]:
    """The struct that a field holds, and whether it holds a list of them."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint, False
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        found = [_struct_in(part) for part in inner]
        return next((each for each in found if each[0] is not None), (None, False))
    if origin is tuple and inner:
        return _struct_in(inner[0])[0], True
    return None, False


def _explained(message: str, path: Path, next_step: str) -> ConfigError:
    if found := _MISSING.fullmatch(message):
        place = ".".join(part for part in (found["place"], found["key"]) if part)
        return ConfigError("missing key", file=path, key=place, expected=f"a value for {found['key']}", got="none",
                           next_step=next_step)  # fmt: skip
    if found := _MISTAKE.fullmatch(message):
        wanted, got = _worded(found["wanted"]), _worded(found["got"])
        return ConfigError("a value of another kind", file=path, key=found["place"] or None, expected=wanted, got=got,
                           next_step=next_step)  # fmt: skip
    return ConfigError(message, file=path, next_step=next_step)


def _worded(types_named: str) -> str:
    names = re.findall(r"\w+", types_named) if "`" in types_named else []
    return " or ".join(_WORDS.get(name, name) for name in names) or types_named
