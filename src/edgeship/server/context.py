"""What every part of the server is handed: configuration, database, clock, randomness, keys, and the way out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from edgeship.server.clones import CloneWatch
from edgeship.server.config import ServerConfig
from edgeship.server.event_bus import EventBus
from edgeship.server.profile_jobs import ProfileJobs
from edgeship.server.profiles import Profiles
from edgeship.server.store import Store, events, open_store
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.topics import Topic

if TYPE_CHECKING:
    from edgeship.server.identity.members import Members
    from edgeship.server.trust import Trust

Clock = Callable[[], float]
Publisher = Callable[[Topic, bytes, bool], None]


class ServerContext:
    """One server's parts. Handlers and evaluators get it as an argument; nothing of it is global.

    Args:
        config: see :class:`ServerConfig`.
        store: the open database.
        clock: seconds since the epoch; order never depends on it, deadlines do.
        rng: source of every random choice (seeds are drawn from it and stored).
    """

    def __init__(self, config: ServerConfig, store: Store, clock: Clock, rng: random.Random) -> None:
        self.config = config
        self.store = store
        self.clock = clock
        self.rng = rng
        self.bus = EventBus()
        self.clones = CloneWatch()
        self._publisher: Publisher | None = None
        self._is_connected: Callable[[], bool] = lambda: False
        self._members: Members | None = None

    @property
    def engine(self) -> Engine:
        """The database engine; most callers want :meth:`read` or :meth:`write`."""
        return self.store.engine

    @property
    def data(self) -> Path:
        """The server's folder."""
        return self.config.data

    @property
    def blobs(self) -> Path:
        """Content by digest: ``blobs/sha256/<hex>``."""
        return self.config.data / "blobs"

    @cached_property
    def trust(self) -> Trust:
        """Keys and TUF repository, opened (and made) on first use."""
        from edgeship.server.trust import Trust

        return Trust.open(self.config.data, clock=self.clock)

    @cached_property
    def profiles(self) -> Profiles:
        """Drift baselines of the releases."""
        return Profiles(self.blobs)

    @cached_property
    def profile_jobs(self) -> ProfileJobs:
        """Profile jobs since this server was started."""
        return ProfileJobs(self)

    @property
    def members(self) -> Members:
        """Who belongs to the fleet.

        Raises:
            ConfigError: this server lets in nobody from another machine.
        """
        if self._members is None:
            raise ConfigError("this server takes devices of its own machine only",
                              next_step="edgeship server run --data DIR --devices-host ADDRESS")  # fmt: skip
        return self._members

    def set_members(self, members: Members) -> None:
        """Say who keeps the members, where devices of other machines are let in."""
        self._members = members

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the database."""
        return self.store.read()

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction, committed at the end of the block; see :meth:`Store.write`."""
        return self.store.write()

    def publish(self, topic: Topic, payload: bytes, retain: bool) -> None:
        """Send to a device, at the earliest after this thread's transaction is committed.

        Without a broker connection the message is dropped: goals are published again on every connect, and an
        acknowledgement is repeated when the device sends its windows again.
        """
        publisher = self._publisher
        if publisher is not None:
            self.store.after_commit(lambda: publisher(topic, payload, retain))

    def set_publisher(self, publisher: Publisher, is_connected: Callable[[], bool]) -> None:
        """Say how messages leave, and how to ask whether they can."""
        self._publisher = publisher
        self._is_connected = is_connected

    @property
    def is_connected(self) -> bool:
        """Whether devices can be reached now."""
        return self._is_connected()

    def record(self, connection: Connection, kind: str, subject: str, sentence: str, data: dict[str, Any]) -> None:
        """Write an event and tell the live views about it once it is committed.

        Args:
            connection: of a writing transaction.
            kind: ``device_online``, ``incident_opened``, ``rollout_halted``, ...
            subject: ``device/<id>``, ``rollout/<id>``, ``release/<model>/<version>`` or ``server``.
            sentence: for people.
            data: for machines.
        """
        event = events.record(connection, kind, subject, sentence, data, self.clock())
        self.store.after_commit(lambda: self.bus.publish(event))


@contextmanager
def open_context(
    config: ServerConfig, *, clock: Clock = time.time, rng: random.Random | None = None
) -> Iterator[ServerContext]:
    """Open (and make) the data folder and the database, without any broker or web server."""
    config.data.mkdir(parents=True, exist_ok=True)
    (config.data / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    store = open_store(f"sqlite:///{config.data / 'edgeship.sqlite'}")
    try:
        yield ServerContext(config, store, clock, rng or random.Random())  # noqa: S311 (sampling, not secrets)
    finally:
        store.close()
