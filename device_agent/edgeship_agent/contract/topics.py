"""MQTT topics as a type with a round trip.

``edgeship/v1/<device id>/<kind>``: one level per device, so that a broker can hold a device to its own topics with
one access rule, and one level per kind of message.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError

ROOT: Final = "edgeship"
TOPIC_VERSION: Final = "v1"
_DEVICE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Kind(str, Enum):
    """What a topic carries; the value is the last level of the topic."""

    BIRTH = "birth"  # device → server: full state, on every connect
    DEATH = "death"  # device → server: last will
    HEARTBEAT = "heartbeat"  # device → server
    WINDOWS = "windows"  # device → server: telemetry
    REPORT = "report"  # device → server: state of an update
    GOAL = "goal"  # server → device, retained: signed goal state
    ACK = "ack"  # server → device: windows that the database holds
    JOB = "job"  # server → device: signed order of a profile job
    PROFILE = "profile"  # device → server: state and result of a profile job

    @property
    def from_device(self) -> bool:
        """Whether devices publish it (otherwise the server does)."""
        return self not in (Kind.GOAL, Kind.ACK, Kind.JOB)


def check_device_id(device_id: str) -> str:
    """Return ``device_id`` if it may stand in a topic: 1–64 of letters, digits, ``.``, ``_``, ``-``.

    Raises:
        ContractError: it may not (wildcards, slashes and empty names would reach other devices' topics).

    >>> check_device_id("press-07")
    'press-07'
    """
    if not _DEVICE_ID.fullmatch(device_id):
        raise ContractError(
            "not a device id",
            key="device_id",
            expected="1–64 letters, digits, '.', '_' or '-', a letter or digit first",
            got=repr(device_id),
        )
    return device_id


class Topic(Struct, frozen=True, kw_only=True):
    """One device's topic of one kind.

    >>> Topic(device_id="press-07", kind=Kind.GOAL).path()
    'edgeship/v1/press-07/goal'
    >>> Topic.parse("edgeship/v1/press-07/goal").kind.value
    'goal'
    """

    device_id: str
    kind: Kind

    def __post_init__(self) -> None:
        check_device_id(self.device_id)

    def path(self) -> str:
        """The topic as MQTT spells it."""
        return f"{ROOT}/{TOPIC_VERSION}/{self.device_id}/{self.kind.value}"

    @classmethod
    def parse(cls, path: str) -> Topic:
        """Read a topic back.

        Raises:
            ContractError: not a topic of this contract version.
        """
        levels = path.split("/")
        if len(levels) != 4 or levels[0] != ROOT or levels[1] != TOPIC_VERSION:
            raise ContractError("not a topic of this contract", key=path, expected=f"{ROOT}/{TOPIC_VERSION}/ID/KIND")
        try:
            kind = Kind(levels[3])
        except ValueError as error:
            raise ContractError("unknown kind of topic", key=path, expected=", ".join(k.value for k in Kind)) from error
        return cls(device_id=levels[2], kind=kind)


def fleet_filter(kind: Kind) -> str:
    """The subscription that matches every device's topic of one kind.

    >>> fleet_filter(Kind.WINDOWS)
    'edgeship/v1/+/windows'
    """
    return f"{ROOT}/{TOPIC_VERSION}/+/{kind.value}"
