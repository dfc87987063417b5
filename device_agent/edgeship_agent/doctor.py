"""``edgeship-agent doctor``: one line per check, and for each failure the command that mends it."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from msgspec import Struct

from edgeship_agent.config import AgentConfig, read_config
from edgeship_agent.contract.errors import (
    ConfigError,
    ContractError,
    EdgeshipError,
    TransferError,
    VerificationError,
)
from edgeship_agent.contract.manifest import STAND_INS
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode
from edgeship_agent.identity.credentials import client_context
from edgeship_agent.identity.keys import certificate_in, day, name_in, validity_s
from edgeship_agent.link.address import parse_address
from edgeship_agent.link.retained import look_up_retained
from edgeship_agent.runtime import installed_runtimes
from edgeship_agent.supervisor.facts import gather_facts
from edgeship_agent.supervisor.http_door import parse_listen
from edgeship_agent.supervisor.lasting import check_lasting
from edgeship_agent.supervisor.places import Places
from edgeship_agent.supervisor.status import is_alive, read_status
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import EARLIEST_S, read_public_key, verify_goal

_TIMEOUT_S: Final = 3.0
_STALE_S: Final = 10.0
_RUN_SERVER: Final = "edgeship server run --data DATA, on the server"
_PIP: Final = f"{sys.executable} -m pip install"
_SET_CLOCK: Final = "sudo timedatectl set-ntp true"
#: Clocks that differ by more are worth a word.
_SKEW_S: Final = 120.0
#: What every server answers to every device.
_TIMESTAMP, _ROOT = "/tuf/metadata/timestamp.json", "/tuf/metadata/{}.root.json"
#: Source: OpenSSL, X509_STORE_CTX_get_error(3): not yet valid, expired; another host name, another address.
_OUT_OF_DATE, _OTHER_NAME = frozenset({9, 10}), frozenset({62, 64})
#: How long a broker may take to say that it does not take our certificate: in TLS 1.3 that comes after the handshake.
_SECOND_THOUGHTS_S: Final = 1.0
#: How long a goal that a broker keeps may take once it was asked for.
_GOAL_WAIT_S: Final = 1.0
#: CONNECT without a name, a session and properties, DISCONNECT. Source: MQTT 5.0, sections 3.1 and 3.14.
_HELLO: Final = bytes.fromhex("100d 0004 4d515454 05 02 003c 00 0000")
_CONNACK, _BYE = b"\x20", bytes.fromhex("e000")


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
    here: tuple[Callable[[AgentConfig, Path], Check], ...] = (
        _check_state_directory,
        _check_goal_key,
        _check_runtimes,
        _check_room,
        _check_clock,
        _check_http,
    )
    found = [check(config, path) for check in here]
    yield from found
    root, identity = _check_root(config, path), _check_identity(config, path)
    yield from (root, identity)
    if identity.state != "fail":
        server = _check_server(config, path)
        yield server
        if server.state != "fail" and root.state != "fail":
            yield _check_fleet(config, path)
        broker = _check_broker(config, path)
        yield broker
        if broker.state != "fail" and all(check.state != "fail" for check in found if check.name == "goal key"):
            yield _check_kept_goal(config, path)
    for check in (_check_agent, _check_model, _check_goals):
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
        return _failed("runtimes", "no inference runtime is installed", f"{_PIP} 'edgeship-agent[litert]'")
    said = ", ".join(f"{name} {version}" for name, version in sorted(runtimes.items()))
    for runtime, other in STAND_INS.items():
        if other in runtimes and runtime not in runtimes:
            mend = f"{_PIP} 'edgeship-agent[{runtime}]', where this machine has a wheel of it"
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
        return _warned("clock", f"at least {behind_s / 86400:.1f} days behind", _SET_CLOCK)
    return _passed("clock", "not behind any time that was signed")


def _check_http(config: AgentConfig, _path: Path) -> Check:
    listen = config.serving.http
    if not listen:
        return _passed("http", "off")
    try:
        address = parse_listen(listen)
    except ConfigError as error:
        return _failed("http", error.sentence(), error.next_step or "")
    if _running_pid(config):
        return _passed("http", f"{listen}, the agent's")
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            mend = f"another port in serving.http; who has this one: sudo ss -ltnp 'sport = :{address[1]}'"
            return _failed("http", f"{listen}: {error.strerror}", mend)
    return _passed("http", f"{listen}, free")


def _check_server(config: AgentConfig, path: Path) -> Check:
    try:
        status, headers, _ = _get(config, _TIMESTAMP)
    except (OSError, http.client.HTTPException) as error:
        return _failed(
            "server", f"{config.server_url}: {_reason(config, error)}", _mend(config, path, "server_url", error)
        )
    if status != 200:
        return _failed("server", f"{config.server_url} answered {status}", "check server_url in the configuration")
    date = email.utils.parsedate_tz(headers.get("Date", ""))
    ahead_s = time.time() - email.utils.mktime_tz(date) if date else 0.0
    if abs(ahead_s) > _SKEW_S:
        apart = f"{abs(ahead_s) / 60:.0f} min" if abs(ahead_s) < 86400 else f"{abs(ahead_s) / 86400:.0f} days"
        said = f"this clock is {apart} {'ahead of' if ahead_s > 0 else 'behind'} its clock"
        return _warned("server", f"{config.server_url}; {said}", _SET_CLOCK)
    return _passed("server", config.server_url)


def _check_fleet(config: AgentConfig, _path: Path) -> Check:
    """Whether the keys that this device's root names have signed what the server serves."""
    mend = f"copy DATA/trust/root.json and DATA/trust/goal.pub of this server to {config.root.parent}"
    try:
        root = msgspec.json.decode(config.root.read_bytes(), type=_Root).signed
        trusted = set(root.roles["timestamp"].keyids)
        served = msgspec.json.decode(_get(config, _TIMESTAMP)[2], type=_Signatures)
        if trusted & {signature.keyid for signature in served.signatures}:
            return _passed("trust", "the root of trust is this server's")
        # its keys may have changed since: then there is a root that follows ours
        if _get(config, _ROOT.format(root.version + 1))[0] == 200:
            return _passed("trust", "the server has a newer root of trust, which the next update takes")
    except (OSError, KeyError, http.client.HTTPException, msgspec.MsgspecError) as error:
        return _failed("trust", f"cannot be compared: {error}", mend)
    return _failed("trust", f"{config.root} is of another fleet than {config.server_url}", mend)


