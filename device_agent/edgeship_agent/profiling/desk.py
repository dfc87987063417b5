"""Orders at the door: only one that this fleet's key signed for this very device, and that is not old, is let in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.oci import signed_bytes
from edgeship_agent.contract.profiling import JOB_PAYLOAD_TYPE, ProfileOrder, SignedOrder, decode_order
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import decode
from edgeship_agent.identity.signatures import is_signed


class OrderDesk:
    """Checks orders.

    Args:
        device_id: this device.
        public_key: raw Ed25519 key of this fleet, which signs goal states and orders.
        now_s: reference time, seconds since 1970: never before a time that was signed to be past.
    """

    def __init__(self, device_id: str, public_key: bytes, now_s: Callable[[], float]) -> None:
        self._device_id = device_id
        self._public_key = public_key
        self._now_s = now_s

    def receive(self, payload: bytes) -> ProfileOrder:
        """The order inside.

        Raises:
            VerificationError: not signed by this fleet's key, for another device, or too old.
            ContractError: unreadable.
        """
        signed: SignedOrder = decode(Kind.JOB, payload)
        if signed.key_id != hashlib.sha256(self._public_key).hexdigest():
            raise VerificationError("the order is signed by another key", key="job", got=signed.key_id[:16])
        if not is_signed(self._public_key, signed.signature, signed_bytes(JOB_PAYLOAD_TYPE, signed.payload)):
            raise VerificationError("the signature under the order is wrong", key="job")
        order = decode_order(signed.payload)
        if order.device_id != self._device_id:
            raise VerificationError("the order is for another device", key="job", got=order.device_id[:64])
        if order.expires_at_s <= self._now_s():
            raise VerificationError("the order has expired", key="job")
        if not order.job_id or len(order.job_id) > 64 or not order.job_id.isalnum():
            raise ContractError("not the id of a job", key="job_id", got=order.job_id[:64])
        return order
