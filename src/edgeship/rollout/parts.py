"""A release of several models on one device: which of its models says how the device as a whole stands.

A release of one model is the case of one part, and that part decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.rollout.evidence import DeviceEvidence
from edgeship.rollout.states import DeviceState

#: Reason code of a model that ended only because another model of its release did.
RELEASE_MEMBER: Final = "release_member"
#: Where nobody failed: whoever is furthest from the end decides, so a device succeeds when all of its models have.
_ORDER: Final = (
    *(DeviceState.IN_PROGRESS, DeviceState.OFFERED, DeviceState.QUEUED),
    *(DeviceState.CANCELED, DeviceState.SUPERSEDED, DeviceState.REMOVED, DeviceState.OFFLINE_UNREACHED),
    *(DeviceState.NO_VARIANT, DeviceState.SUCCEEDED, DeviceState.ALREADY_RUNNING),
)
_OWN_FAILURE, _OWN_REFUSAL, _PENDING, _OF_A_SIBLING, _REST = range(5)


def deciding(stands: Sequence[tuple[DeviceState, str]]) -> int:
    """Which model of a release decides how a device stands.

    A failure of its own comes first, then a refusal. What ended because of a sibling is told by that sibling: while its
    word is still out the device is pending, and only where no sibling owns up does the end count as it stands.

    Args:
        stands: state and reason code of each model; at least one.

    Returns:
        Index of the model that decides.

    >>> deciding([(DeviceState.ROLLED_BACK, "release_member"), (DeviceState.ROLLED_BACK, "golden_mismatch")])
    1
    >>> deciding([(DeviceState.SUCCEEDED, ""), (DeviceState.IN_PROGRESS, "")])
    1
    >>> deciding([(DeviceState.FAILED, "release_member"), (DeviceState.SUCCEEDED, "")])
    0
    """
    return min(range(len(stands)), key=lambda index: (*_rank(*stands[index]), index))


def _rank(state: DeviceState, reason: str) -> tuple[int, int]:
    ended = state.is_failure or state is DeviceState.REJECTED
    if ended and reason == RELEASE_MEMBER:
        return _OF_A_SIBLING, 0
    if ended:
        return (_OWN_FAILURE if state.is_failure else _OWN_REFUSAL), 0
    return (_PENDING if state.is_pending else _REST), _ORDER.index(state)


def by_model(evidence: Sequence[DeviceEvidence]) -> dict[str, list[DeviceEvidence]]:
    """The evidence of each model, in the order in which the models first appear."""
    found: dict[str, list[DeviceEvidence]] = {}
    for part in evidence:
        found.setdefault(part.model, []).append(part)
    return found


def by_device(evidence: Sequence[DeviceEvidence]) -> list[DeviceEvidence]:
    """For what is counted in devices, one entry of each: that of the model which decides there."""
    devices: dict[str, list[DeviceEvidence]] = {}
    for part in evidence:
        devices.setdefault(part.device_id, []).append(part)
    return [parts[deciding([(each.state, each.reason) for each in parts])] for parts in devices.values()]


def named(model: str, reason: str) -> str:
    """A reason with the model that it is about; a model alone needs no name.

    >>> named("detector", "golden_mismatch"), named("", "golden_mismatch"), named("detector", "")
    ('detector: golden_mismatch', 'golden_mismatch', '')
    """
    return f"{model}: {reason}" if model and reason else reason
