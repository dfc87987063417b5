"""The committed files are what this version writes, and what it reads: both sides of every boundary."""

import subprocess
import sys
import zlib

import msgspec
import pytest

from edgeship_agent.contract.frames import InferReply, InferRequest, Reply, Request, TensorFile
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.oci import canonical_json, digest_of
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.profiling import decode_order, encode_order
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import decode, decode_goal, encode, encode_goal, read_json
from tests.contract.examples import DOCUMENTS, FRAMES, GOAL, GOLDEN, MANIFEST, MESSAGES, ORDER, PROFILE, TENSOR_FILE

FRAME_TYPES = {
    **dict.fromkeys(("infer", "infer_shared", "status", "label", "label_name", "outcome", "delays"), Request),
    **dict.fromkeys(("answer", "status_reply", "noted"), Reply),
}


def as_travelled(kind, data):
    """Compressed bytes depend on the version of zlib; what is inside does not."""
    return zlib.decompress(data) if kind is Kind.WINDOWS else data


def test_every_kind_of_message_has_a_golden_file():
    assert set(MESSAGES) == set(Kind)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_messages_are_written_as_before(kind):
    golden = (GOLDEN / f"{kind.value}.msgpack").read_bytes()
    assert as_travelled(kind, encode(kind, MESSAGES[kind])) == as_travelled(kind, golden)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_messages_are_read_as_before(kind):
    assert decode(kind, (GOLDEN / f"{kind.value}.msgpack").read_bytes()) == MESSAGES[kind]


def test_the_goal_inside_its_signature():
    payload = (GOLDEN / "goal-payload.msgpack").read_bytes()
    assert encode_goal(GOAL) == payload
    assert decode_goal(payload) == GOAL
    assert decode(Kind.GOAL, (GOLDEN / "goal.msgpack").read_bytes()).payload == payload


def test_the_order_inside_its_signature():
    payload = (GOLDEN / "order-payload.msgpack").read_bytes()
    assert encode_order(ORDER) == payload
    assert decode_order(payload) == ORDER
    assert decode(Kind.JOB, (GOLDEN / "job.msgpack").read_bytes()).payload == payload


def test_messages_of_earlier_versions_are_still_read():
    """What was added at the end has its default."""
    before = decode(Kind.WINDOWS, (GOLDEN / "windows-before-labels.msgpack").read_bytes())
    now = MESSAGES[Kind.WINDOWS].windows[0]
    plain = msgspec.structs.replace(now, labels=(), outcomes=(), label_unknown=0, shadow=(), label_lost=0,
                                    stream_delay_us=None)  # fmt: skip
    assert before.windows[0] == plain != now
    before = decode(Kind.WINDOWS, (GOLDEN / "windows-before-lost.msgpack").read_bytes())
    assert before.windows[0] == msgspec.structs.replace(now, label_lost=0, stream_delay_us=None) != now
    before = decode(Kind.WINDOWS, (GOLDEN / "windows-before-streams.msgpack").read_bytes())
    assert before.windows[0] == msgspec.structs.replace(now, stream_delay_us=None) != now
    goal = decode_goal((GOLDEN / "goal-payload-before-shadows.msgpack").read_bytes())
    assert goal.models[0].arms == GOAL.models[0].arms[:2]
    goal = decode_goal((GOLDEN / "goal-payload-before-releases.msgpack").read_bytes())
    assert goal == GOAL
    assert goal.models[0].release == ""
    frame = msgspec.msgpack.decode((GOLDEN / "frame-infer-before-arms.msgpack").read_bytes(), type=Request)
    assert (frame.split_key, frame.arm) == ("user-1", "")
    answer = msgspec.msgpack.decode((GOLDEN / "frame-answer-before-arms.msgpack").read_bytes(), type=Reply)
    assert (answer.error, answer.arm) == ("nothing is wrong", "")
    status = msgspec.msgpack.decode((GOLDEN / "frame-status-before-releases.msgpack").read_bytes(), type=Request)
    assert status == msgspec.structs.replace(FRAMES["status"], model="")
    status = msgspec.msgpack.decode((GOLDEN / "frame-status_reply-before-releases.msgpack").read_bytes(), type=Reply)
    assert status == msgspec.structs.replace(FRAMES["status_reply"], siblings=())
    heartbeat = decode(Kind.HEARTBEAT, (GOLDEN / "heartbeat-before-fallbacks.msgpack").read_bytes())
    assert heartbeat == MESSAGES[Kind.HEARTBEAT]
    assert heartbeat.running[0].fallback == ""


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name):
    golden = (GOLDEN / f"frame-{name}.msgpack").read_bytes()
    assert msgspec.msgpack.encode(FRAMES[name]) == golden
    frame = msgspec.msgpack.decode(golden, type=FRAME_TYPES[name])
    assert type(frame) is type(FRAMES[name])
    assert msgspec.msgpack.encode(frame) == golden
    if isinstance(frame, (InferRequest, InferReply)):
        assert bytes(frame.tensors[0].data) == bytes((0, 16, 8, 255))


