"""Memory that a process lets go of."""

from __future__ import annotations

import sys

from edgeship_agent.runtime.memory import give_back


class Thing:
    """Something to look for names on."""


def test_a_name_that_was_looked_up_once_does_not_stay() -> None:
    name = "-".join(["looked", "up", "once"])
    before = sys.getrefcount(name)
    assert not hasattr(Thing(), name)
    assert sys.getrefcount(name) > before, "this Python keeps no names; nothing is tested"
    give_back()
    assert sys.getrefcount(name) == before
