"""Slots are read whole or not at all; control messages and requests survive their wire."""

from __future__ import annotations

import msgspec
import pytest

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.manifest import Feature, InputContract
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.oci import canonical_json, digest_of
from edgeship_agent.contract.sketch import CategorySketch, ExponentialSketch
from edgeship_agent.serving import control
from edgeship_agent.serving.session import documented_range, warm_up_samples
from edgeship_agent.serving.slot import read_slot
from tests.conformance.slots import classifier_onnx, make_slot


@pytest.fixture
def directory(tmp_path):
    return make_slot(tmp_path / "slot", classifier_onnx(tmp_path / "model.onnx"))


def edit(file, **changes):
    document = msgspec.json.decode(file.read_bytes())
    file.write_bytes(canonical_json(document | changes))


def test_a_slot_is_read(directory):
    slot = read_slot(directory)
    assert slot.model_path == directory / "files" / "model.onnx"
    assert slot.profile_hash == digest_of((directory / "files" / "profile.json").read_bytes()).removeprefix("sha256:")
    assert len(slot.golden_inputs.samples) == len(slot.golden_outputs.samples) == 8
    assert slot.profile.signal("output/class") is not None
    assert len(warm_up_samples(slot)) == 5


def test_unknown_fields_are_ignored(directory):
    edit(directory / "slot.json", later="field")
    assert read_slot(directory).slot.version == "1"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("slot.json", {"schema_version": 2}, "unknown slot version"),
        ("slot.json", {"version": "2"}, "disagree"),
        ("slot.json", {"variant": "a/b/c"}, "does not have the slot's variant"),
        ("slot.json", {"model": 7}, "unreadable"),
        ("edgeship.json", {"variants": "none"}, "unreadable"),
    ],
)
def test_documents_that_do_not_fit(directory, file, changes, message):
    edit(directory / file, **changes)
    with pytest.raises(ContractError, match=message):
        read_slot(directory)


def test_a_missing_document(directory):
    (directory / "slot.json").unlink()
    with pytest.raises(ContractError, match=r"slot\.json: cannot be read"):
        read_slot(directory)


@pytest.mark.parametrize("path", ["model.onnx", "profile.json", "golden/inputs.msgpack"])
def test_one_flipped_byte(directory, path):
    file = directory / "files" / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match="wrong digest"):
        read_slot(directory)
    file.unlink()
    with pytest.raises(VerificationError, match="cannot be read"):
        read_slot(directory)


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd", "", "a/../../b", "a\\b", "."])
def test_paths_that_leave_the_bundle(directory, path):
    document = msgspec.json.decode((directory / "edgeship.json").read_bytes())
    document["variants"][0]["files"][0]["path"] = path
    (directory / "edgeship.json").write_bytes(canonical_json(document))
    with pytest.raises(ContractError, match="leaves the bundle"):
        read_slot(directory)


WINDOW = Window(
    boot_id="b",
    seq=0,
    model="m",
    version="1",
    arm="a",
    digest="d",
    variant="v",
    profile_hash="h",
    started_at_s=1.0,
    ended_at_s=2.0,
    clock_quality="unknown",
    inferences=20,
    failures=0,
    deadline_misses=0,
    shed=0,
    crashes=0,
    latency_us=ExponentialSketch(counts={3: 20}),
    signals={"output/class": CategorySketch(counts={1: 20})},
    gauges={"memory_bytes": 1.0},
    hard_stops=("nan_output",),
)
MESSAGES = [
    control.Ready(digest="d", model="m", version="1", variant="v", memory_bytes=5, arm="a"),
    control.WindowClosed(window=WINDOW),
    control.Counters(inferences=1, failures=2, deadline_misses=3, shed=4, latency_p99_ms=0.5),
    control.Failed(reason="engine", detail="no"),
    control.Replayed(passed=True, relative_rms=0.0, inferences=8),
    control.Drained(inferences=3),
    control.Drain(),
    control.Replay(inferences=10),
    control.Stop(),
]


@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
def test_control_messages_survive_any_cut(step):
    data = b"".join(control.encode_control(message) for message in MESSAGES)
    reader = control.ControlReader()
    received = [message for start in range(0, len(data), step) for message in reader.feed(data[start : start + step])]
    assert received == MESSAGES


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00abc", b"\x02\x00\x00\x00\x91\x01"])
def test_what_is_no_control_message_is_refused(data):
    with pytest.raises(ContractError, match="control message"):
        control.ControlReader().feed(data)


def test_settings_refuse_unknown_keys():
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.json.decode(b'{"unknown": 1}', type=control.WorkerSettings)


def ranged(*features: Feature, shape: tuple[int, ...]):
    return documented_range(InputContract(tensor="x", dtype="float32", shape=shape), features)


def test_only_documented_ranges_are_rules():
    assert ranged(Feature(name="a", low=0, high=1), shape=(1,)) is None
    low, high = ranged(Feature(name="a", low=0, high=1, documented=True), shape=(8, 8))
    assert (low.shape, float(low), float(high)) == ((), 0.0, 1.0)


def test_ranges_per_value_and_per_channel():
    features = [Feature(name=str(i), low=i, documented=True) for i in range(3)]
    assert ranged(*features, shape=(3,))[0].tolist() == [0, 1, 2]
    assert ranged(*features, shape=(-1, 3))[0].shape == (3,)
    assert ranged(*features, shape=(4,)) is None
