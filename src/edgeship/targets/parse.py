"""Target files: TOML text becomes a :class:`Target`, and every mistake names file, key, expected, got and next step."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from edgeship.targets.model import Target
from edgeship_agent.contract.errors import ConfigError

#: Longest chain of ``extends``.
MAX_PARENTS: Final = 8
_FACTS: Final = re.compile(r"^Expected (?P<expected>.+?)(?:, got (?P<got>.+?))?(?: - at `(?P<key>[^`]+)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(?P<name>[^`]+)`(?: - at `(?P<key>[^`]+)`)?$")
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>[^`]+)`(?: - at `(?P<key>[^`]+)`)?$")
_INVALID: Final = re.compile(r"^Invalid enum value (?P<got>.+?)(?: - at `(?P<key>[^`]+)`)?$")


def parse(text: str, *, file: str = "target", parent: Callable[[str], str] | None = None) -> Target:
    r"""Read a target file.

    Args:
        text: TOML.
        file: name of the file, for errors.
        parent: gives the text of the target that ``extends`` names; without it a file must stand alone.

    Raises:
        ConfigError: not TOML, an unknown or missing key, a wrong value, or a parent that does not exist.

    >>> parse('id = "a"\ntitle = "A"\narch = "aarch64"\nmemory_bytes = 1\nstorage_bytes = 1\n'
    ...       '[[runtime]]\nname = "litert"\n').runtimes[0].threads
    1
    """
    return _to_target(resolve(_table(text, file), file=file, parent=parent), file)


def resolve(
    table: Mapping[str, Any], *, file: str = "target", parent: Callable[[str], str] | None = None
) -> dict[str, Any]:
    r"""Follow ``extends``: the child's keys win, tables are merged, lists are replaced as a whole.

    Raises:
        ConfigError: a parent is missing, or the chain is a circle or too long.

    >>> resolve({"extends": "base", "id": "b"}, parent=lambda name: 'id = "a"\narch = "x86_64"')
    {'id': 'b', 'arch': 'x86_64', 'extends': 'base'}
    """
    chain = [dict(table)]
    seen = [str(table.get("id", file))]
    while name := chain[-1].get("extends", ""):
        if not isinstance(name, str) or parent is None:
            raise ConfigError("cannot be followed", file=file, key="extends", expected="the id of a target", got=name)
        if name in seen or len(chain) > MAX_PARENTS:
            raise ConfigError(
                "targets extend each other in a circle", file=file, key="extends", got=" → ".join([*seen, name]),
                next_step="let the most general target extend nothing",
            )  # fmt: skip
        seen.append(name)
        chain.append(_table(parent(name), f"{name} (extended by {file})"))
    merged: dict[str, Any] = {}
    for level in reversed(chain):
        merged = _merge(merged, level)
    if chain[0].get("extends"):
        merged["extends"] = chain[0]["extends"]
    return merged


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _table(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", file=file, next_step=f"correct the syntax of {file}") from error


def _to_target(table: Mapping[str, Any], file: str) -> Target:
    try:
        return msgspec.convert(table, Target)
    except msgspec.ValidationError as error:
        raise _explained(str(error), table, file) from error


def _explained(message: str, table: Mapping[str, Any], file: str) -> ConfigError:
    """The sentence of msgspec, taken apart into key, expected, got and a next step."""
    if found := _UNKNOWN.match(message):
        key = _join(found["key"], found["name"])
        near = difflib.get_close_matches(found["name"], _known_keys(), n=1)
        hint = f"write {near[0]} instead of {found['name']}" if near else f"remove {key}"
        return ConfigError("unknown key", file=file, key=key, expected=near[0] if near else None, next_step=hint)
    if found := _MISSING.match(message):
        key = _join(found["key"], found["name"])
        return ConfigError("missing key", file=file, key=key, expected="a value", got="nothing",
                           next_step=f"add {key} to {file}")  # fmt: skip
    found = _FACTS.match(message) or _INVALID.match(message)
    facts = found.groupdict() if found else {}
    key = _join(facts.get("key"), "")
    expected = facts.get("expected") or _choices(key) or message
    return ConfigError("wrong value", file=file, key=key or None, expected=expected.replace("`", ""),
                       got=repr(_at(table, key)), next_step=f"correct {key or 'the file'} in {file}")  # fmt: skip


def _join(path: str | None, name: str) -> str:
    """``$.runtime[0]`` and ``int8`` → ``runtime[0].int8``."""
    return ".".join(part for part in ((path or "").removeprefix("$").removeprefix("."), name) if part)


def _at(table: Any, key: str) -> Any:
    """The value that stands at a key such as ``runtime[0].int8``."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(table, Mapping):
            table = table.get(part)
        elif isinstance(table, (list, tuple)) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
    return table


def _structs() -> tuple[type[msgspec.Struct], ...]:
    from edgeship.targets import model

    return tuple(
        kind for kind in vars(model).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    )  # fmt: skip


def _known_keys() -> list[str]:
    return sorted({name for kind in _structs() for name in kind.__struct_encode_fields__})


def _choices(key: str) -> str:
    """The values that the last part of a key may have, where they are a fixed list."""
    name = re.sub(r"\[[^\]]*\]", "", key).rpartition(".")[2]
    for kind in _structs():
        if name in kind.__struct_encode_fields__:
            schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"][name]
            values = schema.get("enum") or schema.get("items", {}).get("enum") or []
            if values:
                return "one of " + ", ".join(map(str, values))
    return ""
