"""The outbox on a real disk: order, acknowledgements, eviction, and counters that always add up."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.messages import OutboxCounters, Window
from edgeship_agent.contract.sketch import ExponentialSketch
from edgeship_agent.telemetry.outbox import Outbox
from edgeship_agent.telemetry.waiting import WaitingWindows

PAGE_BYTES = 4096


def window(seq: int, boot_id: str = "b1", *, padding: int = 0) -> Window:
    return Window(
        boot_id=boot_id,
        seq=seq,
        model="m" + "x" * padding,
        version="1",
        arm="a",
        digest="d",
        variant="v",
        profile_hash="h",
        started_at_s=0.0,
        ended_at_s=1.0,
        clock_quality="unknown",
        inferences=20,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=0,
        latency_us=ExponentialSketch(),
        signals={},
    )


SIZE = len(msgspec.msgpack.encode(window(1)))


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox(tmp_path / "outbox.sqlite", max_bytes=1 << 20)
    yield outbox
    outbox.close()


def counters(created=0, acknowledged=0, evicted=0, waiting=0) -> OutboxCounters:
    return OutboxCounters(created=created, acknowledged=acknowledged, evicted=evicted, waiting=waiting)


def seqs(windows: list[Window]) -> list[tuple[str, int]]:
    return [(w.boot_id, w.seq) for w in windows]


def test_windows_come_back_whole_and_in_order(outbox):
    for seq in (1, 2, 3):
        outbox.add(window(seq))
    assert outbox.pending(2) == [window(1), window(2)]
    assert outbox.counters() == counters(created=3, waiting=3)


def test_an_acknowledgement_is_cumulative_and_repeats_do_nothing(outbox):
    for seq in range(1, 6):
        outbox.add(window(seq))
    assert outbox.acknowledge("b1", 3) == 3
    assert outbox.acknowledge("b1", 3) == 0
    assert outbox.acknowledge("b1", 2) == 0
    assert seqs(outbox.pending(9)) == [("b1", 4), ("b1", 5)]
    assert outbox.counters() == counters(created=5, acknowledged=3, waiting=2)


def test_an_acknowledgement_of_another_start_touches_nothing(outbox):
    outbox.add(window(1))
    assert outbox.acknowledge("other", 99) == 0
    assert outbox.counters().waiting == 1


def test_older_starts_come_first_and_batches_are_of_one_start(outbox):
    outbox.add(window(7, "old"))
    outbox.add(window(1, "new"))
    outbox.add(window(8, "old"))
    assert outbox.waiting_boots() == ["old", "new"]
    assert seqs(outbox.pending(9, boot_id="old")) == [("old", 7), ("old", 8)]
    outbox.acknowledge("old", 8)
    assert outbox.waiting_boots() == ["new"]


def test_a_window_is_stored_once(outbox):
    outbox.add(window(1))
    outbox.add(window(1, padding=5))
    assert outbox.pending(9) == [window(1)]
    assert outbox.counters() == counters(created=1, waiting=1)


def test_the_floor_is_the_lowest_that_can_still_arrive(outbox):
    assert outbox.floor_seq("b1") == 1
    for seq in (1, 2, 3):
        outbox.add(window(seq))
    assert outbox.floor_seq("b1") == 1
    outbox.acknowledge("b1", 2)
    assert outbox.floor_seq("b1") == 3
    outbox.acknowledge("b1", 3)
    assert (outbox.floor_seq("b1"), outbox.last_seq("b1")) == (4, 3)
    assert (outbox.floor_seq("b2"), outbox.last_seq("b2")) == (1, 0)


def test_the_oldest_are_evicted_counted_and_below_the_floor(tmp_path):
    outbox = Outbox(tmp_path / "o.sqlite", max_bytes=3 * SIZE)
    for seq in range(1, 6):
        outbox.add(window(seq))
    assert seqs(outbox.pending(9)) == [("b1", 3), ("b1", 4), ("b1", 5)]
    assert outbox.counters() == counters(created=5, evicted=2, waiting=3)
    assert outbox.floor_seq("b1") == 3
    outbox.add(window(6, padding=10 * SIZE))
    assert outbox.counters() == counters(created=6, evicted=6)
    assert outbox.floor_seq("b1") == 7
    outbox.add(window(7))
    assert outbox.counters().waiting == 1
    outbox.close()


def test_everything_survives_a_restart(tmp_path):
    path = tmp_path / "o.sqlite"
    outbox = Outbox(path, max_bytes=2 * SIZE)
    for seq in range(1, 5):
        outbox.add(window(seq))
    outbox.acknowledge("b1", 3)
    # no close: as after kill -9
    again = Outbox(path, max_bytes=2 * SIZE)
    assert seqs(again.pending(9)) == [("b1", 4)]
    assert again.counters() == counters(created=4, acknowledged=1, evicted=2, waiting=1)
    assert again.set_aside is None
    again.close()
    outbox.close()


def test_a_window_without_a_number_is_refused(outbox):
    with pytest.raises(ContractError, match="without a number"):
        outbox.add(window(0))


def test_a_damaged_file_is_set_aside_and_said(tmp_path):
    path = tmp_path / "o.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    outbox = Outbox(path, max_bytes=1000)
    assert outbox.set_aside is not None
    assert outbox.set_aside.read_bytes().startswith(b"this is no")
    outbox.add(window(1))
    assert outbox.counters() == counters(created=1, waiting=1)
    outbox.close()


def filled(path) -> int:
    """An outbox of several pages of every kind, closed; returns how many pages its file has."""
    outbox = Outbox(path, max_bytes=1 << 20)
    outbox.store([window(seq, padding=700) for seq in range(1, 121)], 0, 0, {"b1": 120})
    outbox.close()
    return path.stat().st_size // PAGE_BYTES


@pytest.mark.parametrize("wrong", [b"\0", b"\xff", b"\x0d"])
def test_one_damaged_page_sets_the_outbox_aside_whichever_it_is(tmp_path, wrong):
    path = tmp_path / "o.sqlite"
    pages, whole = filled(path), path.read_bytes()
    assert pages > 20
    for page in range(pages):
        start = page * PAGE_BYTES
        path.write_bytes(whole[:start] + wrong * PAGE_BYTES + whole[start + PAGE_BYTES :])
        outbox = Outbox(path, max_bytes=1 << 20)
        assert outbox.set_aside is not None, page
        outbox.add(window(1))
        assert outbox.counters() == counters(created=1, waiting=1)
        outbox.close()


def test_what_breaks_while_the_outbox_is_open_is_an_error_in_words(tmp_path):
    path = tmp_path / "o.sqlite"
    filled(path)
    outbox = Outbox(path, max_bytes=1 << 20)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    outbox._database.execute("PRAGMA shrink_memory")  # what was read before is not remembered
    for read in (
        lambda: outbox.pending(200),
        outbox.counters,
        outbox.waiting_boots,
        lambda: outbox.floor_seq("b1"),
        lambda: outbox.last_seq("b1"),
    ):
        with pytest.raises(EdgeshipError, match="the outbox cannot be read"):
            read()
    outbox.close()


DAMAGED = {
    "no window": b"\xc1",
    "cut": msgspec.msgpack.encode(window(2))[:-3],
    "of another number": msgspec.msgpack.encode(window(3)),
    "of another start": msgspec.msgpack.encode(window(2, "b2")),
    "a scale that no sketch has": msgspec.msgpack.encode(window(2)).replace(
        b"exponential\x80\x00\x03", b"exponential\x80\x00\x7f"
    ),
    "text": "a window",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_row_that_cannot_be_read_is_given_up_and_counted(tmp_path, data):
    outbox = Outbox(tmp_path / "o.sqlite", max_bytes=3 * SIZE)
    for seq in (1, 2, 3):
        outbox.add(window(seq))
    assert data != msgspec.msgpack.encode(window(2))
    outbox._database.execute("UPDATE windows SET data = ? WHERE seq = 2", (data,))
    assert seqs(outbox.pending(2)) == [("b1", 1), ("b1", 3)], "the next one takes its place"
    assert outbox.counters() == counters(created=3, evicted=1, waiting=2)
    outbox.add(window(4))
    assert outbox.counters() == counters(created=4, evicted=1, waiting=3), "its room is free again"
    outbox.close()


def test_the_floor_is_right_although_the_first_row_cannot_be_read(tmp_path):
    outbox = Outbox(tmp_path / "o.sqlite", max_bytes=1 << 20)
    for seq in (1, 2):
        outbox.add(window(seq))
    outbox._database.execute("UPDATE windows SET data = x'c1' WHERE seq = 1")
    waiting = WaitingWindows(outbox)
    assert waiting.floor_seq("b1") == 2
    waiting.close()


@pytest.mark.parametrize("seq", [-1, 2**63, 2**64 - 1])
def test_an_acknowledgement_of_no_possible_number_is_refused(outbox, seq):
    outbox.add(window(1))
    with pytest.raises(ContractError) as caught:
        outbox.acknowledge("b1", seq)
    assert caught.value.key == "seq"
    assert outbox.acknowledge("b1", 2**63 - 1) == 1


def test_a_file_of_a_newer_agent_is_refused_untouched(tmp_path):
    path = tmp_path / "o.sqlite"
    outbox = Outbox(path, max_bytes=1000)
    outbox._database.execute("PRAGMA user_version = 99")
    outbox.close()
    with pytest.raises(ContractError, match="newer agent"):
        Outbox(path, max_bytes=1000)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EdgeshipError, match="cannot be opened"):
        Outbox(tmp_path / "absent" / "o.sqlite", max_bytes=1000)


STEPS = st.tuples(st.sampled_from(["add", "ack"]), st.sampled_from(["b1", "b2"]), st.integers(1, 12))


@given(st.lists(STEPS, max_size=40))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_the_counters_always_add_up(tmp_path_factory, steps):
    outbox = Outbox(tmp_path_factory.mktemp("outbox") / "o.sqlite", max_bytes=4 * SIZE)
    for action, boot_id, seq in steps:
        if action == "add":
            outbox.add(window(seq, boot_id))
        else:
            outbox.acknowledge(boot_id, seq)
        state = outbox.counters()
        assert state.created == state.acknowledged + state.evicted + state.waiting
        assert state.waiting == len(outbox.pending(99)) <= 4
    outbox.close()
