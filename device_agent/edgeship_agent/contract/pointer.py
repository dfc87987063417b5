"""The pointer: which slot of every model and arm is the active one, in one small file that is replaced in one step.

Models of one release switch together because there is nothing else to switch: one rename, whatever their number.
Pure: bytes and values; :mod:`edgeship_agent.update.slots` reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

POINTER_VERSION: Final = 1
#: Beside the models' folders of slots.
POINTER_FILE: Final = "pointer.json"
#: Names of the two slots of an arm.
SLOT_NAMES: Final = ("a", "b")

#: Model and arm: what has a pair of slots.
ArmKey = tuple[str, str]


class Pointed(Struct, frozen=True, kw_only=True):
    """The active slot of one arm.

    Attributes:
        slot: ``a`` or ``b``.
        switched: number of the swap that made it the active one; arms with the same number switched together.
    """

    model: str
    arm: str
    slot: str
    switched: int = 0

    @property
    def key(self) -> ArmKey:
        """Model and arm."""
        return self.model, self.arm


class Pointer(Struct, frozen=True, kw_only=True):
    """``pointer.json``: the active slots of the device.

    Attributes:
        swaps: how often it was replaced.
        raw: the document as it was read, so that fields of a newer agent are kept.
    """

    swaps: int = 0
    arms: tuple[Pointed, ...] = ()
    raw: dict[str, Any] = {}

    def find(self, model: str, arm: str) -> Pointed | None:
        """The active slot of an arm, or None where none is."""
        return next((each for each in self.arms if each.key == (model, arm)), None)

    def slot_of(self, model: str, arm: str) -> str:
        """Name of the active slot; empty where none is."""
        found = self.find(model, arm)
        return "" if found is None else found.slot

    def together(self, model: str, arm: str) -> tuple[ArmKey, ...]:
        """The arms that became active in the same swap, this one too.

        >>> pointer = Pointer().swapped({("eye", "main"): "a", ("ear", "main"): "a"}).swapped({("nose", "main"): "b"})
        >>> pointer.together("ear", "main"), pointer.together("nose", "main")
        ((('ear', 'main'), ('eye', 'main')), (('nose', 'main'),))
        """
        numbers = {each.switched for each in self.arms if each.key == (model, arm)}
        return tuple(each.key for each in self.arms if each.switched in numbers)

    def swapped(self, changes: Mapping[ArmKey, str]) -> Pointer:
        """The pointer after one swap.

        Args:
            changes: name of the slot that is the active one from now on; empty for none.

        >>> pointer = Pointer().swapped({("eye", "main"): "a"})
        >>> pointer.swapped({("eye", "main"): "b"}).slot_of("eye", "main"), pointer.swapped({("eye", "main"): ""}).arms
        ('b', ())
        """
        kept = [each for each in self.arms if each.key not in changes]
        fresh = [
            Pointed(model=model, arm=arm, slot=slot, switched=self.swaps + 1)
            for (model, arm), slot in changes.items()
            if slot
        ]
        arms = tuple(sorted((*kept, *fresh), key=lambda each: each.key))
        return Pointer(swaps=self.swaps + 1, arms=arms, raw=self.raw)


def read_pointer(data: bytes) -> Pointer | None:
    """The pointer, or None where the bytes are none that this agent understands.

    >>> read_pointer(pointer_bytes(Pointer().swapped({("eye", "main"): "a"}))).slot_of("eye", "main")
    'a'
    >>> read_pointer(b"{"), read_pointer(b'{"schema_version":9,"swaps":1,"arms":[]}')
    (None, None)
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        arms = msgspec.convert(raw.get("arms"), tuple[Pointed, ...])
        swaps = msgspec.convert(raw.get("swaps"), int)
    except msgspec.MsgspecError:
        return None
    if raw.get("schema_version") != POINTER_VERSION or any(each.slot not in SLOT_NAMES for each in arms):
        return None
    return Pointer(swaps=swaps, arms=arms, raw=raw)


def pointer_bytes(pointer: Pointer) -> bytes:
    """The file; fields that this agent does not know stay, of arms too."""
    known = {(each.get("model"), each.get("arm")): each for each in pointer.raw.get("arms", ())}
    arms = [{**known.get(each.key, {}), **msgspec.to_builtins(each)} for each in pointer.arms]
    document = {**pointer.raw, "schema_version": POINTER_VERSION, "swaps": pointer.swaps, "arms": arms}
    return msgspec.json.format(msgspec.json.encode(document), indent=1)