def test_tensors_on_disk():
    golden = (GOLDEN / "tensors.msgpack").read_bytes()
    assert msgspec.msgpack.encode(TENSOR_FILE) == golden
    tensors = msgspec.msgpack.decode(golden, type=TensorFile)
    assert [bytes(sample[0].data) for sample in tensors.samples] == [bytes((0, 16, 8, 255))] * 2
    assert isinstance(msgspec.msgpack.decode(golden), dict), "files on disk are maps"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name):
    golden = (GOLDEN / name).read_bytes()
    assert canonical_json(DOCUMENTS[name]) == golden
    assert read_json(golden, type(DOCUMENTS[name]), file=name) == DOCUMENTS[name]
    assert msgspec.json.decode(golden)["schema_version"] == 1


def test_the_identity_of_documents_does_not_change():
    """A bundle's digest is its identity: these change only together with the files above."""
    assert digest_of(canonical_json(MANIFEST)) == digest_of((GOLDEN / "manifest.json").read_bytes())
    assert digest_of(canonical_json(PROFILE)) == digest_of((GOLDEN / "profile.json").read_bytes())


def test_manifests_from_before_folded_steps_are_read_as_before():
    old = (GOLDEN / "manifest-before-folding.json").read_bytes()
    assert b'"folded"' not in old
    assert read_json(old, BundleManifest, file="m") == MANIFEST


DEVICE_SIDE = """
import sys
from pathlib import Path
import msgspec
from edgeship_agent.contract.frames import Request
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import decode, decode_goal, encode, read_json

golden = Path(sys.argv[1])
goal = decode_goal(decode(Kind.GOAL, (golden / "goal.msgpack").read_bytes()).payload)
assert (goal.generation, goal.models[0].arms[0].version) == (12, "v2"), goal
assert decode(Kind.ACK, (golden / "ack.msgpack").read_bytes()).seq == 7
assert msgspec.msgpack.decode((golden / "frame-infer.msgpack").read_bytes(), type=Request).request_id == 3
assert read_json((golden / "manifest.json").read_bytes(), BundleManifest, file="m").variants[0].runtime == "litert"
assert read_json((golden / "profile.json").read_bytes(), Profile, file="p").signal("output/class") is not None
report = decode(Kind.REPORT, (golden / "report.msgpack").read_bytes())
assert encode(Kind.REPORT, report) == (golden / "report.msgpack").read_bytes()
assert not [name for name in sys.modules if name == "edgeship" or name.startswith("edgeship.")]
"""

SERVER_SIDE = """
import sys
from pathlib import Path
import edgeship.drift, edgeship.rollout
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import decode, read_json

golden = Path(sys.argv[1])
birth = decode(Kind.BIRTH, (golden / "birth.msgpack").read_bytes())
assert birth.tags == {"site": "Linköping"} and birth.running[0].version == "v2"
batch = decode(Kind.WINDOWS, (golden / "windows.msgpack").read_bytes())
profile = read_json((golden / "profile.json").read_bytes(), Profile, file="p")
distances = edgeship.drift.compare_windows(profile, batch.windows)
assert [distance.n for distance in distances] == [102, 100], distances
report = decode(Kind.REPORT, (golden / "report.msgpack").read_bytes())
event = edgeship.rollout.device_event(report.state, digest_matches=True)
assert event.value == "rolled_back"
assert not [name for name in sys.modules if name in ("numpy", "scipy")], "the pure parts stay light"
"""


@pytest.mark.parametrize("script", [DEVICE_SIDE, SERVER_SIDE], ids=["device", "server"])
def test_each_side_reads_the_files_in_a_process_of_its_own(script):
    command = [sys.executable, "-W", "error", "-c", script, str(GOLDEN)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_unknown_fields_of_documents_are_ignored():
    document = msgspec.json.decode((GOLDEN / "manifest.json").read_bytes())
    document["from_the_future"] = {"a": 1}
    document["variants"][0]["from_the_future"] = [1, 2]
    assert read_json(msgspec.json.encode(document), BundleManifest, file="m") == MANIFEST
    document = msgspec.json.decode((GOLDEN / "profile.json").read_bytes())
    document["signals"][0]["from_the_future"] = "x"
    document["signals"][0]["reference"].append("a field that was added at the end")
    assert read_json(msgspec.json.encode(document), Profile, file="p") == PROFILE
