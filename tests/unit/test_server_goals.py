"""Goal states: signed for one device, stored before they are published, generations that only grow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship.server import goals
from edgeship.server.config import ServerConfig
from edgeship.server.context import ServerContext, open_context
from edgeship.server.signing_keys import verify
from edgeship.server.store import devices
from edgeship.server.store import goals as store
from edgeship.server.store.goals import Assignment, StoredGoal
from edgeship_agent.contract.goal import GOAL_PAYLOAD_TYPE, GoalState, Probation
from edgeship_agent.contract.messages import Birth, OutboxCounters
from edgeship_agent.contract.oci import signed_bytes
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, decode_goal

DIGEST = "sha256:" + "a" * 64


class World:
    """A context whose clock stands still and whose messages are kept."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.now_s = 1_795_000_000.0
        self.sent: list[tuple[str, GoalState]] = []
        context.clock = lambda: self.now_s
        context.set_publisher(self._keep, lambda: True)

    def _keep(self, topic: Topic, payload: bytes, retain: bool) -> None:
        signed = decode(Kind.GOAL, payload)
        message = signed_bytes(GOAL_PAYLOAD_TYPE, signed.payload)
        assert retain
        assert verify(self.context.trust.goal_public.hex(), signed.signature, message)
        with self.context.read() as connection:  # what was sent is what the database holds
            stored = store.goal_of(connection, topic.device_id)
        assert stored is not None
        assert stored.signed == payload
        self.sent.append((topic.device_id, decode_goal(signed.payload)))

    def birth(self, generation: int = 0) -> Birth:
        birth = Birth(
            protocol_version=1, device_id="press-07", session=1, sent_at_s=0.0, clock_quality="", agent_version="",
            target="intel-nuc", arch="x86_64", isa=(), runtimes={}, tags={}, running=(), last_reports=(),
            outbox=OutboxCounters(), goal_generation=generation,
        )  # fmt: skip
        with self.context.write() as connection:
            devices.save_birth(connection, birth, self.now_s)
            goals.on_birth(self.context, connection, birth)
        return birth

    def assign(self, version: str = "1.0") -> int:
        with self.context.write() as connection:
            return goals.assign(self.context, connection, [assignment(version)])


def assignment(version: str) -> Assignment:
    return Assignment(
        device_id="press-07", model="digits", version=version, digest=DIGEST, size_bytes=7, deployment="r1",
        probation=Probation(inferences=3, duration_s=1.5),
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_context(ServerConfig(data=tmp_path), rng=random.Random(1)) as context:
        yield World(context)


def test_an_assignment_becomes_a_signed_goal_for_one_device(world: World) -> None:
    assert world.assign() == 1
    [(device_id, goal)] = world.sent
    assert (device_id, goal.device_id, goal.generation) == ("press-07", "press-07", 1)
    assert goal.expires_at_s - goal.issued_at_s == goals.VALIDITY_S
    [model] = goal.models
    assert (model.deployment, model.arms[0].digest, model.arms[0].size_bytes) == ("r1", DIGEST, 7)
    assert model.probation == Probation(inferences=3, duration_s=1.5)


def test_generations_grow_over_changes_and_restarts(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        with open_context(ServerConfig(data=tmp_path), rng=random.Random(1)) as context:
            assert World(context).assign(f"{expected}.0") == expected


def test_withdrawing_names_no_model(world: World) -> None:
    world.assign()
    with world.context.write() as connection:
        assert goals.withdraw(world.context, connection, "press-07", ["digits"]) == 2
    assert world.sent[-1][1].models == ()


def test_nothing_is_published_of_a_transaction_that_fails(world: World) -> None:
    def fail() -> None:
        with world.context.write() as connection:
            goals.assign(world.context, connection, [assignment("1.0")])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert world.sent == []
    assert world.assign() == 1


def test_a_birth_is_answered_with_the_goal_and_a_newer_one_after_a_lost_database(world: World) -> None:
    world.birth()
    assert world.sent == []
    world.assign()
    world.birth(generation=1)
    assert [goal.generation for _, goal in world.sent] == [1, 1]
    world.birth(generation=41)  # the database was restored from a backup: this device has seen more
    assert world.sent[-1][1].generation == 42


def test_a_lower_generation_is_never_stored(world: World) -> None:
    world.assign()
    with world.context.write() as connection, pytest.raises(ValueError, match="not above"):
        store.put_goal(connection, StoredGoal(device_id="press-07", generation=1, signed=b"", issued_at_s=0.0))


def test_what_is_not_confirmed_is_repeated_and_what_expires_is_renewed(world: World) -> None:
    world.birth()
    world.assign()
    goals.keep_fresh(world.context, world.now_s)
    assert len(world.sent) == 1
    world.now_s += goals.REPEAT_S
    goals.keep_fresh(world.context, world.now_s)
    assert [goal.generation for _, goal in world.sent] == [1, 1]
    world.birth(generation=1)
    world.now_s += goals.REPEAT_S
    goals.keep_fresh(world.context, world.now_s)
    assert len(world.sent) == 3
    world.now_s += goals.RENEW_AFTER_S
    goals.keep_fresh(world.context, world.now_s)
    assert world.sent[-1][1].generation == 2
    assert world.sent[-1][1].expires_at_s == world.now_s + goals.VALIDITY_S


def test_a_broker_that_forgot_everything_gets_every_goal_again(world: World) -> None:
    world.assign()
    with world.context.write() as connection:
        goals.republish_all(world.context, connection)
    assert [goal.generation for _, goal in world.sent] == [1, 1]
