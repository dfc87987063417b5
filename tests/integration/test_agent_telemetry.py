"""Telemetry that is not lost: a day without a server, a power cut, bytes on the wire and on the disk."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from benchmarks import telemetry_size
from sqlalchemy import func, select

from edgeship.server.store import Store, open_store, schema, windows
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Ack, WindowBatch
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, encode
from edgeship_agent.supervisor.sending import Pace, WindowSender
from edgeship_agent.telemetry.outbox import Outbox
from edgeship_agent.telemetry.waiting import WaitingWindows
from tests.agents import DEVICE, SHORT, AgentProcess, Broker, Depot, ServerSide, Traffic, model_goal, until
from tests.device_link import window

WINDOW_S = 60.0
FLUSH_S = 900.0
HOURS = 24


class Server:
    """The server's real store of windows, behind a line that loses and repeats; its clock is the caller's."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.is_up = False
        self.acks: list[Ack] = []
        self._rng = random.Random(seed)

    def publish(self, _: Topic, payload: bytes) -> bool:
        """Take a message of the device, as a link does."""
        if not self.is_up:
            return False
        batch: WindowBatch = decode(Kind.WINDOWS, payload)
        for _ in range(self._rng.choice((0, 1, 1, 2))):
            with self.store.write() as connection:
                seq = windows.store_batch(connection, batch, 0.0).acknowledged_seq
            if self._rng.random() < 0.7:
                self.acks.append(Ack(protocol_version=PROTOCOL_VERSION, boot_id=batch.boot_id, seq=seq))
        self._rng.shuffle(self.acks)
        return True

    def count(self) -> int:
        with self.store.read() as connection:
            return connection.execute(select(func.count()).select_from(schema.windows)).scalar_one()

    def evicted(self) -> int:
        with self.store.read() as connection:
            return connection.execute(select(func.sum(schema.streams.c.evicted))).scalar_one() or 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(open_store(f"sqlite:///{tmp_path / 'server.sqlite'}"), 5)
    yield server
    server.store.close()


class Device:
    """One start of an agent: its windows, its outbox, a clock that the test moves."""

    def __init__(self, path: Path, boot_id: str, server: Server, outbox_bytes: int) -> None:
        self.waiting = WaitingWindows(Outbox(path, outbox_bytes))
        pace = Pace(resend_s=10.0, flush_s=FLUSH_S)
        self.sender = WindowSender(self.waiting, DEVICE, boot_id, server.publish, pace)
        self._server = server

    def live(self, start_s: float, end_s: float) -> None:
        """A window a minute."""
        now_s = start_s
        while now_s < end_s:
            self.sender.add(window(1), now_s)
            self.sender.keep(now_s)
            now_s += WINDOW_S

    def drain(self, start_s: float) -> None:
        """Reconnect, and go on until nothing waits."""
        self.sender.start_over(start_s)
        for second in range(20_000):
            if not self.waiting.counters().waiting:
                return
            while self._server.acks:
                self.sender.acknowledged(self._server.acks.pop(), start_s + second)
            self.sender.tick(start_s + second)
        raise AssertionError(f"windows still wait: {self.waiting.counters()}")


@pytest.mark.parametrize("outbox_bytes", [50 << 20, 200_000], ids=["room for all", "room for some"])
def test_after_a_day_offline_every_window_arrives_once_or_is_counted(
    tmp_path: Path, server: Server, outbox_bytes: int
) -> None:
    path, half_s = tmp_path / "outbox.sqlite", HOURS * 1800.0
    device = Device(path, "morning", server, outbox_bytes)
    device.live(0.0, half_s)
    device.waiting.close()
    device = Device(path, "evening", server, outbox_bytes)
    device.live(half_s, 2 * half_s)
    server.is_up = True
    device.drain(2 * half_s)
    books = device.waiting.counters()
    assert books.created == HOURS * 60
    assert books.created == books.acknowledged + books.evicted
    assert server.count() == books.acknowledged
    assert (books.evicted == 0) is (outbox_bytes > 1 << 20)
    assert server.evicted() <= books.evicted  # of a start whose windows were all given up the server never hears
    device.waiting.close()


