"""``edgeship-agent doctor``: one line per check, and for each failure the command that mends it."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from edgeship_agent.config import AgentConfig, read_config
from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError
from edgeship_agent.contract.manifest import STAND_INS
from edgeship_agent.identity.credentials import client_context
from edgeship_agent.identity.keys import certificate_in, day, name_in, validity_s
from edgeship_agent.link.address import parse_address
from edgeship_agent.runtime import installed_runtimes
from edgeship_agent.supervisor.facts import gather_facts
from edgeship_agent.supervisor.lasting import check_lasting
from edgeship_agent.supervisor.places import Places
from edgeship_agent.supervisor.status import is_alive, read_status
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import EARLIEST_S, read_public_key

_TIMEOUT_S: Final = 3.0
_STALE_S: Final = 10.0
_RUN_SERVER: Final = "edgeship server run --data DATA, on the server"
_ENROL: Final = "edgeship-agent enroll URL --token TOKEN --target TARGET, with a token of edgeship devices enroll"
#: What every server answers to every device.
_SERVED_TO_DEVICES: Final = "/tuf/metadata/timestamp.json"


class Check(Struct, frozen=True, kw_only=True):
    """One line: ``ok``, ``warn`` or ``fail``; ``mend`` is a command or an action."""

    name: str
    state: str
    detail: str
    mend: str = ""


def examine(path: Path) -> list[Check]:
    """Every check, in the order in which things depend on each other; what needs a broken thing is left out."""
    try:
        config = read_config(path)
    except ConfigError as error:
        return [_failed("configuration", error.sentence(), error.next_step or f"edit {path}")]
    return [_passed("configuration", str(path)), *_examine_device(config, path)]


def _examine_device(config: AgentConfig, path: Path) -> Iterator[Check]:
    checks: tuple[Callable[[AgentConfig, Path], Check], ...] = (
        _check_state_directory,
        _check_goal_key,
        _check_root,
        _check_identity,
        _check_runtimes,
        _check_room,
        _check_clock,
        _check_server,
        _check_broker,
        _check_agent,
        _check_model,
        _check_goals,
    )
    for check in checks:
        yield check(config, path)


def _check_state_directory(config: AgentConfig, _path: Path) -> Check:
    folder = config.state_dir
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return _failed(
            "state directory", f"{folder} cannot be written", f"sudo install -d -o $USER -m 700 {config.state_dir}"
        )
    try:
        check_lasting(folder)
    except ConfigError as error:
        if not config.allow_volatile_state:
            return _failed("state directory", error.sentence(), error.next_step or "")
        return _warned("state directory", f"{error.got}: a restart may empty it", "name a folder on a disk")
    return _passed("state directory", str(config.state_dir))


def _check_goal_key(config: AgentConfig, _path: Path) -> Check:
    try:
        key = read_public_key(config.goal_key)
    except ConfigError as error:
        return _failed("goal key", error.sentence(), f"copy DATA/trust/goal.pub of the server to {config.goal_key}")
    return _passed("goal key", f"{key.hex()[:16]}…")


def _check_root(config: AgentConfig, _path: Path) -> Check:
    mend = f"copy DATA/trust/root.json of the server to {config.root}"
    try:
        document: dict[str, Any] = msgspec.json.decode(config.root.read_bytes(), type=dict[str, Any])
    except OSError as error:
        return _failed("root of trust", f"{config.root}: {error.strerror}", mend)
    except msgspec.MsgspecError:
        return _failed("root of trust", f"{config.root}: not JSON", mend)
    signed = document.get("signed")
    if not isinstance(signed, dict) or signed.get("_type") != "root":
        return _failed("root of trust", f"{config.root}: not root metadata", mend)
    return _passed("root of trust", f"version {signed.get('version')}")


def _check_runtimes(_config: AgentConfig, _path: Path) -> Check:
    runtimes = installed_runtimes()
    if not runtimes:
        return _failed("runtimes", "no inference runtime is installed", "pip install edgeship-agent[litert]")
    said = ", ".join(f"{name} {version}" for name, version in sorted(runtimes.items()))
    for runtime, other in STAND_INS.items():
        if other in runtimes and runtime not in runtimes:
            mend = f"pip install edgeship-agent[{runtime}], where this machine has a wheel of it"
            return _warned("runtimes", f"{said}; it stands in for {runtime}: slow, and without newer operators", mend)
    return _passed("runtimes", said)


def _check_room(config: AgentConfig, _path: Path) -> Check:
    if not config.state_dir.exists():
        return _passed("disk", "nothing stored yet")
    free_bytes = gather_facts(config).disk_free_bytes
    if free_bytes <= 0:
        return _failed(
            "disk", "less than the reserve is free", f"free space on the disk of {config.state_dir} (df -h shows it)"
        )
    return _passed("disk", f"{free_bytes / 1e6:.0f} MB for updates")


def _check_clock(config: AgentConfig, _path: Path) -> Check:
    try:
        floor_s = max(EARLIEST_S, _state(config).now.time_floor_s)
    except ContractError as error:
        return _failed("clock", error.sentence(), f"move {error.file} away; the server sends the goal again")
    behind_s = floor_s - time.time()
    if behind_s > 60:
        return _warned("clock", f"at least {behind_s / 86400:.1f} days behind", "sudo timedatectl set-ntp true")
    return _passed("clock", "not behind any time that was signed")


def _check_server(config: AgentConfig, _path: Path) -> Check:
    parts = urlsplit(config.server_url)
    try:
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=_TIMEOUT_S, context=_tls(config)
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", _SERVED_TO_DEVICES)
            with connection.getresponse() as response:
                status = response.status
    except (OSError, http.client.HTTPException) as error:
        return _failed("server", f"{config.server_url}: {_reason(error)}", _mend(error))
    except ConfigError as error:
        return _failed("server", error.sentence(), error.next_step or _RUN_SERVER)
    if status != 200:
        return _failed("server", f"{config.server_url} answered {status}", "check server_url in the configuration")
    return _passed("server", config.server_url)


def _check_broker(config: AgentConfig, _path: Path) -> Check:
    address = parse_address(config.broker_url)
    try:
        with socket.create_connection((address.host, address.port), timeout=_TIMEOUT_S) as plain:
            if address.tls:
                _tls(config).wrap_socket(plain, server_hostname=address.host).close()
    except OSError as error:
        return _failed("broker", f"{config.broker_url}: {_reason(error)}", _mend(error))
    except ConfigError as error:
        return _failed("broker", error.sentence(), error.next_step or _RUN_SERVER)
    return _passed("broker", config.broker_url)


def _check_identity(config: AgentConfig, _path: Path) -> Check:
    credentials = config.credentials
    if credentials is None:
        return _passed("identity", "none: server and broker must be on this machine, or behind a tunnel")
    try:
        client_context(credentials, time.time(), EARLIEST_S)
        certificate = certificate_in(credentials.identity)
    except ConfigError as error:
        return _failed("identity", error.sentence(), _ENROL)
    until_s = validity_s(certificate)[1]
    who = f"{name_in(certificate)}, until {day(until_s)}"
    if max(time.time(), EARLIEST_S) >= until_s:
        return _failed("identity", f"{who}: over", _ENROL)
    if name_in(certificate) != config.device_id:
        return _failed("identity", f"{who}: not {config.device_id}", f"device_id in the configuration, or {_ENROL}")
    return _passed("identity", who)


def _tls(config: AgentConfig) -> ssl.SSLContext:
    credentials = config.credentials
    return ssl.create_default_context() if credentials is None else client_context(credentials, time.time(), EARLIEST_S)


def _reason(error: Exception) -> str:
    return getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)


def _mend(error: Exception) -> str:
    """A server that answers and is not believed, or does not believe us, is another matter than one that is away."""
    return _ENROL if isinstance(error, ssl.SSLError) else _RUN_SERVER


def _check_agent(config: AgentConfig, path: Path) -> Check:
    mend = f"edgeship-agent run --config {path}"
    status = read_status(Places(config.state_dir).status)
    if status is None or not is_alive(int(status["pid"])):
        return _failed("agent", "not running", mend)
    age_s = time.time() - float(status["written_at_s"])
    if age_s > _STALE_S:
        return _failed(
            "agent", f"process {status['pid']} has said nothing for {age_s:.0f} s", f"kill {status['pid']}; {mend}"
        )
    if not status["connected"]:
        return _warned("agent", f"process {status['pid']} runs without a broker", "see the line about the broker")
    return _passed("agent", f"process {status['pid']}, connected")


def _check_model(config: AgentConfig, path: Path) -> Check:
    status = read_status(Places(config.state_dir).status) or {}
    running = status.get("running") or []
    if not running:
        return _warned(
            "model",
            "this device serves no model",
            "edgeship rollouts create MODEL VERSION --stages 100%, on the server",
        )
    from edgeship_agent.serving.client import Client  # numpy: only here

    try:
        with Client(Places(config.state_dir).socket, timeout_s=_TIMEOUT_S) as client:
            answer = client.status()
    except EdgeshipError as error:
        return _failed("model", error.sentence(), f"edgeship-agent run --config {path}")
    return _passed("model", f"{answer.model} {answer.version}, {answer.variant}, {answer.inferences} calls answered")


def _check_goals(config: AgentConfig, _path: Path) -> Check:
    try:
        refused = _state(config).now.refused_goals
    except ContractError as error:
        return _failed("goal states", error.sentence(), f"move {error.file} away; the server sends the goal again")
    if refused:
        said = ", ".join(f"{count} × {reason}" for reason, count in sorted(refused.items()))
        return _warned("goal states", f"refused: {said}", "compare goal_key with DATA/trust/goal.pub of the server")
    return _passed("goal states", "none refused")


def _state(config: AgentConfig) -> StateFile:
    return StateFile(Places(config.state_dir).state)


def _passed(name: str, detail: str) -> Check:
    return Check(name=name, state="ok", detail=detail)


def _warned(name: str, detail: str, mend: str) -> Check:
    return Check(name=name, state="warn", detail=detail, mend=mend)


def _failed(name: str, detail: str, mend: str) -> Check:
    return Check(name=name, state="fail", detail=detail, mend=mend)
