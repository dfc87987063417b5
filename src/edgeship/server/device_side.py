"""Everything that devices on other machines talk to: broker, update service and enrolment service, all over TLS."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as mqtt
import uvicorn
from litestar import Litestar
from paho.mqtt.enums import CallbackAPIVersion

from edgeship.server.brokers.mosquitto import MosquittoBroker, MosquittoFiles
from edgeship.server.brokers.port import BrokerAddress, BrokerTls
from edgeship.server.config import EVERYWHERE, DevicesConfig
from edgeship.server.context import ServerContext
from edgeship.server.device_apps import enrolment_app, updates_app
from edgeship.server.disk import write_atomic
from edgeship.server.identity.authority import Authority, load_or_create_key
from edgeship.server.identity.members import Members, Places
from edgeship.server.listening import listen
from edgeship_agent.contract.errors import EdgeshipError

_START_WAIT_S: Final = 10.0
_STOP_WAIT_S: Final = 5.0
_TAKEOVER_WAIT_S: Final = 3.0
_GRACE_S: Final = 2
#: The server's own names: by which it reaches its own broker.
_OWN_NAMES: Final = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger("edgeship.server.devices")


class DeviceSide:
    """Broker and services for devices of other machines.

    Args:
        context: the server's parts; learns who keeps the members.
        config: where to listen, and by which names.
        on_restart: called when the broker was started again.
    """

    def __init__(self, context: ServerContext, config: DevicesConfig, on_restart: Callable[[], None]) -> None:
        self._config = config
        self._context = context
        authority = Authority.open(context.data, context.clock)
        name = _in_url(config.names[0])
        self.places = Places(
            enrol_url=f"https://{name}:{config.enrol_port}",
            server_url=f"https://{name}:{config.port}",
            broker_url=f"mqtts://{name}:{config.broker_port}",
        )
        self._members = Members(context, authority, self.places, self._cut_off)
        context.set_members(self._members)
        folder = context.data / "identity"
        names = tuple(dict.fromkeys((*config.names, *_OWN_NAMES, *_one_address(config.host))))
        key, certificate = authority.server_files(folder, names)
        self._files = MosquittoFiles(
            authority=folder / "authority.pem", certificate=certificate, key=key, revoked=folder / "revoked.pem"
        )
        self._authority = authority
        self._write_revoked()
        address = BrokerAddress(
            host=config.host, port=config.broker_port, port_v311=config.broker_port,
            tls=BrokerTls(authority=self._files.authority, certificate=certificate, key=key),
        )  # fmt: skip
        self.broker = MosquittoBroker(context.data, address, self._files, on_restart, config.websockets_port)
        self._services: list[_Service] = []

    def start(self) -> None:
        """Open both services; the broker is started by itself.

        Raises:
            ConfigError: a port is taken.
            EdgeshipError: a service does not answer.
        """
        for make, port, asks in ((enrolment_app, self._config.enrol_port, False),
                                 (updates_app, self._config.port, True)):  # fmt: skip
            service = _Service(make(self._context), self._config.host, port, self._files, asks_certificate=asks)
            self._services.append(service)
            service.start()

    def stop(self) -> None:
        """Close both services."""
        for service in self._services:
            service.stop()

    def _write_revoked(self) -> None:
        write_atomic(self._files.revoked, self._members.revocation_list())

    def _cut_off(self, device_id: str) -> None:
        """A device was put out: no new connection from now on, and the open one ends."""
        self._write_revoked()
        for service in self._services:
            service.reload_revoked()
        self.broker.reload()
        try:
            self._take_over(device_id)
        except (OSError, ValueError, EdgeshipError) as error:
            _log.error("device %s revoked, its open connection not ended: %s", device_id, error)

    def _take_over(self, device_id: str) -> None:
        """End a device's open connection: a broker throws out a client when another one comes with its name.

        The certificate for it lives as long as this call and is in no database, so that it counts for nobody.
        """
        folder = self._context.data / "identity" / "takeover"
        key = load_or_create_key(folder / "key.pem")
        certificate = folder / "certificate.pem"
        write_atomic(certificate, self._authority.issue_stand_in(device_id, key.public_key()))
        try:
            context = ssl.create_default_context(cafile=str(self._files.authority))
            context.load_cert_chain(str(certificate), str(folder / "key.pem"))
        finally:
            certificate.unlink()
        taken = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=device_id, protocol=mqtt.MQTTv5)
        client.on_connect = lambda *_: taken.set()
        client.tls_set_context(context)
        address = self.broker.address
        client.connect(address.local_host, address.port)
        client.loop_start()
        if not taken.wait(_TAKEOVER_WAIT_S):
            _log.error("device %s revoked, its open connection not ended: the broker does not answer", device_id)
        client.disconnect()
        client.loop_stop()


class _Service:
    """One application in a thread of its own."""

    def __init__(self, app: Litestar, host: str, port: int, files: MosquittoFiles, *, asks_certificate: bool) -> None:
        self._files = files
        self._asks_certificate = asks_certificate
        self._context = self._make_context()
        self._socket = listen(host, port, "--devices-port" if asks_certificate else "--enrol-port")
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, lifespan="on",
            ssl_context_factory=self._given_context,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=f"devices-{port}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        deadline_s = time.monotonic() + _START_WAIT_S
        while not self._server.started:
            if time.monotonic() > deadline_s or not self._thread.is_alive():
                raise EdgeshipError("a service for devices did not start", file=self._files.certificate)
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_WAIT_S)
        self._socket.close()

    def reload_revoked(self) -> None:
        if self._asks_certificate:
            self._context.load_verify_locations(str(self._files.revoked))

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _given_context(self, _config: Any, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        return self._context

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self._files.certificate), str(self._files.key))
        if self._asks_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            context.load_verify_locations(str(self._files.authority))
            context.load_verify_locations(str(self._files.revoked))
        return context


def _one_address(host: str) -> tuple[str, ...]:
    return () if host in EVERYWHERE else (host,)


def _in_url(name: str) -> str:
    return f"[{name}]" if ":" in name else name
