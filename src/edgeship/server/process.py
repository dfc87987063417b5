"""The server process: database, broker, link, ingest, evaluator and web server, started and stopped in order."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
from msgspec import Struct, structs

from edgeship.server.app import create_app
from edgeship.server.brokers import EmbeddedBroker, ExternalBroker
from edgeship.server.brokers.child import ChildBroker
from edgeship.server.brokers.port import Broker
from edgeship.server.config import LOOPBACK, ServerConfig, check_host
from edgeship.server.context import ServerContext, open_context
from edgeship.server.device_side import DeviceSide
from edgeship.server.disk import write_atomic
from edgeship.server.evaluator import Evaluator
from edgeship.server.ingest import Ingest
from edgeship.server.link import BrokerLink
from edgeship.server.listening import listen
from edgeship.server.monitor import Monitor
from edgeship_agent.contract.errors import ConfigError

SERVER_FILE: Final = "server.json"
_GRACE_S: Final = 2  # open live views are cut after this


class ServerInfo(Struct, frozen=True, kw_only=True):
    """``DATA/server.json``: where a running server is found. It stays behind when the server is killed.

    Attributes:
        url: of the web interface and the API.
        broker_url: for devices, MQTT 5.
        broker_url_v311: for devices that speak MQTT 3.1.1.
        broker_pid: 0 for a broker that is not the server's child.
        enrol_url: where devices of other machines enrol; empty where none are let in.
    """

    schema_version: int = 1
    pid: int
    url: str
    broker_url: str
    broker_url_v311: str
    broker_pid: int
    enrol_url: str = ""


def run_server(config: ServerConfig, on_ready: Callable[[ServerInfo], None]) -> None:
    """Run until SIGINT or SIGTERM.

    Args:
        config: what to run.
        on_ready: called when the web interface answers, and again when the broker was started again.

    Raises:
        ConfigError: the address is not loopback, a port is taken, or the data folder cannot be used.
    """
    check_host(config.host)
    try:
        config.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", file=config.data, key="--data") from error
    with _locked(config.data), _raising_signals(), ExitStack() as stack:
        try:
            _run(config, stack, on_ready)
        except KeyboardInterrupt:
            return


def _run(config: ServerConfig, stack: ExitStack, on_ready: Callable[[ServerInfo], None]) -> None:
    previous = read_server_info(config.data)
    listener = listen(config.host, config.port or _port_of(previous, "url"))
    stack.callback(listener.close)
    context = stack.enter_context(open_context(config))
    context.trust  # noqa: B018 (keys and root are made before a device or a page can ask for them)

    def announce() -> None:
        info = _info(config, listener, broker, side.places.enrol_url if side else "")
        write_atomic(config.data / SERVER_FILE, msgspec.json.encode(info))
        on_ready(info)

    side = DeviceSide(context, config.devices, announce) if config.devices else None
    broker = side.broker if side else _make_broker(config, previous, announce)
    broker.start()
    stack.callback(broker.stop)
    _start_parts(context, broker, stack)
    if side is not None:
        side.start()
        stack.callback(side.stop)
    app = create_app(context, allowed_hosts=LOOPBACK)
    server = _Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, lifespan="on"),
        announce,
    )
    server.run(sockets=[listener])


def _start_parts(context: ServerContext, broker: Broker, stack: ExitStack) -> None:
    """Link, ingest and evaluator: started bottom up, stopped top down."""
    link = BrokerLink(broker.address, f"edgeship-server-{secrets.token_hex(4)}")
    monitor = Monitor(context)
    ingest = Ingest(context, link, monitor.touch)
    evaluator = Evaluator(context, link, ingest, monitor)
    context.set_publisher(link.publish, lambda: link.is_connected)
    for part in (ingest, link, evaluator):
        part.start()
        stack.callback(part.stop)


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_started()


def read_server_info(data: Path) -> ServerInfo | None:
    """What the newest server over this folder wrote; it may be gone. None where none ran or the file is damaged."""
    try:
        return msgspec.json.decode((data / SERVER_FILE).read_bytes(), type=ServerInfo)
    except (OSError, msgspec.MsgspecError):
        return None


def _make_broker(config: ServerConfig, previous: ServerInfo | None, on_restart: Callable[[], None]) -> Broker:
    if config.broker_url:
        return ExternalBroker(config.broker_url)
    port = config.broker_port or _port_of(previous, "broker_url")
    same = previous is not None and port == _port_of(previous, "broker_url")
    port_v311 = _port_of(previous, "broker_url_v311") if same else 0
    return EmbeddedBroker(config.data, port, port_v311, on_restart)


def _port_of(info: ServerInfo | None, key: str) -> int:
    """The port that the server before had, so that devices and bookmarks find the next one; 0 for none."""
    if info is None:
        return 0
    tail = str(getattr(info, key)).rpartition(":")[2]
    return int(tail) if tail.isdecimal() else 0


def _info(config: ServerConfig, listener: socket.socket, broker: Broker, enrol_url: str) -> ServerInfo:
    address = broker.address
    return ServerInfo(
        pid=os.getpid(),
        url=f"http://{config.host}:{listener.getsockname()[1]}",
        broker_url=address.url,
        broker_url_v311=structs.replace(address, port=address.port_v311).url,
        broker_pid=broker.pid if isinstance(broker, ChildBroker) else 0,
        enrol_url=enrol_url,
    )


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """One server per data folder; the kernel lets go of the lock when the process dies."""
    with (data / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError("another server is running over this folder", file=data, key="--data") from error
        yield


@contextmanager
def _raising_signals() -> Iterator[None]:
    """SIGTERM ends the process the way SIGINT does: through every clean-up."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
