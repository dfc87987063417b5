"""A device that is about to update, copied as often as a test wants to let it die: real processes, a real disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.supervisor.places import Places
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.slots import Slots, verify_slot
from tests.agents import SHORT, AgentProcess, Broker, Depot, Release, ServerSide, free_port, model_goal, until
from tests.conformance.slots import images

ROOT = Path(__file__).resolve().parents[1]
DEADLY = "tests.killing_disk"
AGENT = "edgeship_agent.cli"
#: Half a record, as a power cut in the middle of a write leaves it.
TORN = b'0badc0de {"v":1,"minor":0,"kind":"att'


class Bench:
    """Version 1 is committed; goals for a good and a wrong version 2 lie ready at two brokers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.depot = Depot(folder / "depot")
        self.first = self.depot.publish("1")
        self.good = self.depot.publish("2", seed_scale=1.5)
        self.wrong = self.depot.publish("3", seed_scale=2.0, golden_scale=3.0)
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.agent = AgentProcess(folder / "device", self.depot, self.broker.port)
        self.server.send_goal(self.depot.goal(1, model_goal(self.first, "first", probation=SHORT)))
        self.agent.start()
        assert self.server.ended("first").state is UpdateState.COMMITTED
        assert self.agent.stop() == 0
        self._kept = folder / "kept"
        shutil.copytree(self.agent.state, self._kept, symlinks=True)
        self._online = self.agent.config.read_text()
        patient = self._online.replace("attempts = 5", "attempts = 1000")  # being offline fails no download
        self._offline = patient.replace(self.depot.url, f"http://127.0.0.1:{free_port()}").replace(
            f"mqtt://127.0.0.1:{self.broker.port}", f"mqtt://127.0.0.1:{free_port()}"
        )

    def renew(self, release: Release, deployment: str) -> None:
        """The device as it was before; a goal for a release lies at the broker."""
        shutil.rmtree(self.agent.state)
        shutil.copytree(self._kept, self.agent.state, symlinks=True)
        Places(self.agent.state).live_status.unlink(missing_ok=True)
        self.server.messages.clear()
        self.server.send_goal(self.depot.goal(2, model_goal(release, deployment, probation=SHORT)))

    def switch_on(self, *, online: bool, module: str = AGENT, **environment: str) -> None:
        self.agent.config.write_text(self._online if online else self._offline)
        self.agent.module = module
        self.agent.start(PYTHONPATH=f"{ROOT}:{ROOT / 'device_agent'}", **environment)

    def serves_offline(self) -> str:
        """Switch the device on without any network; the version that answers, whose files are what was signed."""
        self.switch_on(online=False)
        with self.agent.client() as client:
            answer = client.infer(images(1)[0])
        # not the active slot: the update may go on between the answer and this look
        slot = Slots(self.agent.state / "slots").find("digits", "main", answer.release_digest)
        assert slot is not None
        verify_slot(slot)
        assert self.agent.process is not None
        assert self.agent.process.poll() is None
        self.agent.kill()
        return answer.version

    def finishes(self, release: Release, deployment: str) -> None:
        """Online again: the update ends where it must, in the same process."""
        is_good = release is self.good
        self.switch_on(online=True)
        end = self.server.ended(deployment)
        assert end.state is (UpdateState.COMMITTED if is_good else UpdateState.REJECTED), end
        with self.agent.client() as client:
            assert client.infer(images(1)[0]).version == ("2" if is_good else "1")
        assert self.agent.stop() == 0

    def duration_s(self) -> float:
        """How long the update takes when nothing happens, from the start of the process."""
        self.renew(self.good, "measured")
        start_s = time.monotonic()
        self.switch_on(online=True)
        assert self.server.ended("measured").state is UpdateState.COMMITTED
        took_s = time.monotonic() - start_s
        assert self.agent.stop() == 0
        return took_s

    def tear_journal(self) -> None:
        """The last thing that was written is half a record."""
        with (self.agent.state / "journal.log").open("ab") as journal:
            journal.write(TORN)
            journal.flush()
            os.fsync(journal.fileno())

    def state_of(self, deployment: str) -> str:
        """The state that the journal has of a deployment; ``none`` where it has not begun."""
        journal = Journal(self.agent.state / "journal.log")
        journal.close()
        found = [attempt.state.value for attempt in journal.attempts() if attempt.deployment == deployment]
        return found[-1] if found else "none"

    def ran_through(self, deployment: str, timeout_s: float = 60.0) -> bool:
        """Whether an agent that may die reached the end of its update alive."""
        process = self.agent.process
        assert process is not None

        def over() -> bool:
            ended = any(report.state.is_terminal for report in self.server.reports(deployment))
            return process.poll() is not None or ended

        until(over, timeout_s, f"the end of {deployment}")
        return process.poll() is None

    def close(self) -> None:
        if self.agent.process is not None and self.agent.process.poll() is None:
            self.agent.kill()
        self.server.close()
        self.broker.kill()
        self.depot.close()
