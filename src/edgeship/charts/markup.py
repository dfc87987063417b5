"""HTML and SVG from Python: text is escaped unless it is :class:`Markup`, so a forgotten call cannot open a hole."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final, Union

#: Elements of HTML that have no end tag. Source: HTML Living Standard, 13.1.2 "Void elements".
_VOID: Final = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"})


class Markup(str):
    """Text that is markup already: made by this module only, never from what a device or a user sent."""

    __slots__ = ()


Child = Union[str, int, float, None, Iterable["Child"]]
Attribute = Union[str, int, float, bool, None]


def fragment(*children: Child) -> Markup:
    """Children one after the other, text escaped, None left out.

    >>> fragment("a < b", None, [Markup("<br>"), 3])
    'a &lt; b<br>3'
    """
    return Markup("".join(_pieces(children)))


def element(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element.

    An underscore at the end of an attribute's name is dropped (``class_``), others become hyphens; False and None leave
    the attribute out, True writes it without a value.

    >>> element("a", "<script>", href="/x?a=1&b=2", class_="name")
    '<a href="/x?a=1&amp;b=2" class="name">&lt;script&gt;</a>'
    >>> element("input", disabled=True, value=None)
    '<input disabled>'
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{fragment(*children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{escape(_text(value), quote=True)}"'


def _pieces(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield escape(child, quote=True)
        elif isinstance(child, int | float):
            yield _text(child)
        else:
            yield from _pieces(child)


def _text(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return str(value)
