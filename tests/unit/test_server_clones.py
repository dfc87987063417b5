"""Which births prove that two machines share one identity."""

from __future__ import annotations

import msgspec
import pytest

from edgeship.server import clones, presence
from edgeship.server.clones import QUIET_S, REPEATS, WITHIN_S, CloneWatch
from edgeship.server.config import ServerConfig
from edgeship.server.context import ServerContext, open_context
from edgeship.server.store import incidents
from edgeship_agent.contract.messages import Birth
from tests.device_link import birth


def born(session: int, sent_at_s: float) -> Birth:
    return msgspec.structs.replace(birth("press-1"), session=session, sent_at_s=sent_at_s)


@pytest.mark.parametrize(
    ("sessions", "repeats"),
    [
        ((1, 2, 3, 4, 5), 0),
        ((50, 1, 2, 3), 1),  # a state directory that was wiped
        ((5, 6, 6, 7, 7, 8, 8), 3),  # two copies that count on from five
        ((5, 5, 5, 5), 3),
        ((0, 0, 0, 0), 0),  # no session was ever counted
    ],
)
def test_numbers_that_come_again(sessions: tuple[int, ...], repeats: int) -> None:
    watch = CloneWatch()
    counts = [watch.saw(born(session, float(at)), float(at)) for at, session in enumerate(sessions)]
    assert counts[-1] == repeats


def test_the_brokers_own_repeats_count_for_nothing() -> None:
    watch = CloneWatch()
    assert [watch.saw(born(5, 1.0), 1.0 + n) for n in range(9)][-1] == 0


def test_repeats_are_forgotten_in_time() -> None:
    watch = CloneWatch()
    for at in range(3):
        watch.saw(born(5, float(at)), float(at))
    assert watch.saw(born(9, 1e4), WITHIN_S + 3.0) == 0


def test_an_incident_opens_once_and_closes_when_it_is_quiet(tmp_path) -> None:
    clock = [1e9]
    with open_context(ServerConfig(data=tmp_path / "data"), clock=lambda: clock[0]) as context:
        for _ in range(REPEATS + 3):
            clock[0] += 1.0
            take(context, born(5, clock[0]))
        opened = rows(context)
        assert [row.kind for row in opened] == ["cloned_device"]
        assert opened[0].sentence.startswith(
            "press-1: cloned device: session numbers that were used before came 3 times"
        )
        clock[0] += QUIET_S - 10.0
        sweep(context)
        assert [row.state for row in rows(context)] == [incidents.OPEN]
        clock[0] += 20.0
        sweep(context)
        assert [row.state for row in rows(context)] == [incidents.CLOSED]


def test_a_new_server_waits_before_it_closes_what_it_did_not_see(tmp_path) -> None:
    clock = [1e9]
    with open_context(ServerConfig(data=tmp_path / "data"), clock=lambda: clock[0]) as context:
        for _ in range(REPEATS + 1):
            clock[0] += 1.0
            take(context, born(5, clock[0]))
    clock[0] += 10 * QUIET_S
    with open_context(ServerConfig(data=tmp_path / "data"), clock=lambda: clock[0]) as context:
        sweep(context)
        assert [row.state for row in rows(context)] == [incidents.OPEN]
        clock[0] += QUIET_S
        sweep(context)
        assert [row.state for row in rows(context)] == [incidents.CLOSED]


def take(context: ServerContext, message: Birth) -> None:
    with context.write() as connection:
        presence.on_birth(context, connection, message, retained=False)


def sweep(context: ServerContext) -> None:
    with context.write() as connection:
        clones.close_quiet(connection, context.clones, context.clock())


def rows(context: ServerContext) -> list:
    with context.read() as connection:
        return incidents.list_incidents(connection)
