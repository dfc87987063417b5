"""Journal and state file: torn tails, damage, versions, unknown fields."""

from __future__ import annotations

import errno
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.goal import ArmGoal, ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.attempt import Attempt, entered, new_attempt, report_of
from edgeship_agent.update.disk import Disk, OpenFile
from edgeship_agent.update.journal import JOURNAL_MINOR, Journal
from edgeship_agent.update.remembered import KEPT_ATTEMPTS
from edgeship_agent.update.state import SESSIONS_AT_ONCE, BadPair, StateFile


@pytest.fixture
def opened() -> Iterator[Callable[..., Journal]]:
    """Opens journals and closes them after the test."""
    journals: list[Journal] = []

    def open_journal(path: Path, **options: int) -> Journal:
        journals.append(Journal(path, **options))
        return journals[-1]

    yield open_journal
    for journal in journals:
        journal.close()


def attempt(deployment: str = "d", digest: str = "sha256:" + "a" * 64) -> Attempt:
    arm = ArmGoal(version="2", digest=digest, size_bytes=10)
    return new_attempt(ModelGoal(model="m", arms=(arm,), deployment=deployment), arm)


def walk(journal: Journal, first: Attempt, count: int = 3) -> Attempt:
    for state in (UpdateState.ACCEPTED, UpdateState.PRECHECK, UpdateState.DOWNLOADING)[:count]:
        first = entered(first, state)
        journal.append(first)
    return first


def test_the_newest_snapshot_survives(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path / "journal.log")
    last = walk(journal, attempt())
    journal.close()
    again = opened(tmp_path / "journal.log")
    assert again.attempts() == (last,)
    assert again.find(last.key) == last
    assert again.last_seq("d", 1) == 3
    assert not again.stopped_cleanly


