"""The whole loop as real processes: server with its broker, one agent, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.agents import AgentProcess, make_bundle, until
from tests.server_process import ServerProcess

POLICY = (
    "soak_s = 1.0\nmin_windows = 2\nmin_calls = 40\nmax_drift = 1.0\noffer_timeout_s = 120.0\n"
    "probation_inferences = 20\nprobation_s = 0.2\nprobation_deadline_s = 60.0\n"
)


class World:
    """A server with its embedded broker, and one device that it made nothing of.

    Args:
        folder: for everything.
        update: lines for the table ``[update]`` of the device's configuration.
    """

    def __init__(self, folder: Path, update: str = "") -> None:
        self.folder = folder
        self.server = ServerProcess(folder / "data")
        self.server.start()
        trust = folder / "data" / "trust"
        server = SimpleNamespace(url=self.server.info["url"], root=trust / "root.json", goal_key=trust / "goal.pub")
        self.agent = AgentProcess(folder / "device", server, self.server.broker_port)  # type: ignore[arg-type]
        written = self.agent.config.read_text()
        self.agent.config.write_text(written.replace("[update]\n", f"[update]\n{update}"))
        self.agent.start()
        (folder / "policy.toml").write_text(POLICY)

    def edgeship(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "edgeship", *arguments, "--server", self.server.info["url"]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.edgeship(*arguments, "--json"))

    def release(self, version: str, **changes: Any) -> None:
        self.edgeship("releases", "add", str(make_bundle(self.folder, version, **changes)))

    def roll_out(self, version: str, *options: str) -> str:
        policy = ("--policy", str(self.folder / "policy.toml"), "--stages", "100%")
        return str(self.ask("rollouts", "create", "digits", version, *policy, *options)["id"])

    def ends(self, rollout: str, state: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            document = self.server.get(f"rollouts/{rollout}")
            assert document["state"] not in {"paused", "halted"}, document["reason"]
            return document if document["state"] == state else None

        found = until(ended, 120.0, f"{rollout} to be {state}")
        assert found is not None
        return found

    def close(self) -> None:
        self.agent.stop()
        self.server.stop()
