"""Why a pass was done again: what of its key differs from the nearest one that was known. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from edgeship.build.cache.store import Found

_LONGEST: Final = 60


class Difference(Struct, frozen=True, kw_only=True):
    """One field of a key.

    Attributes:
        field: path inside the key: ``versions.onnxruntime``.
        before, now: its values, shortened; empty where it was not there.
    """

    field: str
    before: str
    now: str

    @property
    def sentence(self) -> str:
        """For people.

        >>> Difference(field="versions.numpy", before="2.4.5", now="2.4.6").sentence
        'versions.numpy: 2.4.5 → 2.4.6'
        """
        return f"{self.field}: {self.before or 'nothing'} → {self.now or 'nothing'}"


class Why(Struct, frozen=True, kw_only=True):
    """The newest entry of a pass, and the former one that it is nearest to.

    Attributes:
        differences: empty where there is no former one.
    """

    newest: Found
    nearest: Found | None
    differences: tuple[Difference, ...]


def why(found: Sequence[Found], name: str) -> Why | None:
    """What made the newest entry of a pass another one than those before it; None where the pass has none."""
    mine = sorted((each for each in found if each.entry.name == name), key=lambda each: each.entry.made_at_s)
    if not mine:
        return None
    *former, newest = mine
    compared = [(differences(each.entry.key, newest.entry.key), each) for each in reversed(former)]
    if not compared:
        return Why(newest=newest, nearest=None, differences=())
    least, nearest = min(compared, key=lambda each: len(each[0]))
    return Why(newest=newest, nearest=nearest, differences=least)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Fields that differ.

    >>> [each.sentence for each in differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})]
    ['a.b: 1 → 3']
    """
    one, other = dict(_leaves(before)), dict(_leaves(now))
    return tuple(
        Difference(field=name, before=_short(one.get(name)), now=_short(other.get(name)))
        for name in sorted({*one, *other}) if one.get(name) != other.get(name)
    )  # fmt: skip


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