def test_the_newest_attempts_and_those_under_way(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    ended = [entered(attempt(name), UpdateState.ROLLED_BACK) for name in "abc"]
    under_way = entered(attempt("u"), UpdateState.DOWNLOADING)
    journal.append(under_way)
    for each in ended:
        journal.append(each)
    journal.close()
    for known in (journal, opened(path)):
        assert known.attempts() == (*ended, under_way)
        assert [*known.newest(2)] == [ended[-1], under_way]
        assert known.under_way() == (under_way,)
    journal = opened(path)
    journal.append(entered(under_way, UpdateState.ROLLED_BACK))
    assert journal.under_way() == ()
    assert [each.deployment for each in journal.newest(9)] == ["a", "b", "c", "u"]


def test_an_attempt_that_has_ended_takes_little_memory(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path / "journal.log")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(KEPT_ATTEMPTS):
            figures = {"relative_rms": number / 100, "latency_p99_ms": 1.0 + number}
            journal.append(entered(attempt(f"deployment-{number}"), UpdateState.COMMITTED, figures=figures))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    per_attempt = (after - before) / KEPT_ATTEMPTS
    line = (tmp_path / "journal.log").stat().st_size / KEPT_ATTEMPTS
    assert line < per_attempt < 1.2 * line, per_attempt


def test_every_torn_tail_is_cut_at_the_last_good_record(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    walk(journal, attempt())
    journal.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        torn = opened(path)
        good = sum(end <= length for end in ends)
        assert sum(a.seq for a in torn.attempts()) == good
        torn.append(entered(attempt("other"), UpdateState.ACCEPTED))
        torn.close()
        assert len(opened(path).attempts()) == (2 if good else 1)


def test_a_damaged_record_is_not_believed(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    walk(journal, attempt())
    journal.close()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    assert opened(path).attempts()[0].state is UpdateState.PRECHECK


def test_clean_stop_counts_only_as_the_last_record(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    walk(journal, attempt())
    journal.mark("clean_stop")
    journal.close()
    second = opened(path)
    assert second.stopped_cleanly
    second.mark("start")
    second.close()
    assert not opened(path).stopped_cleanly


def test_compaction_keeps_what_counts_and_unknown_fields(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    for number in range(100):
        walk(journal, attempt(f"d{number}"), 1)
        journal.append(entered(journal.attempts()[-1], UpdateState.REJECTED, reason="x"))
    open_one = walk(journal, attempt("open"))
    journal.close()
    body = json.dumps({**msgspec.to_builtins(open_one), "v": 1, "kind": "attempt", "of_tomorrow": 7}).encode()
    path.write_bytes(path.read_bytes() + b"%08x %s\n" % (zlib.crc32(body), body))
    size_bytes = path.stat().st_size
    compacted = opened(path, compact_bytes=1000)
    assert path.stat().st_size < size_bytes
    assert len(compacted.attempts()) == 65
    assert compacted.find(open_one.key) == open_one
    assert b"of_tomorrow" in path.read_bytes()


def test_a_journal_stays_small_while_the_agent_runs(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    """An agent may run for years: neither its memory nor the file grows with every update."""
    path = tmp_path / "journal.log"
    opened(path).mark("clean_stop")
    journal, largest_bytes = opened(path, compact_bytes=40_000), 0
    journal.mark("start")
    under_way = walk(journal, attempt("open"), 2)
    for number in range(150):
        walk(journal, attempt(f"d{number}"), 1)
        journal.append(entered(journal.attempts()[-1], UpdateState.REJECTED, reason="x"))
        largest_bytes = max(largest_bytes, path.stat().st_size)
    assert len(journal.attempts()) == KEPT_ATTEMPTS + 1
    assert largest_bytes < 100_000
    again = opened(path)  # as after a kill
    assert again.attempts() == journal.attempts()
    assert again.find(under_way.key) == under_way
    assert not again.stopped_cleanly


def line(record: dict[str, object]) -> bytes:
    body = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_a_journal_of_a_newer_major_version_is_set_aside_whole(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    path, written = tmp_path / "journal.log", line({"v": 2, "kind": "start"})
    path.write_bytes(written)
    journal = opened(path)
    assert journal.attempts() == ()
    assert journal.set_aside is not None
    assert journal.set_aside.read_bytes() == written
    last = walk(journal, attempt())
    assert opened(path).find(last.key) == last


def test_a_journal_of_a_newer_minor_version_is_read_as_far_as_it_is_understood(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    path = tmp_path / "journal.log"
    journal = opened(path)
    last = walk(journal, attempt())
    journal.mark("clean_stop")
    journal.close()
    newer = {"v": 1, "minor": JOURNAL_MINOR + 1}
    strange = {**newer, "kind": "attempt", **msgspec.to_builtins(attempt("later")), "state": "of_tomorrow"}
    path.write_bytes(path.read_bytes() + line({**newer, "kind": "lease", "until": 7}) + line(strange))
    again = opened(path)
    assert again.attempts() == (last,)
    assert again.not_understood == 2
    again.close()
    opened(path, compact_bytes=1)
    assert b"of_tomorrow" in path.read_bytes()
    assert b"lease" in path.read_bytes()
    path.write_bytes(line({**strange, "minor": 0}))
    with pytest.raises(ContractError, match="unreadable record"):
        opened(path)


class FullDisk(Disk):
    """Takes half of every write while it is full."""

    is_full = False

    def open(self, path: Path, *, append: bool = False) -> OpenFile:
        disk, file = self, super().open(path, append=append)
        write = file.write

        def half(data: bytes) -> None:
            if disk.is_full:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(data)

        file.write = half  # type: ignore[method-assign]
        return file


def test_half_a_record_on_a_full_disk_hides_none_that_follows(tmp_path: Path) -> None:
    disk, path = FullDisk(), tmp_path / "journal.log"
    journal = Journal(path, disk=disk)
    first = walk(journal, attempt(), 1)
    disk.is_full = True
    with pytest.raises(OSError, match="No space left"):
        journal.append(entered(first, UpdateState.PRECHECK))
    disk.is_full = False
    last = entered(first, UpdateState.REJECTED)
    journal.append(last)
    journal.close()
    again = Journal(path)
    again.close()
    assert again.attempts() == (last,)


def test_reports_are_numbered_and_complete() -> None:
    step = entered(attempt(), UpdateState.ACCEPTED, loaded_digest="sha256:x")
    report = report_of(step, "press-1", 4)
    assert (report.seq, report.state, report.session, report.loaded_digest) == (1, UpdateState.ACCEPTED, 4, "sha256:x")


def test_state_is_kept_with_unknown_fields(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path)
    assert state.next_session() == 1
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "of_tomorrow": 1}))
    again = StateFile(path)
    assert again.next_session() == SESSIONS_AT_ONCE + 1  # what the first life may have used is not used again
    written = path.read_bytes()
    assert again.next_session() == SESSIONS_AT_ONCE + 2
    assert path.read_bytes() == written
    again.raise_floor(50.0)
    again.raise_floor(40.0)
    again.count_refusals({"expired": 2})
    again.remember_bad(BadPair(digest="a", contract="", reason="golden_mismatch"))
    last = StateFile(path)
    assert last.now.time_floor_s == 50.0
    assert last.now.refused_goals == {"expired": 2}
    assert last.bad_reason("a", "") == "golden_mismatch"
    assert last.bad_reason("a", "other") is None
    assert json.loads(path.read_bytes())["of_tomorrow"] == 1


def test_a_damaged_state_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ContractError, match="unreadable"):
        StateFile(tmp_path / "state.json")
