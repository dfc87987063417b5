"""The power goes while SQLite writes the outbox: no window that was added is lost, and the counters add up.

SQLite makes its own writes, so its own order is what is cut here: a commit appends to the log and syncs it; a
checkpoint copies the log into the file, syncs that, and only then is the log written over. Between those syncs every
sector may be the old or the new one, and each file as long as before or as after. The index (``-shm``) is always lost.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeship_agent.contract.messages import OutboxCounters
from edgeship_agent.telemetry.outbox import Outbox
from tests.device_link import window
from tests.power_loss import SECTOR_BYTES

SEED = 20261125
SAMPLES = 4


@dataclass(frozen=True)
class Moment:
    """The files and the counters after a call returned."""

    file: bytes
    log: bytes
    counters: OutboxCounters


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    """Windows added, acknowledged and evicted, with a checkpoint every few commits."""
    path = tmp_path_factory.mktemp("outbox") / "outbox.sqlite"
    outbox = Outbox(path, max_bytes=12 * len_of_window())
    outbox._database.execute("PRAGMA wal_autocheckpoint = 12")
    taken = [moment(path, outbox)]
    for seq in range(1, 41):
        outbox.add(window(seq))
        taken.append(moment(path, outbox))
        if seq % 7 == 0 and seq < 30:
            outbox.acknowledge("boot-1", seq - 3)
            taken.append(moment(path, outbox))
    outbox.close()
    last = taken[-1].counters
    assert last.acknowledged > 0
    assert last.evicted > 0
    assert len({each.file for each in taken}) > 3, "no checkpoint was made"
    return taken


def len_of_window() -> int:
    from edgeship_agent.telemetry.outbox import _encoder

    return len(_encoder.encode(window(1)))


def moment(path: Path, outbox: Outbox) -> Moment:
    return Moment(path.read_bytes(), path.with_name(path.name + "-wal").read_bytes(), outbox.counters())


def torn(old: bytes, new: bytes, rng: random.Random) -> Iterator[bytes]:
    """Mixtures of two contents: the ends, and sectors and lengths at random."""
    yield old
    yield new
    for _ in range(SAMPLES):
        size = max(len(old), len(new))
        sectors = (
            (new if rng.random() < 0.5 else old)[start : start + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
            for start in range(0, size, SECTOR_BYTES)
        )
        yield b"".join(sectors)[: rng.choice([len(old), len(new)])]


def left_behind(before: Moment, after: Moment, rng: random.Random) -> Iterator[tuple[bytes, bytes]]:
    """File and log as a power cut during one call may leave them."""
    for log in torn(before.log, after.log, rng):
        yield before.file, log
    if after.file != before.file:
        for file in torn(before.file, after.file, rng):
            yield file, after.log


def found(folder: Path, file: bytes, log: bytes) -> tuple[OutboxCounters, list[int], bool]:
    path = folder / "outbox.sqlite"
    for place in folder.iterdir():
        place.unlink()
    path.write_bytes(file)
    path.with_name(path.name + "-wal").write_bytes(log)
    outbox = Outbox(path, max_bytes=1 << 20)
    try:
        return outbox.counters(), [each.seq for each in outbox.pending(1000)], outbox.set_aside is None
    finally:
        outbox.close()


def test_no_window_is_lost_and_the_counters_add_up(moments: list[Moment], tmp_path: Path) -> None:
    rng, states = random.Random(SEED), 0
    for before, after in itertools.pairwise(moments):
        for file, log in left_behind(before, after, rng):
            states += 1
            counters, waiting, is_whole = found(tmp_path, file, log)
            assert is_whole
            assert counters in (before.counters, after.counters)
            assert counters.created == counters.acknowledged + counters.evicted + counters.waiting
            assert len(waiting) == counters.waiting
            assert waiting == sorted(waiting)
    print(f"{states} states of {len(moments) - 1} calls")
    assert states > 250


def test_what_was_returned_for_is_there(moments: list[Moment], tmp_path: Path) -> None:
    for each in moments:
        assert found(tmp_path, each.file, each.log)[0] == each.counters


def test_without_the_sync_of_a_commit_a_window_would_be_missed(moments: list[Moment], tmp_path: Path) -> None:
    """The check can fail: a log that was not synced is what it was one call before."""
    missed = 0
    for before, after in itertools.pairwise(moments):
        if before.file == after.file:
            missed += found(tmp_path, after.file, before.log)[0] != after.counters
    assert missed > 10
