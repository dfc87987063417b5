"""Bytes ↔ types, at the one edge where they meet. Whatever arrives, nothing but :class:`ContractError` comes out."""

from __future__ import annotations

import zlib
from typing import Any, Final, TypeVar

import msgspec

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.goal import GoalState, SignedGoal
from edgeship_agent.contract.messages import Ack, Birth, Death, Heartbeat, UpdateReport, WindowBatch
from edgeship_agent.contract.profiling import ProfileReport, SignedOrder
from edgeship_agent.contract.topics import Kind

#: Largest message on the wire and largest message after decompression, in bytes: a bomb is refused, not expanded.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_INFLATED_BYTES: Final = 8 * 1024 * 1024

TYPES: Final[dict[Kind, Any]] = {
    Kind.BIRTH: Birth,
    Kind.DEATH: Death,
    Kind.HEARTBEAT: Heartbeat,
    Kind.WINDOWS: WindowBatch,
    Kind.REPORT: UpdateReport,
    Kind.GOAL: SignedGoal,
    Kind.ACK: Ack,
    Kind.JOB: SignedOrder,
    Kind.PROFILE: ProfileReport,
}
_COMPRESSED: Final = frozenset({Kind.WINDOWS})
_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final = {kind: msgspec.msgpack.Decoder(kind_type) for kind, kind_type in TYPES.items()}
_goal_decoder: Final = msgspec.msgpack.Decoder(GoalState)

T = TypeVar("T")


def encode(kind: Kind, message: object) -> bytes:
    """Bytes of a message for a topic of that kind.

    Raises:
        ContractError: the message is not of the kind's type.
    """
    if not isinstance(message, TYPES[kind]):
        raise ContractError("wrong message for this topic", key=kind.value, got=type(message).__name__)
    data = _encoder.encode(message)
    return zlib.compress(data, 6) if kind in _COMPRESSED else data


def decode(kind: Kind, data: bytes) -> Any:
    """The message in ``data``, of type ``TYPES[kind]``.

    Raises:
        ContractError: too long, damaged, of another type or of a protocol that this version does not speak.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ContractError("message too long", key=kind.value, expected=f"≤ {MAX_MESSAGE_BYTES}", got=len(data))
    if kind in _COMPRESSED:
        data = _inflate(data, kind)
    try:
        message = _decoders[kind].decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"unreadable message: {error}", key=kind.value) from error
    version = getattr(message, "protocol_version", 1)
    if version < 1:
        raise ContractError("unknown protocol version", key=kind.value, expected="≥ 1", got=version)
    return message


def encode_goal(goal: GoalState) -> bytes:
    """Payload of a :class:`SignedGoal`."""
    return _encoder.encode(goal)


def decode_goal(payload: bytes) -> GoalState:
    """The goal in a payload whose signature was verified.

    Raises:
        ContractError: the payload is not a goal state.
    """
    try:
        return _goal_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"unreadable goal state: {error}", key="goal") from error


def read_json(data: bytes, kind: type[T], *, file: object) -> T:
    """A typed document from a JSON file.

    Raises:
        ContractError: the bytes are not such a document; names the file and the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"unreadable: {error}", file=file, expected=kind.__name__) from error


def _inflate(data: bytes, kind: Kind) -> bytes:
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ContractError(f"unreadable message: {error}", key=kind.value) from error
    if not inflater.eof:
        raise ContractError("message truncated or too long when inflated", key=kind.value)
    return inflated
