"""A fleet in a database, as it looks after a day: six devices, three versions, a halted rollout, drift, incidents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import structs
from sqlalchemy import Connection, insert

from edgeship.drift import compare, merge_windows, worst
from edgeship.rollout import DeviceEvidence, DeviceState, DriftFigure, RolloutState, StageState, ThresholdPolicy, judge
from edgeship.server.context import ServerContext
from edgeship.server.store import goals, releases, rollouts, schema
from edgeship.server.store.goals import Assignment
from edgeship.server.store.releases import Release, ReleaseFiles
from edgeship.server.store.rollouts import Member, Rollout
from edgeship_agent.contract.manifest import (
    BundleFile,
    BundleManifest,
    Feature,
    InputContract,
    Lineage,
    OutputContract,
    Source,
    TensorSpec,
    Variant,
)
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, Sketch, exponential_of
from tests.bundles import variant

NOW_S = 1_795_441_260.0  # a Monday, 14:21 UTC
EVIL = "<script>alert(1)<script>"
TARGETS = {"x86-64-server": "onnxruntime", "intel-nuc": "openvino", "x86-64-litert": "litert"}
DEVICES = {
    "gate-north": "x86-64-server",
    "gate-south": "x86-64-server",
    "line-1": "intel-nuc",
    "line-2": "intel-nuc",
    "press-1": "x86-64-litert",
    EVIL: "x86-64-litert",
}
CORRUPTED = {"gate-south": 1.6, "line-2": -1.4}  # shift of the brightness in standard deviations
CANARIES = ("gate-north", "line-1", "press-1")
CLASSES = 10
_SIGNALS = ("brightness", "contrast", "sharpness")


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def fill(context: ServerContext) -> str:
    """Write the whole fleet; returns the hash of its profile."""
    rng = np.random.default_rng(7)
    profile = make_profile(rng)
    data = msgspec.json.encode(profile)
    profile_hash = hashlib.sha256(data).hexdigest()
    (context.blobs / "sha256" / profile_hash).write_bytes(data)
    with context.write() as connection:
        add_releases(connection)
        for number, device_id in enumerate(DEVICES):
            add_device(connection, device_id, number)
            add_windows(connection, device_id, profile_hash, rng)
            add_drift(connection, device_id, profile)
        add_rollouts(connection)
        add_incidents(connection)
        add_events(connection)
    return profile_hash


def make_profile(rng: np.random.Generator) -> Profile:
    """Bins of equal mass over 900 reference samples."""
    signals = []
    for name in _SIGNALS:
        edges = tuple(float(edge) for edge in np.quantile(rng.normal(0.5, 0.1, 4000), np.linspace(0, 1, 33)[1:-1]))
        reference = sketch(rng.normal(0.5, 0.1, 900), edges)
        signals.append(SignalProfile(name=f"input/image/{name}", family=Family.INPUT, edges=edges, reference=reference))
    counts = np.bincount(rng.integers(0, CLASSES, 900), minlength=CLASSES)
    classes = CategorySketch(counts={index: int(count) for index, count in enumerate(counts)})
    signals.append(SignalProfile(name="output/class", family=Family.OUTPUT, reference=classes))
    edges = tuple(index / 16 for index in range(1, 16))
    confidence = sketch(rng.beta(20, 2, 900), edges)
    signals.append(SignalProfile(name="output/confidence", family=Family.OUTPUT, edges=edges, reference=confidence))
    return Profile(sample_count=900, signals=tuple(signals))


def sketch(values: np.ndarray, edges: Sequence[float]) -> BinnedSketch:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return BinnedSketch(counts=tuple(int(count) for count in counts))


def window(device_id: str, version: str, seq: int, profile_hash: str, rng: np.random.Generator) -> Window:
    """100 calls; corrupted devices see other brightness from the sixth window of v2 on, v3 answers one class."""
    shift = CORRUPTED.get(device_id, 0.0) if version == "v2" and seq > 16 else 0.0
    bad = version == "v3"
    start_s = NOW_S - 3600.0 + seq * 60.0
    signals: dict[str, Sketch] = {}
    edges = {entry.name: entry.edges for entry in make_profile(np.random.default_rng(7)).signals}
    for name in _SIGNALS:
        moved = shift * 0.1 if name == "brightness" else 0.0
        signals[f"input/image/{name}"] = sketch(rng.normal(0.5 + moved, 0.1, 100), edges[f"input/image/{name}"])
    classes = rng.choice(CLASSES, 100, p=[0.55, 0.3] + [0.15 / 8] * 8) if bad else rng.integers(0, CLASSES, 100)
    counts = np.bincount(classes, minlength=CLASSES)
    signals["output/class"] = CategorySketch(counts={i: int(c) for i, c in enumerate(counts) if c})
    confidence = rng.beta(6, 4, 100) if bad else rng.beta(20, 2, 100)
    signals["output/confidence"] = sketch(confidence, edges["output/confidence"])
    runtime = TARGETS[DEVICES[device_id]]
    return Window(
        boot_id="boot-1",
        seq=seq,
        model="digits",
        version=version,
        arm="main",
        digest=digest_of(version),
        variant=f"{DEVICES[device_id]}/{runtime}/int8",
        profile_hash=profile_hash,
        started_at_s=start_s,
        ended_at_s=start_s + 60.0,
        clock_quality="synchronized",
        inferences=100,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=0,
        latency_us=exponential_of(rng.lognormal(6.2 if version == "v1" else 6.0, 0.35, 100)),
        signals=signals,
    )


def windows_of(device_id: str, profile_hash: str, rng: np.random.Generator) -> list[Window]:
    found = []
    for seq in range(1, 41):
        version = "v1" if seq <= 10 else "v2"
        if device_id in CANARIES and 34 <= seq <= 38:
            version = "v3"
        found.append(window(device_id, version, seq, profile_hash, rng))
    return found


def add_windows(connection: Connection, device_id: str, profile_hash: str, rng: np.random.Generator) -> None:
    found = windows_of(device_id, profile_hash, rng)
    for each in found:
        names = [c.name for c in schema.windows.c if c.name not in {"device_id", "received_at_s", "payload"}]
        values = {name: getattr(each, name) for name in names}
        payload = msgspec.msgpack.encode(each)
        connection.execute(
            insert(schema.windows).values(
                device_id=device_id, received_at_s=each.ended_at_s + 0.5, payload=payload, **values
            )
        )
    books = {"acknowledged_seq": 40, "stored": 40, "duplicates": 2, "evicted": 0, "updated_at_s": NOW_S}
    connection.execute(insert(schema.streams).values(device_id=device_id, boot_id="boot-1", **books))


def add_device(connection: Connection, device_id: str, number: int) -> None:
    target = DEVICES[device_id]
    runtime = TARGETS[target]
    arm = {
        "model": "digits",
        "arm": "main",
        "version": "v2",
        "digest": digest_of("v2"),
        "state": "committed",
        "variant": f"{target}/{runtime}/int8",
        "retained_version": "v1",
    }
    connection.execute(
        insert(schema.devices).values(
            id=device_id,
            target=target,
            arch="x86_64",
            isa=["avx2"],
            runtimes={runtime: "1.32.0"},
            tags={"site": "hall-a" if number % 2 else "hall-b"},
            operator_tags={"note": EVIL} if number == 5 else {},
            agent_version="0.1.0",
            session=3,
            online=number != 4,
            first_seen_s=NOW_S - 90_000.0,
            last_seen_s=NOW_S - (2.0 if number != 4 else 1800.0),
            goal_generation=5,
            running=[arm],
            outbox={"created": 42, "acknowledged": 40, "evicted": 0, "waiting": 2},
            accepts={},
        )
    )
    goals.put_assignment(
        connection,
        Assignment(
            device_id=device_id,
            model="digits",
            version="v2",
            digest=digest_of("v2"),
            size_bytes=900,
            deployment="r3" if device_id in CANARIES else "r2",
            is_rollback=device_id in CANARIES,
        ),
    )
    states = ("accepted", "downloading", "verifying", "staged", "activating", "probation", "committed")
    if device_id in CANARIES:
        for seq, state in enumerate(states, start=1):
            connection.execute(
                insert(schema.reports).values(
                    device_id=device_id,
                    deployment="r3",
                    attempt=1,
                    seq=seq,
                    model="digits",
                    version="v3",
                    digest=digest_of("v3"),
                    state=state,
                    detail="",
                    figures={},
                    reason="",
                    loaded_digest=digest_of("v3" if seq > 4 else "v2"),
                    without_field_traffic=False,
                    received_at_s=NOW_S - 1500.0 + 20 * seq,
                )
            )


def add_releases(connection: Connection) -> None:
    for number, version in enumerate(("v1", "v2", "v3")):
        variants = tuple(_variant(target, version) for target in TARGETS)
        manifest = BundleManifest(
            name="digits",
            version=version,
            inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 1, 8, 8)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, CLASSES)),),
            input_contracts=(InputContract(tensor="image", dtype="uint8", shape=(8, 8)),),
            input_schema={
                "image": (
                    Feature(
                        name="pixel",
                        unit="ink, 0-16",
                        meaning="how much ink lies in the pixel",
                        low=0.0,
                        high=16.0,
                        documented=True,
                    ),
                )
            },
            output=OutputContract(labels=tuple(str(digit) for digit in range(CLASSES)), activation="softmax"),
            variants=variants,
            lineage=Lineage(
                source=Source(
                    file=f"digits-{version}.onnx", format="onnx", digest=digest_of(f"source {version}"), size_bytes=9
                ),
                calibration_digest=digest_of("calibration"),
                evaluation_digest=digest_of("evaluation"),
                tools={"edgeship": "0.1.0", "onnxruntime": "1.32.0"},
            ),
        )
        blocked = version == "v3"
        release = Release(
            model="digits",
            version=version,
            digest=digest_of(version),
            size_bytes=900,
            author_key="ab" * 32,
            added_at_s=NOW_S - 7200.0 + 600.0 * number,
            state=releases.BLOCKED if blocked else releases.AVAILABLE,
            blocked_reason="its predictions drifted from its own baseline on 3 devices" if blocked else "",
            blocked_by="r3" if blocked else "",
        )
        build = {"schema_version": 1, "verdict": "pass", "variants": [_built(entry) for entry in variants]}
        files = ReleaseFiles(
            manifest=msgspec.json.encode(manifest), build=msgspec.json.encode(build), report=b"<!doctype html><p>built"
        )
        releases.add(connection, release, files)


def _variant(target: str, version: str) -> Variant:
    known = variant(target, TARGETS[target], "int8")
    better = 0.006 if version == "v2" else 0.0
    metric = structs.replace(known.metric, value=0.966 + better, low=0.952 + better, high=0.976 + better)
    file = BundleFile(path="model.bin", role="model", digest=digest_of(f"{target} {version}"), size_bytes=41_200)
    return structs.replace(known, metric=metric, relative_rms=0.021, files=(file,))


def _built(known: Variant) -> dict[str, object]:
    size = {"x86-64-server": 52_300, "intel-nuc": 61_800, "x86-64-litert": 41_200}[known.target]
    return {
        "target": known.target,
        "runtime": known.runtime,
        "precision": "int8",
        "chosen": True,
        "file": "/m",
        "size_bytes": size,
        "latency_p50_ms": 0.21,
        "latency_p99_ms": 0.44,
        "on_target": False,
        "metric": msgspec.to_builtins(known.metric),
    }


def add_drift(connection: Connection, device_id: str, profile: Profile) -> None:
    rows = connection.execute(
        schema.windows.select()
        .where(schema.windows.c.device_id == device_id, schema.windows.c.version == "v2")
        .order_by(schema.windows.c.seq.desc())
        .limit(5)
    )
    found = [msgspec.msgpack.decode(row.payload, type=Window) for row in rows]
    figures = compare(profile, merge_windows(found))
    leading = worst(figures)
    assert leading is not None
    connection.execute(
        insert(schema.drift_states).values(
            device_id=device_id,
            model="digits",
            version="v2",
            updated_at_s=NOW_S - 2.0,
            sample_count=500,
            worst_signal=leading.signal,
            worst_value=leading.value,
            state=leading.state.value,
            figures=msgspec.to_builtins(figures),
            alarm={},
        )
    )


def evidence() -> list[DeviceEvidence]:
    """What the judge saw of v3 on its canaries."""
    figures = {"gate-north": (0.43, 0.37, 0.49), "line-1": (0.41, 0.35, 0.47), "press-1": (0.39, 0.33, 0.45)}
    return [
        DeviceEvidence(
            device_id=device_id,
            stratum=f"{DEVICES[device_id]}/{TARGETS[DEVICES[device_id]]}",
            state=DeviceState.SUCCEEDED,
            windows=5,
            calls=500,
            failures=1,
            latency_p99_ms=0.61,
            latency_p99_before_ms=0.6,
            calls_before=2300,
            failures_before=0,
            prediction_drift=DriftFigure(
                signal="output/class", statistic="js_distance", value=value, low=low, high=high, n=500
            ),
            loaded_digest_matches=True,
        )
        for device_id, (value, low, high) in figures.items()
    ]


def add_rollouts(connection: Connection) -> None:
    policy = ThresholdPolicy(latency_p99_ms=10.0, soak_s=60.0)
    for number, version in ((1, "v1"), (2, "v2")):
        rollouts.add(
            connection, completed_rollout(number, version, policy), members(f"r{number}", "v1" if number > 1 else "")
        )
    verdict = judge(policy, evidence(), elapsed_s=300.0)
    halted = structs.replace(
        completed_rollout(3, "v3", policy),
        state=RolloutState.ROLLED_BACK,
        stage_index=0,
        stage_states=(StageState.FAILED, StageState.PENDING),
        reason=verdict.sentence,
        verdict=verdict,
    )
    rollouts.add(connection, halted, members("r3", "v2"))
    request = {"request": {}, "seed": 11}
    rollouts.record_decision(
        connection,
        "rollout/r3",
        "created",
        "digits v3 goes to 6 devices in 2 stages, 3 of them first",
        request,
        NOW_S - 1560,
    )
    details = {"evidence": msgspec.to_builtins(evidence())}
    rollouts.record_decision(connection, "rollout/r3", "halt", verdict.sentence, details, NOW_S - 1380)
    rollouts.record_decision(
        connection, "rollout/r3", "rolled_back", "every device that had it runs v2 again", {}, NOW_S - 1290
    )


def completed_rollout(number: int, version: str, policy: ThresholdPolicy) -> Rollout:
    start_s = NOW_S - 7000.0 + number * 1800.0
    return Rollout(
        id=f"r{number}",
        number=number,
        model="digits",
        version=version,
        digest=digest_of(version),
        policy=policy,
        stages=(0.5, 1.0),
        filter={},
        seed=11,
        state=RolloutState.COMPLETED,
        stage_index=1,
        stage_states=(StageState.PASSED, StageState.PASSED),
        stage_started_s=start_s + 300.0,
        reason="Promoted: every gate holds on 6 devices, 3200 calls, 0 failed",
        verdict=judge(policy, [structs.replace(each, prediction_drift=None) for each in evidence()], elapsed_s=300.0),
        revision=4,
        created_at_s=start_s,
        updated_at_s=start_s + 400.0,
        ended_at_s=start_s + 400.0,
    )


def members(rollout_id: str, before: str) -> list[Member]:
    found = []
    for device_id, target in DEVICES.items():
        canary = device_id in CANARIES
        halted = rollout_id == "r3"
        state = DeviceState.SUCCEEDED
        if halted:
            state = DeviceState.ROLLED_BACK if canary else DeviceState.QUEUED
        touched = canary or not halted
        found.append(
            Member(
                rollout_id=rollout_id,
                device_id=device_id,
                stage_index=0 if canary else 1,
                stratum=f"{target}/{TARGETS[target]}",
                state=state,
                substate="committed" if touched else "",
                reason="",
                previous_version=before,
                previous_digest=digest_of(before) if before else "",
                offered_at_s=NOW_S - 1560.0 if touched else None,
                activated_at_s=NOW_S - 1500.0 if touched else None,
                updated_at_s=NOW_S - 1290.0,
            )
        )
    return found


def add_incidents(connection: Connection) -> None:
    for device_id in CORRUPTED:
        connection.execute(
            insert(schema.incidents).values(
                kind="data_drift",
                device_id=device_id,
                model="digits",
                version="v2",
                state="open",
                severity="alert",
                sentence="input/image/brightness is 0.52 (99 % 0.46…0.58) from its baseline, limit 0.1, n = 500",
                opened_at_s=NOW_S - 1200.0,
                closed_at_s=None,
                evidence={"signal": "input/image/brightness", "value": 0.52, "limit": 0.1, "note": EVIL},
            )
        )
    connection.execute(
        insert(schema.incidents).values(
            kind="performance",
            device_id="line-1",
            model="digits",
            version="v1",
            state="closed",
            severity="warn",
            sentence="2 of 100 calls failed",
            evidence={},
            opened_at_s=NOW_S - 6000.0,
            closed_at_s=NOW_S - 5400.0,
        )
    )


def add_events(connection: Connection) -> None:
    lines = [
        (7000, "release_added", "release/digits/v1", "digits v1 was added"),
        (1560, "rollout_created", "rollout/r3", "digits v3 goes to 6 devices in 2 stages, 3 of them first"),
        (1500, "update_committed", "device/gate-north", "committed digits v3"),
        (1380, "rollout_halted", "rollout/r3", "r3 was halted: prediction drift over the limit"),
        (1290, "rollout_rolled_back", "rollout/r3", "every device that had it runs v2 again"),
        (1200, "incident_opened", "device/gate-south", "data drift: input/image/brightness"),
        (900, "device_offline", "device/press-1", "not heard for 90 s"),
        (60, "device_tagged", f"device/{EVIL}", f"tagged note={EVIL}"),
    ]
    for before_s, kind, subject, sentence in lines:
        connection.execute(
            insert(schema.events).values(at_s=NOW_S - before_s, kind=kind, subject=subject, sentence=sentence, data={})
        )
