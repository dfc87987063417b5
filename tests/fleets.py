"""A fleet without processes: the real server parts over a real database, devices that answer goals as agents do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from litestar.testing import TestClient
from sqlalchemy import Connection

from edgeship.bundle import Bundle, BundleDraft, VariantDraft
from edgeship.server import rollouts
from edgeship.server.app import create_app
from edgeship.server.config import ServerConfig
from edgeship.server.context import ServerContext, open_context
from edgeship.server.goals import on_birth as republish
from edgeship.server.presence import on_birth, on_heartbeat
from edgeship.server.store import windows as window_store
from edgeship_agent.contract.goal import GoalState, ModelGoal
from edgeship_agent.contract.messages import (
    Birth,
    Heartbeat,
    OutboxCounters,
    RunningArm,
    UpdateReport,
    UpdateState,
    Window,
    WindowBatch,
)
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import CategorySketch, exponential_of
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, decode_goal
from tests import bundles

MODEL = "digits"
TARGETS = (
    ("x86-64-server", "onnxruntime", "x86_64"),
    ("intel-nuc", "openvino", "x86_64"),
    ("x86-64-litert", "litert", "x86_64"),
)
PROFILE = Profile(
    sample_count=1000,
    signals=(
        SignalProfile(
            name="output/class", family=Family.OUTPUT, reference=CategorySketch(counts=dict.fromkeys(range(10), 100))
        ),
    ),
)
PROFILE_BYTES = msgspec.json.encode(PROFILE)
#: How often each class is answered out of 100 calls: as at the build, and by a model that is wrong in the field.
HEALTHY = dict.fromkeys(range(10), 10)
BROKEN = {0: 70, 1: 30}
STEPS = (
    *(UpdateState.ACCEPTED, UpdateState.PRECHECK, UpdateState.DOWNLOADING, UpdateState.VERIFYING),
    *(UpdateState.STAGED, UpdateState.ACTIVATING, UpdateState.PROBATION, UpdateState.COMMITTED),
)
POLICY = {"soak_s": 5.0, "offer_timeout_s": 60.0, "rollback_timeout_s": 60.0, "min_windows": 2, "min_calls": 100}


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now_s


def bundle_draft(version: str, model: str = MODEL) -> BundleDraft:
    """Three variants, each with the baseline above."""
    variants = []
    for target, runtime, arch in TARGETS:
        files = tuple(
            msgspec.structs.replace(file, data=PROFILE_BYTES) if file.role == "profile" else file
            for file in bundles.files("model.onnx", seed=f"{model} {version} {runtime}".encode())
        )
        variants.append(VariantDraft(variant=bundles.variant(target, runtime, "int8", arch=arch), files=files))
    return bundles.draft(*variants, name=model, version=version)


class Device:
    """A device that does what its goal says, and reports as an agent does."""

    def __init__(self, fleet: Fleet, device_id: str, target: str, runtime: str) -> None:
        self.fleet = fleet
        self.id = device_id
        self.target, self.runtime = target, runtime
        self.goal: GoalState | None = None
        self.loaded: dict[str, tuple[str, str]] = {}
        self.beside: dict[str, tuple[str, str, str]] = {}  # model → arm, version, digest of what shares the traffic
        self.generation = 0
        self.session = 0
        self.seqs: dict[str, int] = {}  # model → reports of the attempt at hand
        self.window_seq = 0
        self.answers: dict[str, dict[int, int]] = {}
        self.notes: dict[str, dict[str, Any]] = {}  # version → labels, outcomes, shadow of its windows
        self.online = True
        self.stop_at: UpdateState | None = None
        self.refuse: str = ""
        self.refuse_model: str = ""  # the one of several models that it refuses; "" for any
        self.reports: list[UpdateReport] = []

    def running(self) -> tuple[RunningArm, ...]:
        return tuple(
            RunningArm(model=model, arm="main", version=v, digest=d, variant=self.variant, state="committed")
            for model, (v, d) in self.loaded.items()
        ) + tuple(
            RunningArm(model=model, arm=arm, version=v, digest=d, variant=self.variant, state="committed")
            for model, (arm, v, d) in self.beside.items()
        )

    @property
    def variant(self) -> str:
        return f"{self.target}/{self.runtime}/int8"

    def connect(self) -> None:
        """Be born: full state, newest report of the newest attempt."""
        self.online = True
        self.session += 1
        birth = Birth(
            protocol_version=1,
            device_id=self.id,
            session=self.session,
            sent_at_s=self.fleet.clock(),
            clock_quality="synchronized",
            agent_version="0.1.0",
            target=self.target,
            arch="x86_64",
            isa=(),
            runtimes={self.runtime: "1.0"},
            tags={"site": "a" if self.id.endswith("0") else "b"},
            running=self.running(),
            last_reports=tuple(self.reports[-1:]),
            outbox=OutboxCounters(),
            goal_generation=self.generation,
        )
        with self.fleet.transaction() as connection:
            on_birth(self.fleet.context, connection, birth, retained=False)
            republish(self.fleet.context, connection, birth)

    def heartbeat(self) -> None:
        beat = Heartbeat(
            protocol_version=1,
            device_id=self.id,
            session=self.session,
            uptime_s=1.0,
            running=self.running(),
            outbox=OutboxCounters(),
            goal_generation=self.generation,
        )
        with self.fleet.transaction() as connection:
            on_heartbeat(self.fleet.context, connection, beat)
            rollouts.on_running(self.fleet.context, connection, self.id, beat.running)

    def follow(self) -> None:
        """Act on the newest goal, as far as :attr:`stop_at`."""
        goal = self.goal
        if not self.online or goal is None or goal.generation <= self.generation:
            return
        self.generation = goal.generation
        for model in set(self.loaded) - {each.model for each in goal.models}:
            del self.loaded[model]
        together: dict[str, list[ModelGoal]] = {}
        for model_goal in goal.models:
            if model_goal.release:
                together.setdefault(model_goal.release, []).append(model_goal)
            else:
                self._update(model_goal)
        for release in together.values():
            self._update_together(release)

    def _update_together(self, wanted: Sequence[ModelGoal]) -> None:
        """All models of a release, or none: they share each step, and who is refused ends the others."""
        changing = [each for each in wanted if self.loaded.get(each.model, ("", ""))[1] != each.arms[0].digest]
        for each in wanted:
            if each not in changing:
                self._update(each)
        refused = [each for each in changing if self.refuse_model in ("", each.model)]
        if self.refuse and refused and not wanted[0].is_rollback:
            for each in changing:
                self.seqs[each.model] = 0
                before = self.loaded.get(each.model, ("", ""))[1]
                if each is refused[0]:
                    self.report(each, UpdateState.REJECTED, loaded=before, reason=self.refuse, detail="the detail")
                else:
                    detail = f"{refused[0].model}: {self.refuse}"
                    self.report(each, UpdateState.FAILED_CLEAN, loaded=before, reason="release_member", detail=detail)
            return
        self.seqs |= dict.fromkeys((each.model for each in changing), 0)
        for state in STEPS:
            for each in changing:
                if state in (UpdateState.PROBATION, UpdateState.COMMITTED):
                    self.loaded[each.model] = (each.arms[0].version, each.arms[0].digest)
                self.report(each, state, loaded=self.loaded.get(each.model, ("", ""))[1])
            if state is self.stop_at and not wanted[0].is_rollback:
                return

    def _update(self, wanted: ModelGoal) -> None:
        if len(wanted.arms) > 1:
            self._take_beside(wanted)
            return
        self.beside.pop(wanted.model, None)
        arm = wanted.arms[0]
        self.seqs[wanted.model] = 0
        before = self.loaded.get(wanted.model, ("", ""))
        if before[1] == arm.digest:
            self.report(wanted, UpdateState.COMMITTED, loaded=arm.digest, reason="already_running")
            return
        if self.refuse and not wanted.is_rollback:
            self.report(wanted, UpdateState.REJECTED, loaded=before[1], reason=self.refuse, detail="the detail")
            return
        for state in STEPS:
            if state in (UpdateState.PROBATION, UpdateState.COMMITTED):
                self.loaded[wanted.model] = (arm.version, arm.digest)
            self.report(wanted, state, loaded=self.loaded.get(wanted.model, ("", ""))[1])
            if state is self.stop_at and not wanted.is_rollback:
                return

    def _take_beside(self, wanted: ModelGoal) -> None:
        """A second version, beside the one that runs: what an agent reports about it."""
        base, arm = wanted.arms
        assert self.loaded[wanted.model] == (base.version, base.digest)
        self.seqs[wanted.model] = 0
        name = "b" if arm.share else "shadow"
        for state in STEPS:
            if state is UpdateState.PROBATION:
                self.beside[wanted.model] = (name, arm.version, arm.digest)
            loaded = self.beside.get(wanted.model, ("", "", ""))[2]
            only = msgspec.structs.replace(wanted, arms=(arm,))
            self.report(only, state, loaded=loaded)

    def report(
        self, wanted: ModelGoal, state: UpdateState, *, loaded: str, reason: str = "", detail: str = ""
    ) -> UpdateReport:
        self.seqs[wanted.model] = self.seqs.get(wanted.model, 0) + 1
        arm = wanted.arms[0]
        report = UpdateReport(
            protocol_version=1,
            device_id=self.id,
            deployment=wanted.deployment,
            attempt=wanted.attempt,
            seq=self.seqs[wanted.model],
            model=wanted.model,
            arm="main",
            version=arm.version,
            digest=arm.digest,
            state=state,
            reason=reason,
            detail=detail,
            loaded_digest=loaded,
            without_field_traffic=wanted.is_rollback and state is UpdateState.COMMITTED,
        )
        self.reports.append(report)
        self.fleet.tell(report)
        return report

    def send_window(self, calls: int = 100, *, latency_us: float = 500.0, failures: int = 0, crashes: int = 0) -> None:
        """One window of traffic on whatever is loaded."""
        arms = [(model, "main", *bundle) for model, bundle in self.loaded.items()]
        arms += [(model, *bundle) for model, bundle in self.beside.items()]
        for model, name, version, digest in arms:
            shares = self.answers.get(version, HEALTHY)
            self.window_seq += 1
            window = Window(
                boot_id="boot",
                seq=self.window_seq,
                model=model,
                version=version,
                arm=name,
                digest=digest,
                variant=self.variant,
                profile_hash=self.fleet.profile_hash,
                started_at_s=self.fleet.clock() - 1.0,
                ended_at_s=self.fleet.clock(),
                clock_quality="synchronized",
                inferences=calls,
                failures=failures,
                deadline_misses=0,
                shed=0,
                crashes=crashes,
                latency_us=exponential_of([latency_us] * calls),
                signals={"output/class": CategorySketch(counts={c: n * calls // 100 for c, n in shares.items()})},
                **self.notes.get(version, {}),
            )
            batch = WindowBatch(
                protocol_version=1, device_id=self.id, boot_id="boot", floor_seq=window.seq, windows=(window,)
            )
            with self.fleet.transaction() as connection:
                window_store.store_batch(connection, batch, self.fleet.clock())


class Fleet:
    """A server's context with devices around it; time passes only in :meth:`step`."""

    def __init__(self, context: ServerContext, clock: Clock, folder: Path) -> None:
        self.context, self.clock, self.folder = context, clock, folder
        self.http = TestClient(create_app(context))
        self.devices: dict[str, Device] = {}
        self.profile_hash = ""
        self.goals: list[GoalState] = []
        self._connection: Connection | None = None
        context.set_publisher(self._deliver, lambda: True)

    def _deliver(self, topic: Topic, payload: bytes, retain: bool) -> None:
        assert topic.kind is Kind.GOAL
        assert retain
        goal = decode_goal(decode(Kind.GOAL, payload).payload)
        assert goal.device_id == topic.device_id
        self.goals.append(goal)
        device = self.devices.get(topic.device_id)
        if device is not None and (device.goal is None or goal.generation >= device.goal.generation):
            device.goal = goal

    def add_devices(self, per_target: int = 2) -> None:
        for target, runtime, _ in TARGETS:
            for index in range(per_target):
                device = Device(self, f"{runtime}-{index}", target, runtime)
                self.devices[device.id] = device
                device.connect()

    def tell(self, report: UpdateReport) -> None:
        with self.transaction() as connection:
            rollouts.on_report(self.context, connection, report.device_id, report)

    def add_release(self, version: str, model: str = MODEL) -> Bundle:
        """Build a bundle, upload it over HTTP, register it."""
        content = bundle_draft(version, model)
        bundle = Bundle.open(bundles.written(self.folder, name=f"{model}-{version}", content=content).directory)
        answer = self.upload(bundle)
        assert answer.status_code in (200, 201), answer.text
        profile = bundle.manifest.variants[0].file("profile")
        assert profile is not None
        self.profile_hash = profile.digest.removeprefix("sha256:")
        return bundle

    def upload(self, bundle: Bundle, **changes: str) -> Any:
        for descriptor in bundle.descriptors():
            put = self.http.put(f"/api/v1/blobs/{descriptor.digest}", content=bundle.blob(descriptor.digest))
            assert put.status_code == 201, put.text
        body = {
            "digest": bundle.digest,
            "author_key": bundle.author_key,
            "signature": bundle.entry.annotations["dev.edgeship.author-signature"],
            **changes,
        }
        return self.http.post("/api/v1/releases", json=body)

    def create(self, version: str, **options: Any) -> str:
        body = {"model": MODEL, "version": version, "policy": POLICY, "seed": 7, **options}
        answer = self.http.post("/api/v1/rollouts", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def show(self, rollout_id: str) -> dict[str, Any]:
        document = self.http.get(f"/api/v1/rollouts/{rollout_id}").json()
        assert isinstance(document, dict)
        return document

    def act(self, rollout_id: str, action: str, **body: Any) -> Any:
        return self.http.post(f"/api/v1/rollouts/{rollout_id}/{action}", json=body)

    def step(self, seconds: float = 1.0, *, calls: int = 100) -> None:
        """A second of the fleet: devices follow their goals and answer calls, then the evaluator looks."""
        self.clock.now_s += seconds
        with self.transaction():
            for device in self.devices.values():
                if device.online:
                    device.follow()
                    if calls:
                        device.send_window(calls)
                    device.heartbeat()
        self.tick()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The transaction of this step, or one of its own."""
        if self._connection is not None:
            yield self._connection
            return
        with self.context.write() as connection:
            self._connection = connection
            try:
                yield connection
            finally:
                self._connection = None

    def tick(self) -> None:
        with self.context.write() as connection:
            rollouts.tick(self.context, connection, self.clock())

    def run(self, rollout_id: str, until: Sequence[str], *, limit: int = 60, calls: int = 100) -> dict[str, Any]:
        """Step until the rollout is in one of some states."""
        for _ in range(limit):
            self.step(calls=calls)
            document = self.show(rollout_id)
            if document["state"] in until:
                return document
        raise AssertionError(f"{rollout_id} is {document['state']}: {document['reason']}")

    def install(self, version: str) -> str:
        """Bring a version to every device."""
        self.add_release(version)
        rollout_id = self.create(version, stages="100%")
        self.run(rollout_id, ["completed"])
        return rollout_id

    def versions(self) -> dict[str, str]:
        return {device.id: device.loaded.get(MODEL, ("", ""))[0] for device in self.devices.values()}


@contextmanager
def open_fleet(folder: Path, clock: Clock | None = None) -> Iterator[Fleet]:
    """A server's data folder with a fleet around it."""
    clock = clock or Clock()
    config = ServerConfig(data=folder / "data")
    with open_context(config, clock=clock, rng=random.Random(11)) as context:
        fleet = Fleet(context, clock, folder)
        with fleet.http:
            yield fleet
