"""From single looks to incidents: open after k of n, close when less than half of that remains."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

from edgeship_agent.contract.errors import ConfigError

OPEN: Final = "open"
CLOSE: Final = "close"


class AlarmState(Struct, frozen=True, kw_only=True):
    """Memory of one alarm, such as the data drift of a device.

    Attributes:
        open: an incident is open.
        hot_windows: hot looks among ``recent``.
        recent: the newest looks, oldest first; True is hot.
    """

    open: bool = False
    hot_windows: int = 0
    recent: tuple[bool, ...] = ()


def next_alarm(state: AlarmState, hot: bool, k: int, n: int) -> tuple[AlarmState, str | None]:
    """The alarm after one more look.

    Args:
        state: before it.
        hot: whether this look lay above its limit.
        k: hot looks that open it ...
        n: ... among the newest ``n``. It closes when fewer than k/2 are left, so it does not flicker at the limit.

    Returns:
        The new state, and ``"open"`` or ``"close"`` where this look changed it.

    Raises:
        ConfigError: not 1 ≤ k ≤ n.

    >>> state = AlarmState()
    >>> for look in (True, False, True):
    ...     state, event = next_alarm(state, look, k=2, n=3)
    >>> event, state.recent
    ('open', (True, False, True))
    """
    if not 1 <= k <= n:
        raise ConfigError("not a rule for an alarm", key="k", expected=f"1 … n = {n}", got=k)
    recent = (*state.recent, hot)[-n:]
    hot_windows = sum(recent)
    new = structs.replace(state, recent=recent, hot_windows=hot_windows)
    if not state.open and hot_windows >= k:
        return structs.replace(new, open=True), OPEN
    if state.open and 2 * hot_windows < k:
        return structs.replace(new, open=False), CLOSE
    return new, None
