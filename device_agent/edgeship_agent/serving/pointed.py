"""Which slots the agent's one pointer names: for an application that has several models in its own process.

The links beside the slots follow the pointer one after the other; the pointer itself changes in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeship_agent.contract.pointer import POINTER_FILE, Pointer, read_pointer


def find_together(links: Sequence[Path]) -> list[Path] | None:
    """The folders of slots that links lead to, all as of one moment; None where that cannot be had now.

    It cannot while the agent is between its pointer and its links, and where one of the models is served no longer.

    Args:
        links: ``slots/MODEL/ARM/active``, or the folders of slots of no agent, which are what they are.
    """
    roots = {_root_of(link) for link in links}
    pointers = {root: pointer for root in roots if (pointer := _read(root / POINTER_FILE)) is not None}
    found = [link.resolve() for link in links]  # after the pointer: what agrees with it is one release
    for link, directory in zip(links, found, strict=True):
        named = _named(pointers, link)
        if named is not None and named != directory:
            return None
    return found


def _root_of(link: Path) -> Path:
    return link.absolute().parent.parent.parent


def _named(pointers: Mapping[Path, Pointer], link: Path) -> Path | None:
    """What a pointer names in place of a link; None where there is no pointer, or it is no agent's link."""
    pointer, folder = pointers.get(_root_of(link)), link.absolute().parent
    if pointer is None or (link.is_dir() and not link.is_symlink()):
        return None
    return folder.resolve() / pointer.slot_of(folder.parent.name, folder.name)


def _read(path: Path) -> Pointer | None:
    try:
        return read_pointer(path.read_bytes())
    except OSError:
        return None
