"""The demo's story, act by act. Every act does something real and leaves claims behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship.demo import claims
from edgeship.demo.building import MODEL, VERSIONS, Built, build, prebuilt, write_data
from edgeship.demo.claims import Books, Claim
from edgeship.demo.digits import fogged, lens_blurred, load_digits
from edgeship.demo.fleet import Device, Fleet
from edgeship.demo.streams import Corruption, Stream, call_latencies_ms
from edgeship.demo.timeline import Timeline
from edgeship_agent.contract.errors import EdgeshipError

#: Requests per second of one device's camera.
RATE_HZ: Final = 60.0
STAGES: Final = "20%,100%"
#: Limits of the demo's rollouts: the same gates as in a real fleet, judged on seconds of traffic instead of days. One
#: death of a worker is forgiven, so that whoever kills one while it runs sees it come back.
POLICY: Final = """\
name = "threshold"
min_windows = 4
min_calls = 300
soak_s = 4.0
offer_timeout_s = 90.0
max_failed_ratio = 0.02
max_crashes = 1
max_drift = 0.1

[probation]
inferences = 60
duration_s = 1.0
deadline_s = 30.0
"""
ROLLOUT_TIMEOUT_S: Final = 240.0
DRIFT_TIMEOUT_S: Final = 120.0
#: After the two incidents are open, so long nothing else may open.
QUIET_S: Final = 8.0
LATENCY_CALLS: Final = 2000
#: The books are read when nothing has moved in them for so many polls, or after so long.
STILL_POLLS: Final = 12
BOOKS_TIMEOUT_S: Final = 20.0
ENDED: Final = frozenset({"completed", "rolled_back", "rollback_incomplete", "aborted", "paused"})
CORRUPTIONS: Final[tuple[tuple[str, Corruption], ...]] = (("a lens out of focus", lens_blurred), ("fog", fogged))


class StoryOptions(Struct, frozen=True, kw_only=True):
    """What the command line decides.

    Attributes:
        bundles: folder with builds made before, ``v1`` to ``v3``; None builds them.
        timing: whether latency is measured and claimed.
    """

    bundles: Path | None = None
    timing: bool = True


class Story:
    """Plays the acts in order on a fleet; ``claims`` grows on the way.

    Args:
        fleet: not yet started.
        timeline: what is said on the way.
        options: see :class:`StoryOptions`.
    """

    def __init__(self, fleet: Fleet, timeline: Timeline, options: StoryOptions) -> None:
        self._fleet = fleet
        self._timeline = timeline
        self._options = options
        self._builds: dict[str, Built] = {}
        self._streams: dict[str, Stream] = {}
        self.claims: list[Claim] = []
        self._corrupted: list[str] = []

    def play(self) -> list[Claim]:
        """Play the whole story.

        Returns:
            Every claim, holding or not.

        Raises:
            EdgeshipError: an act could not be played to its end.
        """
        self._build_models()
        self._start_fleet()
        self._install_first_version()
        self._update_in_stages()
        if self._options.timing:
            self._measure_latency()
        self._corrupt_two_cameras()
        self._halt_bad_version()
        self._close_the_books()
        return self.claims

    def end_streams(self) -> None:
        """Stop every camera."""
        for stream in self._streams.values():
            stream.stop()

    def _build_models(self) -> None:
        folder = self._fleet.folder
        self._timeline.act("build: three versions of a digits model, each for three runtimes")
        write_data(folder / "data")
        for version in VERSIONS:
            if self._options.bundles is None:
                self._timeline.line(f"{version}  building (the first build on a machine also sets up a converter)")
                built = build(version, folder / "data", folder / "builds" / version, folder / "build.log")
            else:
                built = prebuilt(version, self._options.bundles)
            self._builds[version] = built
            for variant in built.chosen:
                metric = variant["metric"]
                self._timeline.line(
                    f"{version}  {variant['target']:<14} {variant['runtime']:<12} {variant['precision']:<5}"
                    f"{variant['size_bytes'] / 1000:6.1f} kB   top-1 {metric['value']:.1%} "
                    f"(95 % {metric['low']:.1%}–{metric['high']:.1%}, n={metric['n']})   "
                    f"relative RMS {variant['relative_rms']:.4f}"
                )
        for version in ("v1", "v2"):
            self.claims += claims.accuracy_claims(version, self._builds[version].chosen)

    def _start_fleet(self) -> None:
        fleet = self._fleet
        self._timeline.act(f"fleet: a server, a broker and {len(fleet.devices)} agents as processes of their own")
        fleet.start_server()
        self._timeline.line(f"server and dashboard: {fleet.url}")
        fleet.start_agents()
        self._timeline.line(f"online: {', '.join(device.id for device in fleet.devices)}")
        (fleet.folder / "policy.toml").write_text(POLICY, encoding="utf-8")

    def _install_first_version(self) -> None:
        self._timeline.act("v1: to every device")
        self._add_release("v1")
        rollout = self._create_rollout("v1", "100%")
        split = load_digits().evaluation
        for index, device in enumerate(self._fleet.devices):
            stream = Stream(device.id, device.socket, split, RATE_HZ, seed=index)
            self._streams[device.id] = stream
            stream.start()
        self._await_rollout(rollout)
        self.claims.append(claims.committed_claim("v1", self._await_version("v1")))
        runtimes = {device.id: self._running_runtime(device) for device in self._fleet.devices}
        self.claims.append(claims.runtime_claim(runtimes, len({device.runtime for device in self._fleet.devices})))

    def _update_in_stages(self) -> None:
        self._timeline.act(f"v2: a better model, in stages {STAGES}")
        self._add_release("v2")
        rollout = self._create_rollout("v2", STAGES)
        self._await_rollout(rollout)
        self.claims.append(claims.committed_claim("v2", self._await_version("v2")))

    def _measure_latency(self) -> None:
        self._timeline.act(f"latency: {LATENCY_CALLS} single calls through the socket of one agent per runtime")
        for stream in self._streams.values():
            stream.pause()
        images = load_digits().evaluation.images
        by_runtime: dict[str, Device] = {}
        for device in self._fleet.devices:
            by_runtime.setdefault(device.runtime, device)
        for runtime, device in sorted(by_runtime.items()):
            claim = claims.latency_claim(runtime, call_latencies_ms(device.socket, images, LATENCY_CALLS))
            self._timeline.line(claim.text)
            self.claims.append(claim)
        for stream in self._streams.values():
            stream.resume()

    def _corrupt_two_cameras(self) -> None:
        first, second = self._two_runtimes()
        self._timeline.act("drift: real corruptions on two devices of different runtimes")
        self._await_reference()
        for device, (name, corruption) in zip((first, second), CORRUPTIONS, strict=True):
            self._streams[device.id].corrupt(corruption)
            self._corrupted.append(device.id)
            self._timeline.line(f"{device.id}: {name}")
        self._fleet.wait(
            lambda: set(self._corrupted) <= set(self._drifting()), DRIFT_TIMEOUT_S, "drift incidents on both devices"
        )
        self._watch_quietly()
        for incident in self._drift_incidents():
            self._timeline.line(f"incident {incident['id']}: {incident['sentence']}", "!")

    def _halt_bad_version(self) -> None:
        self._timeline.act(f"v3: passed its build, is wrong in the field; in stages {STAGES}")
        self._add_release("v3")
        number = self._create_rollout("v3", STAGES)
        rollout = self._await_rollout(number)
        reached = [device["id"] for device in rollout["devices"] if device["activated_at_s"] is not None]
        canaries = sum(1 for device in rollout["devices"] if device["stage_index"] == 0)
        stage_cap = len({device.target for device in self._fleet.devices})
        self.claims += claims.halt_claims("v3", rollout, reached, min(canaries, stage_cap))
        self.claims.append(claims.drift_claim(self._corrupted, self._drifting()))

    def _close_the_books(self) -> None:
        self._timeline.act("after the rollback")
        running = self._await_version("v2")
        release = self._fleet.get(f"releases/{MODEL}/v3") or {}
        self.claims += claims.recovery_claims("v3", "v2", running, str(release.get("state", "unknown")))
        self.end_streams()
        self._timeline.line("cameras stopped; waiting until every window has arrived")
        self._fleet.wait(self._outboxes_empty, 60.0, "the agents' outboxes to be empty")
        self.claims += claims.book_claims(self._settled_books())

    def _add_release(self, version: str) -> None:
        self._fleet.command("releases", "add", str(self._builds[version].bundle))
        self._timeline.line(f"release {MODEL} {version} added: signature and digests verified")

    def _create_rollout(self, version: str, stages: str) -> str:
        policy = str(self._fleet.folder / "policy.toml")
        answer = self._fleet.command("rollouts", "create", MODEL, version, "--stages", stages, "--policy", policy)
        self._timeline.line(f"rollout {answer['id']} created, stages {stages}")
        return str(answer["id"])

    def _await_rollout(self, number: str) -> dict[str, Any]:
        """Wait until a rollout has ended (or paused), and tell its turns on the way."""
        told: list[tuple[str, int]] = []

        def ended() -> dict[str, Any] | None:
            rollout = self._fleet.get(f"rollouts/{number}")
            if rollout is None:
                return None
            turn = (rollout["state"], rollout["stage_index"])
            if told[-1:] != [turn]:
                told.append(turn)
                self._tell_turn(rollout)
            assert isinstance(rollout, dict)
            return rollout if rollout["state"] in ENDED else None

        rollout = self._fleet.wait(ended, ROLLOUT_TIMEOUT_S, f"rollout {number} to end")
        assert rollout is not None
        return rollout

    def _tell_turn(self, rollout: dict[str, Any]) -> None:
        state, stage = rollout["state"].replace("_", " "), rollout["stage_index"] + 1
        mark = "✖" if rollout["state"].startswith("roll") else "·"
        running = rollout["state"] == "running"
        said = f"stage {stage}: {self._devices_of(rollout)}" if running else rollout["reason"]
        self._timeline.line(f"{rollout['id']} {state}: {said}", mark)

    @staticmethod
    def _devices_of(rollout: dict[str, Any]) -> str:
        stage = rollout["stage_index"]
        return ", ".join(sorted(d["device_id"] for d in rollout["devices"] if d["stage_index"] == stage))

    def _await_version(self, version: str) -> dict[str, str]:
        """Wait a little for every device to say that it runs a version; returns what they ran when they were seen."""
        seen: dict[str, str] = {}

        def everywhere() -> bool:
            # kept: asked once more, a device whose worker ends right then would run none
            seen.clear()
            seen.update(self._fleet.running())
            return len(seen) == len(self._fleet.devices) and set(seen.values()) == {version}

        try:
            self._fleet.wait(everywhere, 60.0, f"every device to run {version}")
        except EdgeshipError as error:
            self._timeline.line(error.message, "✖")
        return seen

    def _running_runtime(self, device: Device) -> str:
        """What serves on a device; a worker that ended has a little time to come back."""

        def variant() -> str:
            arms = self._fleet.status(device).get("running", [])
            return str(arms[0]["variant"]) if arms else ""

        try:
            return self._fleet.wait(variant, 60.0, f"{device.id} to serve").split("/")[1]
        except EdgeshipError as error:
            self._timeline.line(error.message, "✖")
            return "none"

    def _two_runtimes(self) -> tuple[Device, Device]:
        """The last device of the first runtime and the last one of another."""
        devices = self._fleet.devices
        first = devices[-1]
        second = next(device for device in reversed(devices) if device.runtime != first.runtime)
        return first, second

    def _await_reference(self) -> None:
        """Wait until every device's drift can be judged, so that a healthy fleet is a measured fact."""

        def judged() -> bool:
            document = self._fleet.get("drift")
            rows = [] if document is None else document["devices"]
            known = {row["device_id"] for row in rows if row["version"] == "v2" and row["state"] != "no_data"}
            return len(known) == len(self._fleet.devices)

        self._fleet.wait(judged, DRIFT_TIMEOUT_S, "drift figures of every device")
        self._timeline.line(f"before: {len(self._drift_incidents())} incidents on {len(self._fleet.devices)} devices")

    def _watch_quietly(self) -> None:
        until_s = time.monotonic() + QUIET_S
        self._fleet.wait(lambda: time.monotonic() > until_s, QUIET_S + 5.0, "the quiet after the incidents")

    def _drift_incidents(self) -> list[dict[str, Any]]:
        document = self._fleet.get("incidents") or {"incidents": []}
        return [incident for incident in document["incidents"] if incident["kind"].endswith("_drift")]

    def _drifting(self) -> Sequence[str]:
        return sorted({incident["device_id"] for incident in self._drift_incidents()})

    def _outboxes_empty(self) -> bool:
        states = [self._fleet.status(device).get("outbox", {}) for device in self._fleet.devices]
        return all(state.get("waiting") == 0 and state.get("created", 0) > 0 for state in states)

    def _settled_books(self) -> list[Books]:
        """The books once nothing has moved in them for some seconds: the last window closes after the last image."""
        seen: list[list[Books]] = []
        until_s = time.monotonic() + BOOKS_TIMEOUT_S

        def settled() -> bool:
            seen.append(self._books())
            still = seen[-STILL_POLLS:]
            return (len(still) == STILL_POLLS and all(books == still[0] for books in still)) or (
                time.monotonic() > until_s
            )

        self._fleet.wait(settled, BOOKS_TIMEOUT_S + 5.0, "the books to settle")
        return seen[-1]

    def _books(self) -> list[Books]:
        books = []
        for device in self._fleet.devices:
            own = self._fleet.status(device)["outbox"]
            document = self._fleet.get(f"devices/{device.id}") or {}
            stored = int(document.get("windows_stored", -1))
            books.append(Books(device_id=device.id, created=own["created"], evicted=own["evicted"], stored=stored))
        return books
