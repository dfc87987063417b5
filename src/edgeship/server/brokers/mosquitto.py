"""The broker for real devices: mosquitto, set up so that each device reaches its own topics and no other.

TLS 1.2 or newer and a certificate of the fleet's authority are asked of everybody, the server too; the certificate's
name is the user's name and the client id, and the access rules are made of it. Source: mosquitto.conf(5), version 2.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship.server.brokers.child import ChildBroker
from edgeship.server.brokers.port import BrokerAddress
from edgeship_agent.contract.enrolment import SERVER_NAME
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.topics import ROOT, TOPIC_VERSION, Kind
from edgeship_agent.contract.wire import MAX_MESSAGE_BYTES

#: Where Debian puts it, which is not on every user's PATH.
_SYSTEM_FOLDERS: Final = "/usr/sbin:/usr/local/sbin"
#: Room for the topic and the properties around the longest message.
_ENVELOPE_BYTES: Final = 4096
_HEAD: Final = """\
# Written by the server at every start; changes are lost.
per_listener_settings false
allow_anonymous false
persistence false
acl_file {acl_file}
log_type error
log_type warning
# whoever runs the server: started as root it would become a user who cannot read the key
user {user}
connection_messages false
# the defaults drop messages silently after they were acknowledged
max_inflight_messages 200
max_queued_messages 10000
max_packet_size {message_bytes}
"""
_LISTENER: Final = """
listener {port} {host}
protocol {protocol}
cafile {authority}
certfile {certificate}
keyfile {key}
crlfile {revoked}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""


class MosquittoFiles(Struct, frozen=True, kw_only=True):
    """What the broker reads: PEM files.

    Attributes:
        revoked: revocation list; written anew by the server, then :meth:`MosquittoBroker.reload`.
    """

    authority: Path
    certificate: Path
    key: Path
    revoked: Path


def access_rules() -> str:
    """Who may do what: the server everything of the contract, a device its own topics in their direction."""
    topics = f"{ROOT}/{TOPIC_VERSION}"
    lines = ["# Written by the server at every start; changes are lost.", f"user {SERVER_NAME}"]
    lines += [f"topic readwrite {topics}/#", ""]
    lines += [f"pattern {'write' if kind.from_device else 'read'} {topics}/%u/{kind.value}" for kind in Kind]
    return "\n".join(lines) + "\n"


def broker_config(address: BrokerAddress, files: MosquittoFiles, acl_file: Path, websockets_port: int = 0) -> str:
    """The broker's configuration file.

    Args:
        address: of MQTT over TCP.
        files: what it reads.
        acl_file: the access rules.
        websockets_port: of MQTT over WebSockets, for networks that let nothing else through; 0 for none.
    """
    head = _HEAD.format(
        acl_file=acl_file, user=pwd.getpwuid(os.geteuid()).pw_name, message_bytes=MAX_MESSAGE_BYTES + _ENVELOPE_BYTES
    )  # fmt: skip
    ports = {"mqtt": address.port, "websockets": websockets_port}
    return head + "".join(
        _LISTENER.format(
            port=port, protocol=protocol, host=address.host,
            authority=files.authority, certificate=files.certificate, key=files.key, revoked=files.revoked,
        )
        for protocol, port in ports.items() if port
    )  # fmt: skip


def find_mosquitto() -> str:
    """Path of the program.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SYSTEM_FOLDERS)
    if found is None:
        raise ConfigError("devices on other machines need mosquitto, which is not installed", key="--devices-host",
                          next_step="apt-get install mosquitto")  # fmt: skip
    return found


class MosquittoBroker(ChildBroker):
    """Runs mosquitto and keeps it running.

    Args:
        directory: where its configuration is written.
        address: where it listens; with the files by which the server itself connects.
        files: what it reads.
        on_restart: called (from the watching thread) when it was started again.
        websockets_port: of MQTT over WebSockets; 0 for none.
    """

    def __init__(
        self,
        directory: Path,
        address: BrokerAddress,
        files: MosquittoFiles,
        on_restart: Callable[[], None],
        websockets_port: int = 0,
    ) -> None:
        super().__init__("mosquitto", directory / "mosquitto.conf", address, on_restart)
        self._files = files
        self._websockets_port = websockets_port
        self._acl_file = directory / "mosquitto.acl"
        self._program = find_mosquitto()

    def config(self) -> str:
        """See :func:`broker_config`; the access rules are written beside it."""
        self._acl_file.write_text(access_rules(), encoding="utf-8")
        # mosquitto refuses rules that others could change
        self._acl_file.chmod(0o600)
        return broker_config(self._address, self._files, self._acl_file, self._websockets_port)

    def command(self) -> list[str]:
        """Mosquitto, tied to this process."""
        tether = [sys.executable, "-m", "edgeship.server.brokers.tethered", str(os.getpid())]
        return [*tether, self._program, "-c", str(self._config_file)]

    @property
    def _ports(self) -> set[int]:
        return super()._ports | ({self._websockets_port} if self._websockets_port else set())

    def reload(self) -> None:
        """Read certificates and revocation list again."""
        if pid := self.pid:
            os.kill(pid, signal.SIGHUP)
