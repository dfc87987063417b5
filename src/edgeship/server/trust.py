"""The server's trust: its update repository and its signature under every goal state.

Two keys stand between an attacker and a device: the repository names the bundles that exist, the goal key says which of
them this device shall run. Neither alone makes a device install anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeship.server.disk import write_atomic
from edgeship.server.signing_keys import key_id, load_or_create, raw_public
from edgeship.server.tuf_repository import TufKeys, TufRepository
from edgeship_agent.contract.goal import GOAL_PAYLOAD_TYPE, GoalState, SignedGoal
from edgeship_agent.contract.messages import PROTOCOL_VERSION
from edgeship_agent.contract.oci import signed_bytes
from edgeship_agent.contract.profiling import JOB_PAYLOAD_TYPE, ProfileOrder, SignedOrder, encode_order
from edgeship_agent.contract.wire import encode_goal


class Trust:
    """Signs goal states and keeps the update repository.

    Args:
        repository: the metadata of The Update Framework.
        directory: where that metadata lies, as it is served.
        goal_key: private key of the goal states.
    """

    def __init__(self, repository: TufRepository, directory: Path, goal_key: Ed25519PrivateKey) -> None:
        self.repository = repository
        self.directory = directory
        self._goal_key = goal_key
        self.goal_public = raw_public(goal_key)

    @classmethod
    def open(cls, data: Path, clock: Callable[[], float] = time.time) -> Trust:
        """Open the keys and metadata under a server's data directory, or make them on first use.

        ``DATA/trust/root.json`` and ``DATA/trust/goal.pub`` are what a device's configuration names.

        Raises:
            VerificationError: a key is readable by others, or metadata was signed with other keys.
        """
        keys = data / "keys"
        tuf_keys = TufKeys(
            root=load_or_create(keys / "root.pem"),
            targets=load_or_create(keys / "targets.pem"),
            snapshot=load_or_create(keys / "snapshot.pem"),
            timestamp=load_or_create(keys / "timestamp.pem"),
        )
        directory = data / "tuf" / "metadata"
        trust = cls(TufRepository(directory, tuf_keys, clock), directory, load_or_create(keys / "goal.pem"))
        write_atomic(data / "trust" / "root.json", trust.repository.root_bytes)
        write_atomic(data / "trust" / "goal.pub", trust.goal_public.hex().encode() + b"\n")
        return trust

    def sign_goal(self, goal: GoalState) -> SignedGoal:
        """A goal state as it travels, signed for its device alone."""
        payload = encode_goal(goal)
        return SignedGoal(
            protocol_version=PROTOCOL_VERSION,
            payload=payload,
            key_id=key_id(self.goal_public),
            signature=self._goal_key.sign(signed_bytes(GOAL_PAYLOAD_TYPE, payload)),
        )

    def sign_order(self, order: ProfileOrder) -> SignedOrder:
        """An order of a profile job as it travels, signed for its device alone.

        The key is that of the goal states; what is signed begins with another type, so that neither is ever taken for
        the other.
        """
        payload = encode_order(order)
        return SignedOrder(
            protocol_version=PROTOCOL_VERSION,
            payload=payload,
            key_id=key_id(self.goal_public),
            signature=self._goal_key.sign(signed_bytes(JOB_PAYLOAD_TYPE, payload)),
        )
