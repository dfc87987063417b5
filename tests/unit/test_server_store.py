"""The database: migrations, transactions, and the books of windows under repeats, gaps and reordering."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, func, select

from edgeship.server.store import Store, books, devices, open_store, reports, rollouts, schema, windows
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.messages import WindowBatch
from tests.device_link import batch, window


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'test.sqlite'}")
    yield opened
    opened.close()


def test_the_migrations_make_the_schema(store: Store) -> None:
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_opening_again_keeps_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    for expected in (1, 2):
        opened = open_store(url)
        with opened.write() as connection:
            books.count(connection, "malformed")
            assert books.read(connection) == {"malformed": expected}
        opened.close()


def test_rollouts_of_before_are_of_one_model(tmp_path: Path) -> None:
    """A database as version 0004 left it: its rollouts, devices and reports are read as those of one model."""
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.attributes["connection"] = connection = engine.connect()
    command.upgrade(config, "0004")
    policy, verdict = json.dumps({"name": "threshold"}), "null"
    rollout = ("r1", 1, "digits", "v2", "sha256:2", policy, "[1.0]", "{}", 7, "running", 0, '["soaking"]', 1.0, "why",
               verdict, 3, 1.0, 2.0)  # fmt: skip
    connection.exec_driver_sql(
        "INSERT INTO rollouts (id, number, model, version, digest, policy, stages, filter, seed, state, stage_index, "
        "stage_states, stage_started_s, reason, verdict, revision, created_at_s, updated_at_s) VALUES "
        f"({', '.join('?' * len(rollout))})",
        rollout,
    )
    device = ("r1", "d", 0, "x/y", "succeeded", "committed", "", 1, "v1", "sha256:1", 1.0, 2.0, 3.0, 1)
    connection.exec_driver_sql(f"INSERT INTO rollout_devices VALUES ({', '.join('?' * len(device))})", device)
    report = ("d", "r1", 1, 4, "digits", "v2", "sha256:2", "committed", "", "", "sha256:2", "{}", 0, 3.0)
    connection.exec_driver_sql(f"INSERT INTO reports VALUES ({', '.join('?' * len(report))})", report)
    connection.commit()
    connection.close()
    engine.dispose()
    store = open_store(url)
    with store.read() as read:
        [found] = rollouts.list_all(read)
        assert [(part.model, part.version, part.digest) for part in found.parts] == [("digits", "v2", "sha256:2")]
        [member] = rollouts.members(read, "r1")
        [part] = member.parts
        summed = rollouts.summed_up(member.parts)
        assert summed == {name: getattr(member, name) for name in summed}
        assert (part.model, part.previous_version, part.previous_digest) == ("digits", "v1", "sha256:1")
        newest = reports.newest(read, "d", "r1", 1, "digits")
        assert newest is not None
        assert (newest.seq, newest.loaded_digest) == (4, "sha256:2")
    store.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    opened = open_store(url)
    with opened.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    opened.close()
    with pytest.raises(ConfigError, match="cannot open the database"):
        open_store(url)


def test_what_is_acknowledged_is_synchronous(store: Store) -> None:
    with store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


def test_actions_wait_for_the_commit_and_die_with_a_rollback(store: Store) -> None:
    done: list[str] = []
    with store.write():
        store.after_commit(lambda: done.append("sent"))
        assert done == []
    assert done == ["sent"]
    with pytest.raises(ZeroDivisionError), store.write():
        store.after_commit(lambda: done.append("never"))
        raise ZeroDivisionError
    assert done == ["sent"]
    store.after_commit(lambda: done.append("at once"))
    assert done == ["sent", "at once"]


def test_a_savepoint_fails_alone(store: Store) -> None:
    done: list[str] = []
    with store.write() as connection:
        books.count(connection, "kept")
        with pytest.raises(ZeroDivisionError), store.savepoint(connection):
            books.count(connection, "lost")
            store.after_commit(lambda: done.append("never"))
            raise ZeroDivisionError
        store.after_commit(lambda: done.append("sent"))
    with store.read() as connection:
        assert books.read(connection) == {"kept": 1}
    assert done == ["sent"]


def test_a_transaction_inside_another_is_an_error_of_the_program(store: Store) -> None:
    with store.write(), pytest.raises(RuntimeError), store.write():
        pass


def test_writers_of_many_threads_lose_nothing(store: Store) -> None:
    def work() -> None:
        for _ in range(20):
            with store.write() as connection:
                books.count(connection, "steps")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as connection:
        assert books.read(connection) == {"steps": 160}


def _send(store: Store, *batches: WindowBatch) -> list[int]:
    acknowledged = []
    for sent in batches:
        with store.write() as connection:
            acknowledged.append(windows.store_batch(connection, sent, 1.0).acknowledged_seq)
    return acknowledged


def _books(connection: Connection) -> dict[str, int]:
    return devices.books(connection, "d")


def test_only_what_has_no_gap_before_it_is_acknowledged(store: Store) -> None:
    assert _send(store, batch("d", window(2), window(3)), batch("d", window(1))) == [0, 3]


def test_the_acknowledgement_passes_over_what_is_never_stored(store: Store) -> None:
    sent = batch("d", window(2), window(3), window(4), window(5))

    def send(what: WindowBatch) -> windows.Stored:
        with store.write() as connection:
            return windows.store_batch(connection, what, 1.0, {2, 4})

    early = send(sent)
    assert (early.acknowledged_seq, early.refused) == (0, ()), "1 is still to come"
    _send(store, batch("d", window(1)))
    again = send(sent)
    assert (again.acknowledged_seq, again.refused, again.duplicates) == (5, (2, 4), 2)
    repeat = send(sent)
    assert (repeat.acknowledged_seq, repeat.refused) == (5, ()), "each is told once"
    assert [each.seq for each in early.windows] == [3, 5]
    with store.read() as connection:
        assert (_books(connection)["stored"], _books(connection)["evicted"]) == (3, 0)


def test_what_is_never_stored_and_given_up_by_the_device_is_counted_once(store: Store) -> None:
    with store.write() as connection:
        stored = windows.store_batch(connection, batch("d", window(2), window(3), floor_seq=3), 1.0, {2})
    assert (stored.acknowledged_seq, stored.refused, stored.evicted) == (3, (), 2)


def test_a_repeat_within_one_batch_counts_once(store: Store) -> None:
    assert _send(store, batch("d", window(1), window(1))) == [1]
    with store.read() as connection:
        assert _books(connection) == {"stored": 1, "duplicates": 1, "evicted": 0}


def test_a_window_that_was_given_up_and_arrives_late_is_stored_and_not_evicted(store: Store) -> None:
    assert _send(store, batch("d", window(5), floor_seq=5), batch("d", window(2))) == [5, 5]
    with store.read() as connection:
        assert _books(connection) == {"stored": 2, "duplicates": 0, "evicted": 3}


def test_starts_of_the_agent_are_counted_apart(store: Store) -> None:
    assert _send(store, batch("d", window(1)), batch("d", window(1, boot_id="boot-2"), boot_id="boot-2")) == [1, 1]
    with store.read() as connection:
        assert _books(connection)["stored"] == 2


def test_an_empty_batch_moves_the_floor(store: Store) -> None:
    assert _send(store, batch("d", floor_seq=11)) == [10]
    with store.read() as connection:
        assert _books(connection) == {"stored": 0, "duplicates": 0, "evicted": 10}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    evicted=st.sets(st.integers(1, 20), max_size=8),
    seed=st.integers(0, 2**32),
)
def test_the_books_balance_whatever_is_lost_repeated_and_reordered(
    tmp_path_factory: pytest.TempPathFactory, evicted: set[int], seed: int
) -> None:
    """20 windows, some given up by the device (the oldest first), each other one sent 1–3 times in any order."""
    rng = random.Random(seed)
    gone = set(range(1, len(evicted) + 1))
    kept = [seq for seq in range(1, 21) if seq not in gone]
    sent = [seq for seq in kept for _ in range(rng.randint(1, 3))]
    rng.shuffle(sent)
    opened = open_store(f"sqlite:///{tmp_path_factory.mktemp('books') / 'test.sqlite'}")
    acknowledged = _send(opened, *(batch("d", window(seq), floor_seq=len(gone) + 1) for seq in sent))
    assert acknowledged == sorted(acknowledged), "an acknowledgement is never taken back"
    assert acknowledged[-1] == 20
    with opened.read() as connection:
        assert _books(connection) == {
            "stored": len(kept),
            "duplicates": len(sent) - len(kept),
            "evicted": len(gone),
        }
        count = connection.execute(select(func.count()).select_from(schema.windows)).scalar_one()
    opened.close()
    assert count == len(kept)
