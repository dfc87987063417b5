"""One example of everything that crosses a boundary, with every field away from its default.

``python -m tests.contract.examples`` writes the golden files anew. Do that only for a field that was added at the end:
the old files must still be read, or devices in the field and this server no longer understand each other.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeship_agent.contract.frames import (
    DelayRequest,
    InferReply,
    InferRequest,
    LabelRequest,
    NotedReply,
    OutcomeRequest,
    SharedInferRequest,
    SharedTensor,
    StatusReply,
    StatusRequest,
    Tensor,
    TensorFile,
)
from edgeship_agent.contract.goal import ArmGoal, GoalState, ModelGoal, Probation, SignedGoal
from edgeship_agent.contract.manifest import (
    Binding,
    BundleFile,
    BundleManifest,
    Cast,
    ColourOrder,
    Crop,
    Feature,
    Golden,
    InputContract,
    Lineage,
    MetricClaim,
    Normalize,
    Offset,
    OutputContract,
    Pad,
    Reshape,
    Resize,
    Scale,
    Source,
    TensorSpec,
    Transpose,
    Variant,
)
from edgeship_agent.contract.messages import (
    Ack,
    Birth,
    Death,
    Heartbeat,
    LabelTally,
    OutboxCounters,
    OutcomeTally,
    RunningArm,
    ShadowTally,
    UpdateReport,
    UpdateState,
    Window,
    WindowBatch,
)
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.profiling import JobState, ProfileOrder, ProfileReport, SignedOrder, encode_order
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, ExponentialSketch
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import encode, encode_goal

GOLDEN = Path(__file__).parent / "golden"
DIGEST = "sha256:" + "0123456789abcdef" * 4
VARIANT = "raspberry-pi-5/litert/int8"

ARM = RunningArm(
    model="digits",
    arm="main",
    version="v2",
    digest=DIGEST,
    variant=VARIANT,
    state="committed",
    retained_version="v1",
)
COUNTERS = OutboxCounters(created=10, acknowledged=6, evicted=1, waiting=3)
REPORT = UpdateReport(
    protocol_version=1,
    device_id="press-07",
    deployment="r1",
    attempt=2,
    seq=5,
    model="digits",
    arm="main",
    version="v2",
    digest=DIGEST,
    state=UpdateState.ROLLED_BACK,
    reason="golden_mismatch",
    detail="relative RMS 0.31 exceeds 0.05",
    loaded_digest=DIGEST,
    at_s=1790000000.25,
    figures={"relative_rms": 0.31},
    without_field_traffic=True,
    session=4,
)
WINDOW = Window(
    boot_id="b-1",
    seq=7,
    model="digits",
    version="v2",
    arm="main",
    digest=DIGEST,
    variant=VARIANT,
    profile_hash="ab" * 32,
    started_at_s=1790000000.0,
    ended_at_s=1790000001.5,
    clock_quality="synchronised",
    inferences=100,
    failures=2,
    deadline_misses=1,
    shed=3,
    crashes=1,
    latency_us=ExponentialSketch(counts={70: 60, 71: 40}, zero_count=1, scale=3),
    signals={
        "input/image/brightness": BinnedSketch(
            counts=(0, 40, 60), missing_count=2, sum_fixed=-812, sum_square_fixed=90210
        ),
        "output/class": CategorySketch(counts={0: 12, 9: 88}),
    },
    schema_faults={"range": 4},
    gauges={"memory_bytes": 50331648.0, "cpu_ratio": 0.25},
    hard_stops=("nan_output",),
    labels=(
        LabelTally(
            version="v1",
            arm="main",
            digest=DIGEST,
            labelled=7,
            correct=5,
            confusion=((3, 3, 5), (3, 5, 2)),
            confidence_sum_millionths=6100000,
            predicted_from_s=1789990000.0,
            predicted_until_s=1789990500.5,
        ),
    ),
    outcomes=(
        OutcomeTally(
            version="v2", arm="main", digest=DIGEST, name="rework_minutes", count=3, total=12.5, square_total=62.25
        ),
    ),
    label_unknown=2,
    label_lost=3,
    shadow=(
        ShadowTally(
            version="v3",
            digest=DIGEST,
            compared=40,
            disagreed=3,
            failed=1,
            dropped=5,
            error_square_sum=0.25,
            champion_square_sum=36.0,
            busy_us=81000,
        ),
    ),
    stream_delay_us=ExponentialSketch(counts={98: 5, 110: 1}),
)
GOAL = GoalState(
    protocol_version=1,
    device_id="press-07",
    generation=12,
    issued_at_s=1790000000.0,
    expires_at_s=1792592000.0,
    models=(
        ModelGoal(
            model="digits",
            arms=(
                ArmGoal(version="v2", digest=DIGEST, size_bytes=812, share=0.75),
                ArmGoal(version="v1", digest=DIGEST, size_bytes=811, share=0.25),
                ArmGoal(
                    version="v3",
                    digest=DIGEST,
                    size_bytes=813,
                    share=0.0,
                    mirror=0.1,
                    cpu_ratio=0.05,
                    memory_bytes=100000000,
                ),
            ),
            deployment="r1",
            attempt=2,
            is_rollback=True,
            force=True,
            probation=Probation(
                inferences=60, duration_s=1.5, deadline_s=30.0, max_failed_ratio=0.02, latency_p99_ms=10.0
            ),
        ),
    ),
)
ORDER = ProfileOrder(
    protocol_version=1,
    device_id="press-07",
    job_id="0123456789abcdef",
    issued_at_s=1790000000.5,
    expires_at_s=1790001200.5,
    plan_digest=DIGEST,
    plan_size_bytes=4096,
    cancel=True,
)
MESSAGES = {
    Kind.BIRTH: Birth(
        protocol_version=1,
        device_id="press-07",
        session=4,
        sent_at_s=1790000000.5,
        clock_quality="synchronised",
        agent_version="0.1.0",
        target="raspberry-pi-5",
        arch="aarch64",
        isa=("dotprod", "i8mm"),
        runtimes={"litert": "2.3.0"},
        tags={"site": "Linköping"},
        running=(ARM,),
        last_reports=(REPORT,),
        outbox=COUNTERS,
        goal_generation=12,
        accepts={"digits": "cd" * 32},
    ),
    Kind.DEATH: Death(protocol_version=1, device_id="press-07", session=4),
    Kind.HEARTBEAT: Heartbeat(
        protocol_version=1,
        device_id="press-07",
        session=4,
        uptime_s=3600.5,
        running=(ARM,),
        outbox=COUNTERS,
        goal_generation=12,
    ),
    Kind.WINDOWS: WindowBatch(
        protocol_version=1, device_id="press-07", boot_id="b-1", floor_seq=6, windows=(WINDOW,), outbox=COUNTERS
    ),
    Kind.REPORT: REPORT,
    Kind.GOAL: SignedGoal(protocol_version=1, payload=encode_goal(GOAL), key_id="ef" * 32, signature=bytes(range(64))),
    Kind.ACK: Ack(protocol_version=1, boot_id="b-1", seq=7),
    Kind.JOB: SignedOrder(
        protocol_version=1, payload=encode_order(ORDER), key_id="ef" * 32, signature=bytes(range(64))
    ),
    Kind.PROFILE: ProfileReport(
        protocol_version=1,
        device_id="press-07",
        job_id="0123456789abcdef",
        seq=9,
        state=JobState.DONE,
        detail="measured",
        label="latency",
        done=1000,
        total=1000,
        result=b"{}",
    ),
}

TENSOR = Tensor(name="image", dtype="uint8", shape=(2, 2), data=memoryview(bytes((0, 16, 8, 255))))
FRAMES = {
    "infer": InferRequest(
        request_id=3, model="digits", tensors=(TENSOR,), deadline_us=20000, split_key="user-1", arm="b"
    ),
    "infer_shared": SharedInferRequest(
        request_id=5,
        model="faces",
        tensors=(
            SharedTensor(name="image", dtype="uint8", shape=(1080, 1920, 3), offset=0),
            SharedTensor(name="gain", dtype="float32", shape=(), offset=6220800),
        ),
        deadline_us=20000,
    ),
    "label": LabelRequest(request_id=6, prediction_id="b-1-1f-1-9", label=5, arm="main"),
    "label_name": LabelRequest(request_id=7, prediction_id="b-1-1f-1-9", label="seven"),
    "outcome": OutcomeRequest(request_id=8, name="rework_minutes", value=12.5, prediction_id="b-1-1f-1-9", arm="b"),
    "delays": DelayRequest(request_id=9, model="digits", release_digest=DIGEST, counts={98: 5, 110: 1}),
    "noted": NotedReply(request_id=8, is_known=True, error="nothing is wrong"),
    "status": StatusRequest(request_id=4, model="digits"),
    "answer": InferReply(
        request_id=3,
        prediction_id="b-1-1f-9",
        model="digits",
        version="v2",
        release_digest=DIGEST,
        latency_us=412,
        tensors=(TENSOR,),
        error="nothing is wrong",
        arm="b",
    ),
    "status_reply": StatusReply(
        request_id=4,
        model="digits",
        version="v2",
        arm="main",
        release_digest=DIGEST,
        variant=VARIANT,
        inferences=1000,
        errors=2,
        siblings=(("faces", DIGEST),),
    ),
}
TENSOR_FILE = TensorFile(samples=((TENSOR,), (TENSOR,)))

PROFILE = Profile(
    sample_count=300,
    signals=(
        SignalProfile(
            name="input/image/brightness",
            family=Family.INPUT,
            reference=BinnedSketch(counts=(3, 147, 150), missing_count=1, sum_fixed=-5, sum_square_fixed=77),
            edges=(3.25, 5.0),
            center=4.5,
            unit=0.0001220703125,
            tail_edges=(0,),
        ),
        SignalProfile(
            name="output/class", family=Family.OUTPUT, reference=CategorySketch(counts={0: 30, 9: 25, 10: 245})
        ),
    ),
)


def _binding(name: str, artifact_name: str, index: int) -> Binding:
    return Binding(
        name=name,
        artifact_name=artifact_name,
        artifact_index=index,
        dtype="int8",
        shape=(1, 8, 8, 1),
        transpose=(0, 2, 3, 1),
        scale=0.0625,
        zero_point=-128,
    )


MANIFEST = BundleManifest(
    name="digits",
    version="v2",
    inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),),
    input_contracts=(
        InputContract(
            tensor="image",
            dtype="uint8",
            shape=(8, 8),
            steps=(
                Cast(dtype="float32"),
                Scale(factor=0.0625),
                Offset(value=-0.5),
                Normalize(mean=(0.5,), std=(0.25,), axis=0),
                Reshape(shape=(1, 8, 8)),
                Transpose(axes=(0, 2, 1)),
                Pad(widths=((0, 0), (1, 1), (1, 1)), value=0.5),
                Resize(height=8, width=8, method="nearest"),
                Crop(height=8, width=8),
                ColourOrder(),
            ),
        ),
    ),
    input_schema={
        "image": (
            Feature(name="pixel", unit="grey level", meaning="ink", low=0.0, high=16.0, documented=True),
            Feature(name="pixel 2"),
        )
    },
    output=OutputContract(
        labels=("zero", "one"),
        activation="softmax",
        units="probability",
        thresholds={"accept": 0.5},
        postprocessing=("top1",),
    ),
    variants=(
        Variant(
            target="raspberry-pi-5",
            runtime="litert",
            precision="int8",
            arch="aarch64",
            runtime_version="2.3.0",
            runtime_range=">=2,<3",
            min_memory_bytes=33554432,
            inputs=(_binding("image", "serving_default_image:0", 0),),
            outputs=(_binding("logits", "StatefulPartitionedCall:0", 0),),
            files=(BundleFile(path="model.tflite", role="model", digest=DIGEST, size_bytes=21344),),
            golden=Golden(relative_rms=0.01, isa_class="x86_64+vnni", other_isa_relative_rms=0.05, margin=0.0625),
            metric=MetricClaim(
                name="top1",
                value=0.98,
                low=0.96875,
                high=0.984375,
                n=900,
                drop=0.0,
                drop_low=-0.00390625,
                drop_high=0.0078125,
            ),
            relative_rms=0.0078125,
        ),
    ),
    lineage=Lineage(
        source=Source(file="digits-v2.onnx", format="onnx", digest=DIGEST, size_bytes=40210),
        calibration_digest=DIGEST,
        evaluation_digest=DIGEST,
        tools={"onnxruntime": "1.32.0"},
        notes={"scheme": "static QDQ"},
    ),
)

#: Documents on disk: file name → value.
DOCUMENTS = {"manifest.json": MANIFEST, "profile.json": PROFILE}


def write_all() -> None:
    """Write every golden file."""
    GOLDEN.mkdir(exist_ok=True)
    for kind, message in MESSAGES.items():
        (GOLDEN / f"{kind.value}.msgpack").write_bytes(encode(kind, message))
    (GOLDEN / "goal-payload.msgpack").write_bytes(encode_goal(GOAL))
    (GOLDEN / "order-payload.msgpack").write_bytes(encode_order(ORDER))
    for name, frame in FRAMES.items():
        (GOLDEN / f"frame-{name}.msgpack").write_bytes(msgspec.msgpack.encode(frame))
    (GOLDEN / "tensors.msgpack").write_bytes(msgspec.msgpack.encode(TENSOR_FILE))
    for name, document in DOCUMENTS.items():
        (GOLDEN / name).write_bytes(canonical_json(document))


if __name__ == "__main__":
    write_all()
