"""The agent's configuration: one TOML file, every key in the tables below, unknown keys refused.

The least that it needs::

    schema_version = 1
    device_id = "press-07"
    target = "raspberry-pi-5"
    state_dir = "/var/lib/edgeship"
    server_url = "http://127.0.0.1:8080"
    broker_url = "mqtt://127.0.0.1:1883"
    root = "/etc/edgeship/root.json"
    goal_key = "/etc/edgeship/goal.pub"

    [tags]
    site = "lab"
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
from edgeship_agent.identity.credentials import Credentials
from edgeship_agent.link.address import parse_address
from edgeship_agent.update.conditions import METERED_POLICIES, Policy, parse_window

if sys.version_info >= (3, 11):  # noqa: UP036 (the agent keeps to 3.10)
    import tomllib
else:
    import tomli as tomllib

CONFIG_VERSION: Final = 1
#: Twice the speed below which a download is aborted as broken.
LEAST_SPEED: Final = 1024
_PATHS: Final = ("state_dir", "root", "goal_key", "author_key")
#: Least values that make sense.
LEAST: Final[dict[str, float]] = {
    "telemetry.window_s": 0.1,
    "telemetry.window_inferences": 20,
    "telemetry.heartbeat_s": 0.1,
    "telemetry.outbox_bytes": 65536,
    "telemetry.resend_s": 0.1,
    "telemetry.remembered_predictions": 1,
    "telemetry.flush_s": 0,
    "serving.threads": 1,
    "serving.spin_us": 0,
    "update.attempts": 1,
    "update.retry_s": 0.01,
    "update.retry_max_s": 0.01,
    "update.disk_reserve_bytes": 0,
    "update.max_bytes_per_s": 0,
    "update.min_battery_percent": 0,
    "update.max_temperature_c": 0,
    "link.reconnect_start_s": 0.01,
    "link.reconnect_max_s": 0.01,
}


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is told to the server, and how often.

    Attributes:
        window_s: a window closes after this time ...
        window_inferences: ... or after this many calls. One with fewer than 20 calls joins the next.
        heartbeat_s: time between two signs of life.
        outbox_bytes: size limit of the windows that wait on the disk; the oldest go first, and are counted.
        resend_s: windows that the server has not acknowledged are sent again after this.
        remembered_predictions: labels and outcomes may come for so many of the newest predictions of a version.
        flush_s: windows are kept in memory and written to the disk once in this time, so that flash memory does not
            wear; a power cut or a kill may cost what was made since and the server had not acknowledged. 0: each one is
            written before it is sent.
    """

    window_s: float = 60.0
    window_inferences: int = 500
    heartbeat_s: float = 30.0
    outbox_bytes: int = 50 * 1024 * 1024
    resend_s: float = 10.0
    remembered_predictions: int = 10_000
    flush_s: float = 900.0


class ServingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model is run.

    Attributes:
        threads: of the runtime, for one inference.
        http: where status and predictions are had by HTTP, for a quick ``curl``: ``127.0.0.1:8080``; empty for nowhere.
        spin_us: how long a worker that has answered looks for the next request, at most, before it sleeps, in µs; 0 for
            not at all. Who asks again within that time need not wait until the system has woken the worker; the core
            is busy for as long. A worker looks only where the last requests came so soon and it may use more than one
            core. ``Client(..., spin_us=...)`` is the same for an application.
    """

    threads: int = 1
    http: str = ""
    spin_us: int = 200


class UpdateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How patient an update is.

    Attributes:
        attempts: tries of one transfer, before the update fails and the old model stays.
        retry_s: first pause between them; it doubles.
        retry_max_s: longest pause between them.
        disk_reserve_bytes: room on the disk that an update leaves free.
        keep_fallback: whether a bundle's full precision is loaded and kept beside the variant that the build chose; it
            is served where that one fails its golden inputs here, and so does the bundle before.
        max_bytes_per_s: speed limit of a download; 0 for none.
        mirror: where the files of bundles are loaded instead of ``server_url``: a caching proxy on site; what they are
            is proven by their digests.
        window: local time of day at which bundles are loaded and models switched: ``22:00-05:30``; empty for any.
            Rollbacks and forced updates do not wait for it, nor for the two conditions below.
        min_battery_percent: on battery, updates wait for this charge or for mains.
        max_temperature_c: updates wait while the hottest zone is above this; 0 for no limit.
        metered: ``never`` loads no bundle over a network that costs by the byte, ``always`` does.
        metered_command: tells whether it does: exits with 0 for yes, with 1 for no; without one NetworkManager is
            asked. Where nobody can tell, the network counts as free.
    """

    attempts: int = 10
    retry_s: float = 1.0
    retry_max_s: float = 60.0
    disk_reserve_bytes: int = 64 * 1024 * 1024
    keep_fallback: bool = True
    max_bytes_per_s: int = 0
    mirror: str = ""
    window: str = ""
    min_battery_percent: float = 0.0
    max_temperature_c: float = 0.0
    metered: str = "always"
    metered_command: tuple[str, ...] = ()

    def policy(self) -> Policy:
        """What updates wait for.

        Raises:
            ConfigError: the window is no time of day, or ``metered`` neither of its words.
        """
        if self.metered not in METERED_POLICIES:
            expected = " or ".join(METERED_POLICIES)
            raise ConfigError("unknown word", key="update.metered", expected=expected, got=self.metered)
        return Policy(
            window=parse_window(self.window),
            min_battery_percent=self.min_battery_percent,
            max_temperature_c=self.max_temperature_c,
            may_be_metered=self.metered == "always",
        )


class LinkConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the broker is sought when it is away.

    Attributes:
        reconnect_start_s: first pause; it doubles, and each is cut by up to half at random.
        reconnect_max_s: longest pause.
    """

    reconnect_start_s: float = 0.2
    reconnect_max_s: float = 60.0


class IdentityConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Membership of a fleet, as ``edgeship-agent enroll`` wrote it.

    Attributes:
        enrol_url: where the certificate is renewed: ``https://HOST:PORT``; empty for a device without an identity.
        folder: of key and certificate; empty for ``identity`` in the state directory.
    """

    enrol_url: str = ""
    folder: str = ""


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``agent.toml``; relative paths are taken from the folder of the file.

    Attributes:
        schema_version: of this format: 1.
        device_id: the device's name in the fleet: 1–64 letters, digits, ``.``, ``_`` or ``-``; no other device has it.
        target: which variants of a bundle this device takes: the ``id`` of a target.
        state_dir: everything that the agent remembers; put it where an update of the system leaves it alone.
        server_url: where bundles come from: ``https://HOST:PORT``, or ``http://`` on the server's own machine.
        root: root metadata of the update repository: a copy of ``DATA/trust/root.json`` of the server.
        goal_key: the key that signs goal states: a copy of ``DATA/trust/goal.pub`` of the server.
        broker_url: where goals come from and telemetry goes: ``mqtts://HOST:PORT``, ``wss://HOST:PORT/PATH`` (MQTT over
            WebSockets), or ``mqtt://`` on the server's own machine.
        author_key: the key whose bundles ``edgeship-agent install`` takes: a file of 64 hexadecimal digits; needed for
            that alone.
        allow_volatile_state: take a ``state_dir`` in memory or on an overlay, which a restart may empty: to try out.
        launcher: words put before the command line of every child process, such as an emulator.
        tags: name → value; what rollouts filter by. An operator's tags on the server win.
        identity: what this device shows to its fleet, for addresses that ask for TLS.
        accepts: model → hash of the output contract that the application takes, or a list of them; a model that is
            not named may have any.
    """

    schema_version: int = CONFIG_VERSION
    device_id: str
    target: str
    state_dir: Path
    server_url: str
    root: Path
    goal_key: Path
    broker_url: str = "mqtt://127.0.0.1:1883"
    author_key: Path | None = None
    allow_volatile_state: bool = False
    launcher: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    accepts: dict[str, str | tuple[str, ...]] = field(default_factory=dict)

    @property
    def credentials(self) -> Credentials | None:
        """Files of this device's identity; None where it has none."""
        if not (self.identity.enrol_url or self.identity.folder):
            return None
        return Credentials.inside(self.state_dir / (self.identity.folder or "identity"))

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
    paths = {name: getattr(config, name) for name in _PATHS}
    config = msgspec.structs.replace(
        config, **{name: folder / path for name, path in paths.items() if path is not None}
    )
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
    for name, url in (("server_url", config.server_url), ("update.mirror", config.update.mirror or config.server_url)):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("not a server address", file=path, key=name, expected="http://HOST:PORT", got=url)
    speed = config.update.max_bytes_per_s
    if 0 < speed < LEAST_SPEED:
        raise ConfigError(
            "slower than what counts as a broken transfer",
            file=path,
            key="update.max_bytes_per_s",
            expected=f"0, or ≥ {LEAST_SPEED}",
            got=speed,
        )
    try:
        config.update.policy()
    except ConfigError as error:
        raise ConfigError(error.message, file=path, key=error.key, expected=error.expected, got=error.got) from error
    for key, least in LEAST.items():
        table, _, name = key.partition(".")
        value = getattr(getattr(config, table), name)
        if value < least:
            raise ConfigError("too small", file=path, key=key, expected=f"≥ {least:g}", got=f"{value:g}")
