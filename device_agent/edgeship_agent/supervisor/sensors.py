"""Hour, battery and heat of this device, as Linux tells them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgeship_agent.update.conditions import Conditions

_SYS: Final = Path("/sys/class")


def read_conditions(now_s: float, sys: Path = _SYS, is_metered: bool | None = None) -> Conditions:
    """How things are now; what the system does not tell is None.

    Args:
        is_metered: whether the network costs by the byte: :mod:`edgeship_agent.supervisor.metered`.
        now_s: wall clock, seconds since 1970, never before a time that was signed to be past.
        sys: Source: Linux sysfs-class-power (``online``, ``capacity``) and sysfs-class-thermal (``temp``, in m°C).
    """
    local = time.localtime(now_s)
    supplies = [(_text(folder / "type"), folder) for folder in _folders(sys / "power_supply")]
    mains = [_number(folder / "online") for kind, folder in supplies if kind in ("Mains", "USB")]
    charges = [_number(folder / "capacity") for kind, folder in supplies if kind == "Battery"]
    heats = [_number(folder / "temp") for folder in _folders(sys / "thermal") if folder.name.startswith("thermal_zone")]
    known_charges = [charge for charge in charges if charge is not None]
    known_heats = [heat / 1000 for heat in heats if heat is not None]
    return Conditions(
        minute=local.tm_hour * 60 + local.tm_min,
        has_mains=any(mains) if mains else None,
        battery_percent=min(known_charges, default=None),
        temperature_c=max(known_heats, default=None),
        is_metered=is_metered,
    )


def _folders(parent: Path) -> Iterator[Path]:
    try:
        yield from sorted(parent.iterdir())
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
