"""Where target files lie on disk, and reading them by name or path.

``targets/*.toml`` are the shipped targets; ``targets/bases/*.toml`` hold what several of them share: not targets
themselves, only named by ``extends``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

import edgeship
from edgeship.targets import Target, parse
from edgeship_agent.contract.errors import ConfigError

_BASES: Final = "bases"


def folder() -> Path:
    """The folder of the shipped targets: ``targets/`` of a checkout, or the copy inside the package."""
    package = Path(edgeship.__file__).parent
    checkout = package.parents[1] / "targets"
    return checkout if checkout.is_dir() else package / "_targets"


def names() -> list[str]:
    """Ids of the shipped targets, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def base_names() -> list[str]:
    """What ``extends`` may name besides targets, sorted."""
    return sorted(path.stem for path in (folder() / _BASES).glob("*.toml"))


def list_all() -> tuple[Target, ...]:
    """Every shipped target, sorted by id."""
    return tuple(load(name) for name in names())


def path_of(name_or_path: str | Path) -> Path:
    """The file of a target: a shipped one by its id, or any ``.toml`` file by its path.

    Raises:
        ConfigError: there is no such target.
    """
    text = str(name_or_path)
    given = Path(text)
    if given.suffix == ".toml":
        if given.is_file():
            return given
        raise ConfigError("no such target file", file=text, next_step="edgeship targets list")
    known = names()
    if text in known:
        return folder() / f"{text}.toml"
    near = difflib.get_close_matches(text, known, n=1)
    raise ConfigError(
        f"unknown target {text!r}" + (f", did you mean {near[0]}?" if near else ""),
        expected="one of " + ", ".join(known),
        got=repr(text),
        next_step="edgeship targets list",
    )


def load(name_or_path: str | Path) -> Target:
    """Read one target.

    Args:
        name_or_path: id of a shipped target, or path of a ``.toml`` file (its ``extends`` may name a file beside it).

    Raises:
        ConfigError: unknown, or its file is not valid.
    """
    path = path_of(name_or_path)

    def parent(name: str) -> str:
        return _read(_parent_path(name, path))

    target = parse(_read(path), file=str(path), parent=parent)
    if target.id != path.stem:
        raise ConfigError("must be the name of the file", file=path, key="id", expected=path.stem, got=target.id,
                          next_step=f"name the file {target.id}.toml or set id = \"{path.stem}\"")  # fmt: skip
    return target


def _parent_path(name: str, child: Path) -> Path:
    """The file that ``extends`` names: beside the child, a shipped target, or a base."""
    known = [*names(), *base_names()]
    # a name of a file and never a path: what a target starts from lies beside it or was shipped
    if Path(name).name == name:
        for candidate in (child.parent / f"{name}.toml", folder() / f"{name}.toml", folder() / _BASES / f"{name}.toml"):
            if candidate.is_file():
                return candidate
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        "extends a target that does not exist" + (f", did you mean {near[0]}?" if near else ""), file=child,
        key="extends", expected=f"a file beside it, or one of {', '.join(known)}", got=repr(name),
        next_step=f"correct extends in {child}",
    )  # fmt: skip


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=path) from error
