"""Markdown that keeps its form whatever names it is given. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line; nobody is notified by an ``@``.

    >>> plain("a|b") == "a" + chr(92) + "|b", plain("@ali")
    (True, '@<!-- -->ali')
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("@", "@<!-- -->")


def code(text: str) -> str:
    """A text in code type, on one line.

    >>> code("a`b")
    "`a'b`"
    """
    return "`" + " ".join(text.replace("`", "'").split()).replace("|", "¦") + "`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
