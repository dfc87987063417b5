"""``--keep-float NAME``: operators that every int8 candidate leaves in float."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from msgspec import structs

from edgeship.build.backends.base import Scheme
from edgeship.build.search.graph import Operator
from edgeship_agent.contract.errors import ConfigError, ConversionError


class KeepFloat:
    """Names that a user gave, and which of them a runtime's file has: each format names operators in its own way.

    Args:
        names: as given.
        runtimes: all that the build may ask; empty where nobody says so, and names are checked at the end alone.
    """

    def __init__(self, names: Sequence[str] = (), runtimes: Sequence[str] = ()) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._unasked = set(runtimes)
        self._found: set[str] = set()
        self._known: dict[str, None] = {}

    def among(self, operators: Sequence[Operator], runtime: str, *, allowed: bool) -> tuple[str, ...]:
        """Those names that this runtime's operators have.

        Args:
            operators: of its float file.
            runtime: whose they are.
            allowed: whether the target computes anything in float.

        Raises:
            ConversionError: it does not, and a name is among them.
            ConfigError: this is the last runtime that could have a name, and none has it: no search begins.
        """
        own = {each.name for each in operators}
        self._known.update(dict.fromkeys(each.name for each in operators))
        found = tuple(name for name in self._names if name in own)
        self._found.update(found)
        if self._unasked:
            self._unasked.discard(runtime)
            if not self._unasked:
                self.check()
        if found and not allowed:
            raise ConversionError(f"--keep-float {found[0]}: the target computes nothing in float", target=runtime)
        return found

    def check(self) -> None:
        """Refuse a name that no file has, once every runtime was asked.

        Raises:
            ConfigError: as said; nothing is said where no runtime was searched.
        """
        for name in self._names:
            if self._known and name not in self._found:
                near = difflib.get_close_matches(name, self._known, n=3, cutoff=0.4) or list(self._known)[:3]
                raise ConfigError("no operator of this name", key="--keep-float", got=name, expected=" | ".join(near),
                                  next_step="take a name from the section Sensitivity of report.html")  # fmt: skip


def kept(scheme: Scheme, names: Sequence[str]) -> Scheme:
    """A scheme that leaves these operators in float too.

    >>> kept(Scheme(part="head", floats=("pool",)), ["pool", "conv"]).text
    's8s8 per channel, min–max, head and conv in float'
    >>> kept(Scheme(), []) == Scheme()
    True
    """
    more = [name for name in names if name not in scheme.floats]
    if not more:
        return scheme
    part = " and ".join(word for word in (scheme.part, ", ".join(more)) if word)
    return structs.replace(scheme, floats=(*scheme.floats, *more), part=part)
