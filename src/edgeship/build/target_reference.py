"""``docs/reference/targets.md``: the target file format and the shipped targets, generated from the code.

::

    python -m edgeship.build.target_reference > docs/reference/targets.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from edgeship.build import target_files
from edgeship.targets import Target, model

_HEAD = """\
# Hardware targets

Generated from the target file format: `python -m edgeship.build.target_reference > docs/reference/targets.md`.

A target is a TOML file that says what a kind of device has and which budgets hold there. `edgeship build -t` takes
the id of a shipped target or the path of a file of your own, which may start from a shipped one with `extends`: its
own keys win, tables are merged, lists are replaced as a whole.

    # my-pi.toml
    id = "my-pi"
    extends = "raspberry-pi-5"
    memory_bytes = 268435456

    [defaults]
    latency_p99_ms = 5.0

`edgeship targets check MODEL -t TARGET` says before a build whether the runtime takes every operator, how its
delegate splits the model, and whether memory, storage, C library, Python and types fit; `edgeship build` runs the same
checks first and stops where one is sure to fail. The guide on targets says more: [targets](../guide/targets.md).

What several targets share lies in `targets/bases/`: such a file is no target, only a name for `extends`.
"""


def reference(targets: Sequence[Target]) -> str:
    """The page as Markdown."""
    rows = [
        (
            f"`{each.id}`",
            each.title,
            " + ".join([each.arch, *each.isa]),
            ", ".join(entry.name for entry in each.runtimes),
            "yes" if each.agent else "build only",
            ", ".join(each.verified_on) or "not yet",
        )
        for each in targets
    ]
    parts = [_HEAD, "## Shipped targets\n"]
    parts += [_table(("target", "device", "processor", "runtimes", "agent", "verified on"), rows), "## Keys\n"]
    for title, kind in _tables(Target, ""):
        parts += [f"### {title}\n", f"{_summary(kind)}\n", _table(("key", "value", "default", "meaning"), _keys(kind))]
    return "\n".join(parts)


def _tables(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """A struct and every struct inside it, with the name of its TOML table."""
    yield (f"`{path}`" if path else "Top level", kind)
    for name, schema in _properties(kind).items():
        inner = _inner(schema)
        if inner:
            is_list = schema.get("type") == "array"
            where = f"{path.strip('[]')}.{name}".lstrip(".")
            yield from _tables(getattr(model, inner), f"[[{where}]]" if is_list else f"[{where}]")


def _properties(kind: type[msgspec.Struct]) -> dict[str, Any]:
    properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    assert isinstance(properties, dict)
    return properties


def _inner(schema: dict[str, Any]) -> str:
    """Name of the struct that a property holds, directly, optionally or as a list; empty for none."""
    for part in (schema, schema.get("items") or {}, *schema.get("anyOf", ())):
        if "$ref" in part:
            return str(part["$ref"]).rpartition("/")[2]
    return ""


def _keys(kind: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    meanings = _meanings(kind)
    rows: list[tuple[str, ...]] = []
    for field in msgspec.structs.fields(kind):
        schema = _properties(kind)[field.encode_name]
        rows.append(
            (
                f"`{field.encode_name}`",
                _value(schema),
                "required" if field.required else _default(schema),
                meanings.get(field.name, ""),
            )
        )
    return rows


def _value(schema: dict[str, Any]) -> str:
    inner = _inner(schema)
    if inner:
        return "list of tables" if schema.get("type") == "array" else "table"
    if "enum" in schema:
        return " or ".join(f"`{value}`" if value != "" else "empty" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_value(schema.get('items') or {})}"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_value(part) for part in schema["anyOf"]))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), ", ".join(bounds)]).strip()


_BOUNDS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def _default(schema: dict[str, Any]) -> str:
    if _inner(schema) or "default" not in schema:
        return ""
    value = schema["default"]
    return "empty" if value in ("", [], (), None) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _summary(kind: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0].replace("``", "`")


def _meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Field → sentence, from the docstring's list of attributes."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    meanings: dict[str, str] = {}
    for names, meaning in re.findall(r"^    ([a-z0-9_, ]+): (.+(?:\n {8,}.+)*)", text, re.MULTILINE):
        for name in names.split(", "):
            meanings[name] = re.sub(r"\s+", " ", meaning).replace("``", "`")
    return meanings


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference(target_files.list_all()))
