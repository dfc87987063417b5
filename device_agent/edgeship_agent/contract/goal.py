"""The goal state: what a device shall run, signed for that device alone."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

GOAL_PAYLOAD_TYPE: Final = "application/vnd.edgeship.goal.v1+msgpack"


class Probation(Struct, frozen=True, kw_only=True, array_like=True):
    """How long a new model proves itself on the device before it is committed: both numbers must be reached.

    Attributes:
        inferences: answered calls.
        duration_s: time since activation.
        deadline_s: when traffic was short until then, the golden inputs are replayed and the commit is marked.
        max_failed_ratio: failed calls ÷ calls, 0–1.
        latency_p99_ms: limit; 0 for none.
    """

    inferences: int = 100
    duration_s: float = 60.0
    deadline_s: float = 600.0
    max_failed_ratio: float = 0.01
    latency_p99_ms: float = 0.0


class ArmGoal(Struct, frozen=True, kw_only=True, array_like=True):
    """One version of a model and its share of the traffic.

    Attributes:
        digest: digest of the bundle (its nested image index).
        size_bytes: length of that index, where a download stops.
        share: part of the device's traffic, 0–1; the shares of a model sum to 1.
        mirror: for a shadow, whose share is 0: part of the inputs that it runs beside the first arm, 0–1; its outputs
            are compared and thrown away.
        cpu_ratio: part of the time that a shadow may be busy, 0–1.
        memory_bytes: most memory that the process of a shadow may hold; 0 for no limit.
    """

    version: str
    digest: str
    size_bytes: int
    share: float = 1.0
    mirror: float = 0.0
    cpu_ratio: float = 0.25
    memory_bytes: int = 0


class ModelGoal(Struct, frozen=True, kw_only=True, array_like=True):
    """What one model shall be on this device.

    Attributes:
        arms: the versions that share the traffic; one unless an A/B test runs.
        deployment: id of the rollout or assignment that asks for it.
        attempt: counted from 1; a new attempt tries again what failed before.
        is_rollback: the server takes back a release: no probation traffic is waited for.
        force: try a pair of digest and contract again that failed on this device.
        release: ``name@version`` of a release of several models: those of one goal with the same release switch
            together; empty for a model alone.
    """

    model: str
    arms: tuple[ArmGoal, ...]
    deployment: str
    attempt: int = 1
    is_rollback: bool = False
    force: bool = False
    probation: Probation = Probation()
    release: str = ""


class GoalState(Struct, frozen=True, kw_only=True, array_like=True):
    """The whole goal of one device. Order comes from ``generation`` alone, never from a clock."""

    protocol_version: int
    device_id: str
    generation: int
    issued_at_s: float
    expires_at_s: float
    models: tuple[ModelGoal, ...]


class SignedGoal(Struct, frozen=True, kw_only=True, array_like=True):
    """A goal state as it travels.

    Attributes:
        payload: MessagePack of a :class:`GoalState`.
        key_id: sha256 (hex) of the raw public key.
        signature: Ed25519 over ``signed_bytes(GOAL_PAYLOAD_TYPE, payload)``.
    """

    protocol_version: int
    payload: bytes
    key_id: str
    signature: bytes