class _Signature(Struct):
    keyid: str


class _Signatures(Struct):
    signatures: list[_Signature]


class _Role(Struct):
    keyids: list[str]


class _SignedRoot(Struct):
    version: int
    roles: dict[str, _Role]


class _Root(Struct):
    signed: _SignedRoot


def _get(config: AgentConfig, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of what the server serves."""
    parts = urlsplit(config.server_url)
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=_TIMEOUT_S, context=_tls(config)
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status, response.headers, response.read()


def _check_broker(config: AgentConfig, path: Path) -> Check:
    address = parse_address(config.broker_url)
    try:
        with socket.create_connection((address.host, address.port), timeout=_TIMEOUT_S) as plain:
            if address.tls:
                with _tls(config).wrap_socket(plain, server_hostname=address.host) as wrapped:
                    _await_refusal(wrapped)
            elif not _speaks_mqtt(plain):
                mend = "check broker_url: mqtts://HOST:PORT where the broker speaks TLS"
                return _failed(
                    "broker", f"{config.broker_url}: what listens there speaks no MQTT, or only over TLS", mend
                )
    except OSError as error:
        return _failed(
            "broker", f"{config.broker_url}: {_reason(config, error)}", _mend(config, path, "broker_url", error)
        )
    return _passed("broker", config.broker_url)


def _check_kept_goal(config: AgentConfig, _path: Path) -> Check:
    """Whether the goal that the broker keeps for this device is signed by the key that its configuration names."""
    topic, name = Topic(device_id=config.device_id, kind=Kind.GOAL), "kept goal"
    try:
        payload = look_up_retained(
            parse_address(config.broker_url), topic, lambda: _tls(config), connect_s=_TIMEOUT_S, wait_s=_GOAL_WAIT_S
        )
        if payload is None:
            return _passed(name, "the broker keeps none for this device yet: the key is compared with the first")
        goal = verify_goal(decode(Kind.GOAL, payload), read_public_key(config.goal_key))
    except TransferError as error:
        return _warned(name, error.sentence(), "see the line about the broker")
    except VerificationError as error:
        mend = f"copy DATA/trust/goal.pub of the server to {config.goal_key}; if they are the same, a stranger wrote it"
        return _failed(name, error.sentence(), mend)
    except ContractError as error:
        return _failed(name, error.sentence(), "edgeship server run, on the server, sends the goal again")
    return _passed(name, f"generation {goal.generation}, signed by the goal key")


def _speaks_mqtt(plain: socket.socket) -> bool:
    """Whether a broker answers, be it with a refusal."""
    try:
        plain.sendall(_HELLO)
        answer = plain.recv(4)
        plain.sendall(_BYE)
    except OSError:
        return False
    return answer[:1] == _CONNACK


def _await_refusal(wrapped: ssl.SSLSocket) -> None:
    """Wait for what a broker says that does not take our certificate; one that takes it waits for us.

    Raises:
        OSError: it said so, or hung up.
    """
    wrapped.settimeout(_SECOND_THOUGHTS_S)
    with contextlib.suppress(TimeoutError):
        if not wrapped.recv(1):
            raise ConnectionResetError


def _check_identity(config: AgentConfig, path: Path) -> Check:
    credentials = config.credentials
    if credentials is None:
        return _passed("identity", "none: server and broker must be on this machine, or behind a tunnel")
    enrol = _enrol(config, path)
    try:
        client_context(credentials, time.time(), EARLIEST_S)
        certificate = certificate_in(credentials.identity)
        certificate.verify_directly_issued_by(certificate_in(credentials.authority))
    except ConfigError as error:
        return _failed("identity", error.sentence(), enrol)
    except (ValueError, TypeError, InvalidSignature):
        return _failed("identity", f"{credentials.identity}: not issued by {credentials.authority}", enrol)
    mode = credentials.identity.stat().st_mode & 0o777
    if mode & 0o077:
        said = f"{credentials.identity}: others may read this private key (mode {mode:04o})"
        return _failed("identity", said, f"chmod 600 {credentials.identity}")
    return _judge_name_and_dates(config, certificate, enrol)


def _judge_name_and_dates(config: AgentConfig, certificate: x509.Certificate, enrol: str) -> Check:
    from_s, until_s = validity_s(certificate)
    who, now_s = f"{name_in(certificate)}, until {day(until_s)}", time.time()
    if max(now_s, EARLIEST_S) >= until_s:
        mend = f"if that is not today: {_SET_CLOCK}; if it is: {enrol}"
        return _failed("identity", f"{who}: over, for this clock shows {day(now_s)}", mend)
    if EARLIEST_S <= now_s < from_s:
        return _failed("identity", f"{who}: good from {day(from_s)}, this clock shows {day(now_s)}", _SET_CLOCK)
    if name_in(certificate) != config.device_id:
        return _failed("identity", f"{who}: not {config.device_id}", f"device_id in the configuration, or {enrol}")
    return _passed("identity", who)


def _enrol(config: AgentConfig, path: Path) -> str:
    """The command that makes this device a member anew; an identity that is there would keep it from that."""
    credentials = config.credentials
    away = f"rm -r {credentials.identity.parent} && " if credentials and credentials.identity.exists() else ""
    url = config.identity.enrol_url or "URL"
    return (
        f"{away}edgeship-agent enroll {url} --token TOKEN --target {config.target} --device-id {config.device_id} "
        f"--state-dir {config.state_dir} --config {path} (the token: edgeship devices enroll, on the server)"
    )


def _tls(config: AgentConfig) -> ssl.SSLContext:
    credentials = config.credentials
    return ssl.create_default_context() if credentials is None else client_context(credentials, time.time(), EARLIEST_S)


def _is_refusal(config: AgentConfig, error: Exception) -> bool:
    """Whether the other side ended what it does once it has seen a certificate that it does not take."""
    is_alert = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError)
    return config.credentials is not None and (is_alert or isinstance(error, ConnectionResetError | BrokenPipeError))


def _reason(config: AgentConfig, error: Exception) -> str:
    if _is_refusal(config, error):
        return "hung up: it does not take this device's certificate"
    if isinstance(error, TimeoutError):
        return "no answer"
    return getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)


def _mend(config: AgentConfig, path: Path, key: str, error: Exception) -> str:
    """A server that answers and is not believed, or does not believe us, is another matter than one that is away."""
    code = getattr(error, "verify_code", 0)
    if code in _OUT_OF_DATE:
        return (
            f"if it is not {day(time.time())} now: {_SET_CLOCK}; if it is, start the server again, which renews its own"
        )
    if code in _OTHER_NAME:
        return f"in {key} the name that the server was started with: edgeship server run --devices-name NAME"
    if _is_refusal(config, error):
        return f"revoked, or of another fleet: {_enrol(config, path)}"
    if isinstance(error, ssl.SSLError):
        return f"another fleet's server, unless {key} is wrong: {_enrol(config, path)}"
    if isinstance(error, socket.gaierror):
        return f"check the host in {key}; this device finds no such name (getent hosts NAME)"
    return f"check host and port in {key}, and what lies between; {_RUN_SERVER}"


def _running_pid(config: AgentConfig) -> int:
    """Process id of the agent that runs; 0 for none."""
    status = read_status(Places(config.state_dir).status)
    return int(status["pid"]) if status is not None and is_alive(int(status["pid"])) else 0


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
