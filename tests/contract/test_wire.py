"""Whatever bytes arrive: a message or a ContractError, never anything else. What is newer or older is understood."""

import zlib
from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.goal import GoalState
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.messages import Birth, UpdateReport, WindowBatch
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.topics import Kind, Topic, check_device_id, fleet_filter
from edgeship_agent.contract.wire import (
    MAX_INFLATED_BYTES,
    MAX_MESSAGE_BYTES,
    TYPES,
    decode,
    decode_goal,
    encode,
    encode_goal,
    read_json,
)
from tests.contract.examples import GOAL, GOLDEN, MANIFEST, MESSAGES, PROFILE, REPORT

KINDS = st.sampled_from(list(Kind))
FUZZ = settings(derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=30,
)


def packed(kind, value):
    data = msgspec.msgpack.encode(value)
    return zlib.compress(data) if kind is Kind.WINDOWS else data


def unpacked(kind):
    data = (GOLDEN / f"{kind.value}.msgpack").read_bytes()
    return msgspec.msgpack.decode(zlib.decompress(data) if kind is Kind.WINDOWS else data)


def refused_or_kept(data, read, write, message_type):
    """Whether the bytes are refused, or are a message of that type, which stays the same written and read again."""
    try:
        message = read(data)
    except ContractError:
        return True
    written = write(message)  # compared as bytes: no NaN equals itself
    return isinstance(message, message_type) and write(read(written)) == written


def message_refused_or_kept(kind, data):
    return refused_or_kept(data, partial(decode, kind), partial(encode, kind), TYPES[kind])


def damaged(whole, draw):
    """The bytes with some of them changed, cut out or put in."""
    spoilt = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(spoilt) - 1))
        spoilt[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not spoilt:
            break
    return bytes(spoilt)


@FUZZ
@given(KINDS, st.binary(max_size=300))
def test_arbitrary_bytes(kind, data):
    assert message_refused_or_kept(kind, data)


@FUZZ
@given(st.binary(max_size=300))
def test_arbitrary_bytes_that_are_compressed_well(data):
    assert message_refused_or_kept(Kind.WINDOWS, zlib.compress(data))


@FUZZ
@given(KINDS, JSON_LIKE)
def test_arbitrary_values(kind, value):
    assert message_refused_or_kept(kind, packed(kind, value))


@FUZZ
@given(KINDS, st.data())
def test_damaged_messages(kind, data):
    whole = (GOLDEN / f"{kind.value}.msgpack").read_bytes()
    if kind is Kind.WINDOWS and data.draw(st.booleans()):
        whole = zlib.decompress(whole)
    raw = damaged(whole, data.draw)
    assert message_refused_or_kept(kind, raw)
    assert message_refused_or_kept(kind, zlib.compress(raw))


@FUZZ
@given(KINDS, st.data())
def test_one_field_of_the_wrong_type(kind, data):
    fields = unpacked(kind)
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(JSON_LIKE)
    assert message_refused_or_kept(kind, packed(kind, fields))


@FUZZ
@given(st.binary(max_size=200), st.data())
def test_goals_and_documents(arbitrary, data):
    readers = {
        GoalState: (decode_goal, encode_goal, GOAL),
        BundleManifest: (partial(read_json, kind=BundleManifest, file="edgeship.json"), msgspec.json.encode, MANIFEST),
        Profile: (partial(read_json, kind=Profile, file="profile.json"), msgspec.json.encode, PROFILE),
    }
    for document_type, (read, write, whole) in readers.items():
        assert refused_or_kept(arbitrary, read, write, document_type)
        assert refused_or_kept(damaged(write(whole), data.draw), read, write, document_type)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_truncated_messages_are_refused(kind):
    whole = (GOLDEN / f"{kind.value}.msgpack").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(ContractError):
            decode(kind, whole[:length])


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_unknown_trailing_fields_are_ignored(kind):
    fields = unpacked(kind)
    assert decode(kind, packed(kind, [*fields, "from the future", {"a": [1, 2]}])) == MESSAGES[kind]


def test_unknown_trailing_fields_inside_a_message_are_ignored():
    birth = unpacked(Kind.BIRTH)
    position = Birth.__struct_fields__.index("running")
    birth[position] = [[*arm, "from the future"] for arm in birth[position]]
    assert decode(Kind.BIRTH, packed(Kind.BIRTH, birth)) == MESSAGES[Kind.BIRTH]
    batch = unpacked(Kind.WINDOWS)
    position = WindowBatch.__struct_fields__.index("windows")
    batch[position] = [[*window, 1.5, None] for window in batch[position]]
    assert decode(Kind.WINDOWS, packed(Kind.WINDOWS, batch)) == MESSAGES[Kind.WINDOWS]
    goal = msgspec.msgpack.decode(encode_goal(GOAL))
    position = GoalState.__struct_fields__.index("models")
    goal[position] = [[*model, "from the future"] for model in goal[position]]
    assert decode_goal(msgspec.msgpack.encode([*goal, 7])) == GOAL


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_a_message_of_an_older_peer_has_defaults_at_its_end(kind):
    """Every field with a default may be missing from the end; no other may."""
    message_type, fields = TYPES[kind], unpacked(kind)
    known = message_type.__struct_fields__
    required = len(known) - len(message_type.__struct_defaults__)
    older = decode(kind, packed(kind, fields[:required]))
    assert [getattr(older, name) for name in known[:required]] == [
        getattr(MESSAGES[kind], name) for name in known[:required]
    ]
    with pytest.raises(ContractError):
        decode(kind, packed(kind, fields[: required - 1]))


def test_states_of_the_future_are_refused_not_guessed():
    fields = unpacked(Kind.REPORT)
    fields[UpdateReport.__struct_fields__.index("state")] = "teleporting"
    with pytest.raises(ContractError, match="teleporting"):
        decode(Kind.REPORT, packed(Kind.REPORT, fields))


def test_a_message_under_the_wrong_topic_is_refused_by_the_sender():
    with pytest.raises(ContractError, match="UpdateReport"):
        encode(Kind.BIRTH, REPORT)


def test_protocol_zero_is_refused():
    with pytest.raises(ContractError, match="protocol"):
        decode(Kind.ACK, packed(Kind.ACK, [0, "b", 1]))


def test_bombs_and_giants_are_refused():
    with pytest.raises(ContractError, match="too long"):
        decode(Kind.WINDOWS, zlib.compress(bytes(MAX_INFLATED_BYTES + 1)))
    with pytest.raises(ContractError, match="too long"):
        decode(Kind.BIRTH, bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ContractError):
        decode(Kind.BIRTH, b"\x91" * 100_000)  # nested deeper than any stack


@settings(derandomize=True, max_examples=200)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), KINDS)
def test_topics_come_back(device_id, kind):
    topic = Topic(device_id=device_id, kind=kind)
    assert Topic.parse(topic.path()) == topic
    assert topic.path().split("/")[2] == device_id
    assert fleet_filter(kind).replace("+", device_id) == topic.path()


@FUZZ
@given(st.text(max_size=80))
def test_arbitrary_topics(path):
    try:
        topic = Topic.parse(path)
    except ContractError:
        return
    assert topic.path() == path


@pytest.mark.parametrize(
    "device_id", ["", "+", "#", "a/b", "a+", "$share", "a b", "ä", "-a", ".", "a" * 65, "a\0", "a\n", "../b"]
)
def test_names_that_would_reach_other_devices_are_refused(device_id):
    with pytest.raises(ContractError):
        check_device_id(device_id)
