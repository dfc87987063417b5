"""A goal that leaves a shadow less: it may be ended before anybody has looked what runs, and is not started again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec import structs

from edgeship_agent.contract.goal import ArmGoal, ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.update import activation
from edgeship_agent.update.activation import Activation
from edgeship_agent.update.disk import Disk
from edgeship_agent.update.slots import Slot
from tests.agents import Depot, Release, model_goal
from tests.power_device import Device
from tests.unit.test_update_joint_goals import PROBATION, NearLauncher


class Watched:
    """Serves as the device's own workers do, and ends a shadow of one byte as soon as it hears of it."""

    def __init__(self, device: Device) -> None:
        self._workers, self.starts = device.workers, 0

    def serve(self, slots: Mapping[ArmKey, Slot | None]) -> Activation:
        before = dict(self._workers.loaded)
        answer = self._workers.serve(slots)
        for key, slot in slots.items():
            self.starts += slot is not None and key not in before
            if slot is not None and slot.traffic.memory_bytes == 1:
                del self._workers.loaded[key]
        return answer

    def __getattr__(self, name: str) -> object:
        return getattr(self._workers, name)


@pytest.fixture
def depot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Depot:
    monkeypatch.setattr(activation, "_POLL_S", 0.0)
    return Depot(tmp_path / "depot")


def _goal(main: Release, shadow: Release, deployment: str, memory_bytes: int) -> ModelGoal:
    base, beside = (ArmGoal(version=r.version, digest=r.digest, size_bytes=r.size_bytes) for r in (main, shadow))
    beside = structs.replace(beside, share=0.0, mirror=1.0, cpu_ratio=1.0, memory_bytes=memory_bytes)
    return model_goal(shadow, deployment, arms=(base, beside), probation=PROBATION)


def test_a_shadow_that_less_memory_ends_at_once_is_not_started_again(depot: Depot, tmp_path: Path) -> None:
    first, second = depot.publish("1"), depot.publish("2", seed_scale=-1.0)
    device = Device(tmp_path / "device", Disk(), NearLauncher(), depot, depot.root.parent, set())
    watched = Watched(device)
    device.activator._workers = watched
    device.take(depot.goal(1, model_goal(first, "first", probation=PROBATION)))
    device.take(depot.goal(2, _goal(first, second, "shadow", 0)))
    starts = watched.starts
    device.take(depot.goal(3, _goal(first, second, "smaller", 1)))
    ends = {attempt.deployment: attempt for attempt in device.journal.attempts()}
    assert (ends["smaller"].state, ends["smaller"].reason) == (UpdateState.COMMITTED, "already_running")
    assert ("digits", "shadow") not in device.workers.loaded
    assert watched.starts == starts
    device.off()
    depot.close()
