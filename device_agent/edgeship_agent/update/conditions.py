"""When an update may load bytes or switch models: the hour, the battery, the heat, the price of a byte. Pure."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

#: The reason that stands against loading alone, not against switching; it is given where no other one is.
METERED: Final = "metered"
METERED_POLICIES: Final = ("always", "never")
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Policy(Struct, frozen=True, kw_only=True):
    """What the owner of a device asks for; zero and empty ask for nothing.

    Attributes:
        window: minutes of the day from which and until which it may be done; the first may be the later one.
        min_battery_percent: charge below which nothing is done while no mains is there.
        max_temperature_c: heat of the hottest zone above which nothing is done.
        may_be_metered: whether bundles are loaded over a network that costs by the byte.
    """

    window: tuple[int, int] | None = None
    min_battery_percent: float = 0.0
    max_temperature_c: float = 0.0
    may_be_metered: bool = True


class Conditions(Struct, frozen=True, kw_only=True):
    """How things are; None where the device cannot tell.

    Attributes:
        minute: of the day, local time.
        has_mains: whether mains power is there.
        battery_percent: charge of the emptiest battery.
        temperature_c: of the hottest zone.
        is_metered: whether the network costs by the byte.
    """

    minute: int
    has_mains: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    is_metered: bool | None = None


def parse_window(text: str) -> tuple[int, int] | None:
    """Minutes of the day that a text such as ``22:00-05:30`` names; None for an empty one.

    Raises:
        ConfigError: it is something else.

    >>> parse_window("22:00-05:30"), parse_window("")
    ((1320, 330), None)
    """
    if not text:
        return None
    match = _WINDOW.fullmatch(text)
    if match is None or match[1] + match[2] == match[3] + match[4]:
        raise ConfigError("not a time of day", key="update.window", expected="HH:MM-HH:MM, local time", got=text)
    hours = [int(part) for part in match.groups()]
    return hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]


def why_not(policy: Policy, now: Conditions) -> tuple[str, str]:
    """The first reason (a code and a sentence) to wait, or two empty texts. What a device cannot tell is no reason.

    >>> why_not(Policy(window=(1320, 330)), Conditions(minute=12 * 60))
    ('window', 'it is 12:00, updates are done from 22:00 to 05:30')
    >>> why_not(Policy(window=(1320, 330)), Conditions(minute=30))
    ('', '')
    >>> why_not(Policy(min_battery_percent=40), Conditions(minute=0, has_mains=False, battery_percent=12))[0]
    'power'
    """
    if policy.window is not None:
        first, last = policy.window
        inside = first <= now.minute < last if first < last else now.minute >= first or now.minute < last
        if not inside:
            return "window", f"it is {_clock(now.minute)}, updates are done from {_clock(first)} to {_clock(last)}"
    charge, limit = now.battery_percent, policy.min_battery_percent
    if charge is not None and not now.has_mains and charge < limit:
        return "power", f"the battery has {charge:.0f} %, updates need {limit:.0f} % or mains"
    heat, most = now.temperature_c, policy.max_temperature_c
    if heat is not None and 0 < most < heat:
        return "heat", f"the device has {heat:.0f} °C, updates wait until it has {most:.0f} °C"
    if now.is_metered and not policy.may_be_metered:
        return METERED, "the network is metered, bundles are loaded over others"
    return "", ""


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