def test_a_power_cut_costs_at_most_one_flush_interval(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "outbox.sqlite"
    device = Device(path, "before", server, 50 << 20)
    device.live(0.0, 3 * 3600.0 + 420.0)
    made = device.waiting.counters().created
    device.waiting._outbox.close()  # the power goes: what is in memory is gone
    again = Device(path, "after", server, 50 << 20)
    lost = made - again.waiting.counters().waiting
    assert 0 < lost <= FLUSH_S / WINDOW_S
    server.is_up = True
    again.drain(0.0)
    assert server.count() == made - lost
    again.waiting.close()


def test_a_disk_that_takes_nothing_costs_the_oldest_and_they_are_counted(tmp_path: Path, server: Server) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", 50 << 20)
    waiting = WaitingWindows(outbox, most_fresh_bytes=4000)
    sender = WindowSender(waiting, DEVICE, "boot", server.publish, Pace(resend_s=10.0, flush_s=FLUSH_S))
    outbox._database.execute("PRAGMA query_only = ON")
    refused = 0
    for number in range(40):
        sender.add(window(1), float(number))
        try:
            sender.keep(float(number))
        except Exception as error:  # noqa: BLE001 (whatever it says, it must be of the agent's own kind)
            assert "cannot be written" in str(error)
            refused += 1
    assert refused
    books = waiting.counters()
    assert books.created == 40
    assert books.evicted > 0
    assert books.created == books.evicted + books.waiting
    outbox._database.execute("PRAGMA query_only = OFF")
    server.is_up = True
    sender.start_over(100.0)
    for second in range(1000):
        while server.acks:
            sender.acknowledged(server.acks.pop(), 100.0 + second)
        sender.tick(100.0 + second)
    assert server.count() == 40 - books.evicted
    waiting.close()


def test_a_window_of_sixteen_features_takes_at_most_two_kilobytes_on_the_wire(tmp_path: Path) -> None:
    sizes = telemetry_size.wire_bytes(tmp_path, telemetry_size.made_windows(tmp_path, 3))
    assert len(sizes) == 3
    assert 200 < min(sizes) <= max(sizes) <= 2048, sizes


@pytest.mark.slow  # some two hundred fsyncs
def test_a_day_of_windows_writes_at_most_twenty_megabytes(tmp_path: Path) -> None:
    windows = telemetry_size.made_windows(tmp_path, 2)
    for online in (True, False):
        assert telemetry_size.day_mb(tmp_path, windows, online=online) <= telemetry_size.DISK_GOAL_MB


def test_an_agent_that_is_in_touch_writes_nothing_between_two_flushes(tmp_path: Path) -> None:
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    agent = AgentProcess(tmp_path / "device", depot, broker.port)
    try:
        server.send_goal(depot.goal(1, model_goal(depot.publish("1"), "first", probation=SHORT)))
        agent.start()
        server.ended("first")
        with Traffic(agent):
            until(lambda: len(server.windows) >= 2, 30.0, "windows")
            before, had = _written(agent), len(server.windows)
            time.sleep(3.0)  # the status is written three times, windows come and go
            until(lambda: len(server.windows) >= had + 4, 30.0, "more windows")
            assert _written(agent) - before <= 1 << 14  # its own log, and no more
        assert agent.stop() == 0
        books = agent.status()["outbox"]
        assert books["created"] == books["acknowledged"] + books["evicted"] + books["waiting"]
    finally:
        agent.stop()
        server.close()
        broker.kill()
        depot.close()


def test_neither_an_acknowledgement_nor_the_outbox_ends_the_serving(tmp_path: Path) -> None:
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port, acknowledges=False)
    agent = AgentProcess(tmp_path / "device", depot, broker.port)
    try:
        server.send_goal(depot.goal(1, model_goal(depot.publish("1"), "first", probation=SHORT)))
        agent.start()
        server.ended("first")
        with Traffic(agent):
            until(lambda: server.heard(Kind.WINDOWS), 30.0, "windows")
        boot_id = server.heard(Kind.WINDOWS)[0].boot_id
        for seq in (2**63, -1):
            ack = Ack(protocol_version=PROTOCOL_VERSION, boot_id=boot_id, seq=seq)
            server.say(Kind.ACK, encode(Kind.ACK, ack), retain=True)
        until(lambda: _log(agent).count("no number of a window") == 2, 30.0, "both to be refused")
        assert agent.stop() == 0
        with closing(sqlite3.connect(agent.state / "outbox.sqlite")) as outbox:
            outbox.execute("CREATE TRIGGER full BEFORE DELETE ON windows BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        server.acknowledges = True
        agent.start()
        until(lambda: "windows_not_removed" in _log(agent), 30.0, "an acknowledgement that the disk does not take")
        pid = agent.worker_pid()
        with Traffic(agent) as traffic:
            until(lambda: len(traffic.answers) > 50, 30.0, "answers")
        assert (agent.worker_pid(), traffic.errors) == (pid, [])
        with closing(sqlite3.connect(agent.state / "outbox.sqlite")) as outbox:
            outbox.execute("DROP TRIGGER full")
        until(lambda: agent.status()["outbox"]["waiting"] == 0, 30.0, "the windows to be acknowledged")
        assert agent.stop() == 0
        _damage(agent.state / "outbox.sqlite")
        agent.start()
        agent.worker_pid()
        assert "outbox_damaged" in _log(agent)
        with Traffic(agent):
            until(lambda: agent.status()["outbox"]["acknowledged"], 30.0, "windows from the new outbox")
    finally:
        agent.stop()
        server.close()
        broker.kill()
        depot.close()


def _damage(path: Path) -> None:
    """Make one page of the table unreadable; the index over it, which is what counts rows, stays whole."""
    with closing(sqlite3.connect(path)) as outbox:
        outbox.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size_bytes,) = outbox.execute("PRAGMA page_size").fetchone()
        (page,) = outbox.execute("SELECT rootpage FROM sqlite_master WHERE name = 'windows'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size_bytes)
        file.write(b"\0" * size_bytes)


def _log(agent: AgentProcess) -> str:
    return agent.log.read_text()


def _written(agent: AgentProcess) -> int:
    assert agent.process is not None
    lines = Path(f"/proc/{agent.process.pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
