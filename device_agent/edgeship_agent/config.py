"""The agent's configuration: one TOML file, each key documented here, unknown keys refused.

::

    schema_version = 1
    device_id = "press-07"            # 1–64 letters, digits, '.', '_', '-'
    target = "raspberry-pi-5"         # which variants of a bundle this device takes
    state_dir = "/var/lib/edgeship"   # everything that the agent remembers; survives an update of the system
    server_url = "http://fleet:8080"  # where bundles come from
    broker_url = "mqtt://fleet:1883"  # where goals come from and telemetry goes
    root = "/etc/edgeship/root.json"  # root of the update repository (DATA/trust/root.json of the server)
    goal_key = "/etc/edgeship/goal.pub"  # key that signs goal states (DATA/trust/goal.pub of the server)
    launcher = []                     # put before every child's command line, such as an emulator

    [tags]                            # what rollouts filter by
    site = "lab"

    [telemetry]
    window_s = 60.0                   # a window closes after this time ...
    window_inferences = 500           # ... or after this many calls
    heartbeat_s = 30.0
    outbox_bytes = 52428800           # size cap of the outbox; the oldest windows go first, and are counted
    resend_s = 10.0                   # windows that the server has not acknowledged are sent again

    [serving]
    threads = 1                       # per inference

    [update]
    attempts = 10                     # tries of one transfer
    retry_s = 1.0                     # first pause between them; doubles
    retry_max_s = 60.0
    disk_reserve_bytes = 67108864     # room that an update leaves free

    [link]
    reconnect_start_s = 0.2
    reconnect_max_s = 60.0            # longest pause between attempts to reach the broker

    [accepts]                         # model → hash of the output contract that the application takes (or a list)
    digits = "9f2c…"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.topics import check_device_id
from edgeship_agent.link.address import parse_address

if sys.version_info >= (3, 11):  # noqa: UP036 (the agent keeps to 3.10)
    import tomllib
else:
    import tomli as tomllib

CONFIG_VERSION: Final = 1
_PATHS: Final = ("state_dir", "root", "goal_key")


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[telemetry]``."""

    window_s: float = 60.0
    window_inferences: int = 500
    heartbeat_s: float = 30.0
    outbox_bytes: int = 50 * 1024 * 1024
    resend_s: float = 10.0


class ServingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[serving]``."""

    threads: int = 1


class UpdateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[update]``."""

    attempts: int = 10
    retry_s: float = 1.0
    retry_max_s: float = 60.0
    disk_reserve_bytes: int = 64 * 1024 * 1024


class LinkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[link]``."""

    reconnect_start_s: float = 0.2
    reconnect_max_s: float = 60.0


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``agent.toml``; relative paths are taken from the folder of the file."""

    schema_version: int = CONFIG_VERSION
    device_id: str
    target: str
    state_dir: Path
    server_url: str
    root: Path
    goal_key: Path
    broker_url: str = "mqtt://127.0.0.1:1883"
    launcher: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    accepts: dict[str, str | tuple[str, ...]] = field(default_factory=dict)

    def accepted(self) -> dict[str, tuple[str, ...]]:
        """Model → hashes of the output contracts that its application takes."""
        return {model: (value,) if isinstance(value, str) else value for model, value in self.accepts.items()}


def read_config(path: Path) -> AgentConfig:
    """Read ``agent.toml``.

    Raises:
        ConfigError: the file cannot be read, has an unknown or missing key, or a value that cannot be used.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=path, next_step="write agent.toml, or name it with --config FILE"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", file=path) from error
    try:
        config = msgspec.convert(document, AgentConfig, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise ConfigError(
            _explain(str(error)), file=path, next_step="pydoc edgeship_agent.config lists every key"
        ) from error
    folder = path.resolve().parent
    config = msgspec.structs.replace(config, **{name: folder / getattr(config, name) for name in _PATHS})
    _check(config, path)
    return config


def _decode_path(kind: type, value: object) -> object:
    if kind is not Path or not isinstance(value, str):
        raise ValueError("Expected the path of a file as text")
    return Path(value).expanduser()


def _explain(message: str) -> str:
    return message.replace("Object contains unknown field", "unknown key").replace(
        "Object missing required field", "missing key"
    )


def _check(config: AgentConfig, path: Path) -> None:
    if config.schema_version != CONFIG_VERSION:
        raise ConfigError(
            "another version of the format",
            file=path,
            key="schema_version",
            expected=CONFIG_VERSION,
            got=config.schema_version,
        )
    try:
        check_device_id(config.device_id)
    except ContractError as error:
        raise ConfigError(error.message, file=path, key="device_id", expected=error.expected, got=error.got) from error
    address = parse_address(config.broker_url)
    if not address.host:
        raise ConfigError("no host", file=path, key="broker_url", got=config.broker_url)
    parts = urlsplit(config.server_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "not a server address", file=path, key="server_url", expected="http://HOST:PORT", got=config.server_url
        )
    for key, value, least in _numbers(config):
        if value < least:
            raise ConfigError("too small", file=path, key=key, expected=f"≥ {least:g}", got=f"{value:g}")


def _numbers(config: AgentConfig) -> tuple[tuple[str, float, float], ...]:
    """(key, value, least value that makes sense)."""
    return (
        ("telemetry.window_s", config.telemetry.window_s, 0.1),
        ("telemetry.window_inferences", config.telemetry.window_inferences, 20),
        ("telemetry.heartbeat_s", config.telemetry.heartbeat_s, 0.1),
        ("telemetry.outbox_bytes", config.telemetry.outbox_bytes, 65536),
        ("telemetry.resend_s", config.telemetry.resend_s, 0.1),
        ("serving.threads", config.serving.threads, 1),
        ("update.attempts", config.update.attempts, 1),
        ("update.retry_s", config.update.retry_s, 0.01),
        ("update.retry_max_s", config.update.retry_max_s, 0.01),
        ("update.disk_reserve_bytes", config.update.disk_reserve_bytes, 0),
        ("link.reconnect_start_s", config.link.reconnect_start_s, 0.01),
        ("link.reconnect_max_s", config.link.reconnect_max_s, 0.01),
    )
