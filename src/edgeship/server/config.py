"""What the server is told: command line and configuration file in one frozen value."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 (told apart, not bound)


class DriftConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When drift is judged and when it becomes an incident.

    Attributes:
        recent_windows: so many of a device's newest windows are merged and compared.
        reference_windows: so many of its first windows of a version become its own reference...
        reference_samples: ...and they must hold so many samples.
        min_samples: fewer samples than this in the merged windows give no judgement.
        alarm_hot: an incident opens after so many hot evaluations...
        alarm_of: ...of so many in a row.
    """

    recent_windows: int = 5
    reference_windows: int = 5
    reference_samples: int = 300
    min_samples: int = 100
    alarm_hot: int = 3
    alarm_of: int = 5


class DevicesConfig(Struct, frozen=True, kw_only=True):
    """Where devices on other machines come in; TLS throughout.

    Attributes:
        host: address that is listened on.
        names: host names and addresses that devices know this server by; the first is told to them.
        port: of bundles and update metadata; a certificate of the fleet is asked for.
        enrol_port: of the enrolment service; a token is asked for.
        broker_port: of the broker; a certificate of the fleet is asked for.
        websockets_port: of the broker's MQTT over WebSockets; 0 for none.
    """

    host: str
    names: tuple[str, ...]
    port: int = 8443
    enrol_port: int = 8444
    broker_port: int = 8883
    websockets_port: int = 0


class ServerConfig(Struct, frozen=True, kw_only=True):
    """Everything that :func:`edgeship.server.process.run_server` needs.

    Attributes:
        data: folder of the database, keys, blobs and the server's own files.
        port: of the web interface; 0 takes a free one.
        broker_url: an external broker (``mqtt://host:port``); empty for the embedded one.
        broker_port: of the embedded broker; 0 takes a free one.
        tick_s: time between two evaluations of rollouts and drift.
        silence_s: a device that was not heard for so long is offline.
        accept_baseline: the bundle's baseline counts as the device's accepted reference.
        devices: for devices on other machines; None where all are on this one.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    broker_url: str = ""
    broker_port: int = 1883
    tick_s: float = 1.0
    silence_s: float = 90.0
    accept_baseline: bool = False
    devices: DevicesConfig | None = None
    drift: DriftConfig = DriftConfig()


class ConfigFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``--config FILE``: the knobs that have no option of their own. Missing keys keep their defaults.

    Attributes:
        schema_version: of this format: 1.
        tick_s: time between two evaluations of rollouts and drift.
        silence_s: a device that was not heard for so long is offline.
        accept_baseline: drift from the bundle's baseline opens incidents, as with ``--accept-baseline``. Otherwise only
            drift from the device's own first windows does.
    """

    schema_version: int = 1
    tick_s: float = 1.0
    silence_s: float = 90.0
    accept_baseline: bool = False
    drift: DriftConfig = DriftConfig()


def read_config_file(path: Path) -> ConfigFile:
    """Read ``--config``.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, a wrong type or a number out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        config = msgspec.convert(document, ConfigFile)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(str(error), file=path, next_step=f"known keys: {_known_keys()}") from error
    check_config_file(config, path)
    return config


def _known_keys() -> str:
    top = [name for name in ConfigFile.__struct_fields__ if name != "drift"]
    return ", ".join([*top, *(f"drift.{name}" for name in DriftConfig.__struct_fields__)])


def check_config_file(config: ConfigFile, path: Path) -> None:
    """Refuse numbers that cannot work.

    Raises:
        ConfigError: names the key and what it may be.
    """
    if config.schema_version != 1:
        raise ConfigError("unknown version", file=path, key="schema_version", expected=1, got=config.schema_version)
    positive = {"tick_s": config.tick_s, "silence_s": config.silence_s}
    positive |= {f"drift.{name}": getattr(config.drift, name) for name in DriftConfig.__struct_fields__}
    for key, value in positive.items():
        if not value > 0:
            raise ConfigError("out of range", file=path, key=key, expected="> 0", got=value)
    if config.drift.alarm_hot > config.drift.alarm_of:
        raise ConfigError("out of range", file=path, key="drift.alarm_hot", expected=f"≤ {config.drift.alarm_of}")


def devices_config(
    host: str, names: Sequence[str], ports: tuple[int, int, int, int] = (8443, 8444, 8883, 0)
) -> DevicesConfig | None:
    """What ``--devices-host`` and its companions mean.

    Args:
        host: empty for no devices on other machines.
        names: what devices call this server; the host itself where it is one address.
        ports: of bundles, of enrolment, of the broker, and of its WebSockets (0 for none).

    Raises:
        ConfigError: the host is every address, and no name says which of them devices shall use.

    >>> devices_config("192.0.2.7", ()).names
    ('192.0.2.7',)
    """
    if not host:
        if names:
            raise ConfigError("needs --devices-host too", key="--devices-name", expected="--devices-host ADDRESS")
        return None
    if not names and host in EVERYWHERE:
        raise ConfigError("by which name do devices reach this server?", key="--devices-name",
                          expected="a host name or address", next_step="--devices-name fleet.example.org")  # fmt: skip
    port, enrol_port, broker_port, websockets_port = ports
    if not broker_port:
        raise ConfigError("devices keep the broker's address, so its port has to stay", key="--broker-port",
                          expected="1–65535", got=0)  # fmt: skip
    return DevicesConfig(host=host, names=tuple(names) or (host,), port=port, enrol_port=enrol_port,
                         broker_port=broker_port, websockets_port=websockets_port)  # fmt: skip


def check_host(host: str) -> None:
    """Refuse to listen where others can reach.

    Raises:
        ConfigError: not a loopback address.

    >>> check_host("127.0.0.1")
    """
    if host not in LOOPBACK:
        raise ConfigError(
            "refused: the dashboard has no login yet, so it listens on this machine only",
            key="--host",
            expected="127.0.0.1",
            got=host,
            next_step="for devices: --devices-host ADDRESS; for people: ssh -L 8080:127.0.0.1:8080 SERVER",
        )
