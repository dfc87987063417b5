"""Becoming a member of a fleet: a key of our own, the fleet's word, and a configuration that names both."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct, field

from edgeship_agent.contract.enrolment import EnrolAnswer, EnrolRequest, Token
from edgeship_agent.contract.errors import ConfigError, ContractError, TransferError
from edgeship_agent.contract.topics import check_device_id
from edgeship_agent.identity.credentials import Credentials
from edgeship_agent.identity.keys import (
    certificate_in,
    key_digest,
    load_or_make_key,
    name_in,
    private_pem,
    signing_request,
    write_private,
)
from edgeship_agent.identity.service import EnrolmentService

ROOT_FILE: Final = "root.json"
GOAL_KEY_FILE: Final = "goal.pub"
KEY_FILE: Final = "new-key.pem"
_Answer = TypeVar("_Answer")
_POLL_S: Final = 3.0
_RETRY_S: Final = (1.0, 2.0, 5.0, 10.0)
_MACHINE_ID: Final = Path("/etc/machine-id")
_AGENT_TOML: Final = """\
# Written by edgeship-agent enroll; see: pydoc edgeship_agent.config
schema_version = 1
device_id = {device_id}
target = {target}
state_dir = {state_dir}
server_url = {server_url}
broker_url = {broker_url}
root = {root}
goal_key = {goal_key}

[identity]
enrol_url = {enrol_url}
"""


class Wish(Struct, frozen=True, kw_only=True):
    """What the person at the device asked for.

    Attributes:
        url: of the enrolment service.
        config: where the configuration goes.
        wait_s: how long to wait for an operator's approval.
    """

    url: str
    token: Token
    device_id: str
    target: str
    state_dir: Path
    config: Path
    wait_s: float = 600.0


class Enrolled(Struct, frozen=True, kw_only=True):
    """How it ended: ``state`` is ``enrolled`` or ``pending``; ``key`` is what an operator compares."""

    state: str
    device_id: str
    key: str
    tags: dict[str, str] = field(default_factory=dict)


def identity_folder(state_dir: Path) -> Path:
    """Where a device's identity lies."""
    return state_dir / "identity"


def enrolled_already(wish: Wish) -> Enrolled | None:
    """What an earlier call has done, so that the command may stand in front of every start; None where nothing has.

    Raises:
        ConfigError: the state directory belongs to another device.
    """
    file = Credentials.inside(identity_folder(wish.state_dir)).identity
    if not (file.exists() and wish.config.exists()):
        return None
    name = name_in(certificate_in(file))
    if name != wish.device_id:
        raise ConfigError("this state directory is another device's", file=file, key="--device-id", expected=name,
                          got=wish.device_id, next_step="another --state-dir, or remove that identity")  # fmt: skip
    return Enrolled(state="enrolled", device_id=name, key=key_digest(load_or_make_key(file)))


def enrol(wish: Wish, now_s: float, floor_s: float, say: Callable[[str], None]) -> Enrolled:
    """Ask to be let in, wait for approval where the fleet asks for it, and write identity and configuration.

    The key is kept from the first attempt on: whatever is lost on the way, the next attempt gets the same answer.

    Raises:
        ConfigError: the configuration names another device, or the folder cannot be written.
        TransferError: the service refuses, or cannot be reached.
        VerificationError: another authority answers.
    """
    folder = identity_folder(wish.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = load_or_make_key(folder / KEY_FILE)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=folder, key="--state-dir") from error
    service = EnrolmentService(wish.url, now_s, floor_s)
    authority = _patiently(lambda: service.authority(wish.token.authority), say)
    request = EnrolRequest(secret=wish.token.secret, device_id=wish.device_id, target=wish.target,
                           csr=signing_request(key, wish.device_id))  # fmt: skip
    digest = key_digest(key)
    answer = _patiently(lambda: service.enrol(authority, request), say)
    waited_until_s = time.monotonic() + wish.wait_s
    if answer.state == "pending":
        say(f"waits for approval: edgeship devices approve {wish.device_id}   (key {digest[:16]})")
    while answer.state == "pending":
        if time.monotonic() >= waited_until_s:
            return Enrolled(state="pending", device_id=wish.device_id, key=digest)
        time.sleep(min(_POLL_S, max(0.05, waited_until_s - time.monotonic())))
        answer = _patiently(lambda: service.enrol(authority, request), say)
    credentials = Credentials.inside(folder)
    write_private(credentials.authority, answer.authority.encode())
    write_private(folder / ROOT_FILE, answer.root.encode())
    write_private(folder / GOAL_KEY_FILE, answer.goal_key.encode() + b"\n")
    write_private(credentials.identity, private_pem(key) + answer.certificate.encode())
    if wish.config.exists():  # of an identity before: whoever wrote more into it may want that back
        before = wish.config.with_name(f"{wish.config.name}.before")
        wish.config.replace(before)
        say(f"the configuration that was there is {before} now; take over from it what you added")
    write_private(wish.config, _agent_toml(wish, answer, folder).encode())
    (folder / KEY_FILE).unlink()
    return Enrolled(state="enrolled", device_id=wish.device_id, key=digest, tags=answer.tags)


def own_device_id(given: str) -> str:
    """The device's name: what was given, else the host's name; ``auto`` makes one of the machine's id.

    Raises:
        ConfigError: not a device id, or this machine has no id.
    """
    if given == "auto":
        try:
            # the machine's id itself is a secret of the machine: machine-id(5)
            machine = _MACHINE_ID.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("this machine has no id", file=_MACHINE_ID, key="--device-id",
                              next_step="--device-id NAME") from error  # fmt: skip
        return "d-" + hashlib.sha256(b"edgeship device\n" + machine.encode()).hexdigest()[:12]
    wanted = given or re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-.")[:64]
    try:
        return check_device_id(wanted)
    except ContractError as error:
        raise ConfigError(error.message, key="--device-id", expected=error.expected, got=error.got) from error


def _patiently(ask: Callable[[], _Answer], say: Callable[[str], None]) -> _Answer:
    """Ask again after a while where the network fails; a refusal is for good."""
    for pause_s in _RETRY_S:
        try:
            return ask()
        except TransferError as error:
            if not error.retryable:
                raise
            say(f"{error.sentence()}; again in {pause_s:g} s")
            time.sleep(pause_s)
    return ask()


def _agent_toml(wish: Wish, answer: EnrolAnswer, folder: Path) -> str:
    values = {
        "device_id": wish.device_id, "target": wish.target, "state_dir": wish.state_dir.absolute(),
        "server_url": answer.server_url, "broker_url": answer.broker_url,
        "root": (folder / ROOT_FILE).absolute(), "goal_key": (folder / GOAL_KEY_FILE).absolute(),
        "enrol_url": wish.url,
    }  # fmt: skip
    return _AGENT_TOML.format(**{name: _toml_string(str(value)) for name, value in values.items()})


def _toml_string(text: str) -> str:
    """A basic string. Source: TOML 1.0.0, section String."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
