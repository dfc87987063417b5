"""Drift baselines by their hash: they came with the bundles and lie among the blobs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.wire import read_json

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_KEPT: Final = 256


class Profiles:
    """Reads profiles and keeps the newest ones.

    Args:
        blobs: the blob directory, with ``sha256/<hex>`` inside.
    """

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[str, Profile] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, profile_hash: str) -> Profile | None:
        """The profile of that hash; None where no release brought it, or where it is damaged."""
        with self._lock:
            if profile_hash in self._kept:
                self._kept.move_to_end(profile_hash)
                return self._kept[profile_hash]
        profile = self._read(profile_hash)
        if profile is not None:
            with self._lock:
                self._kept[profile_hash] = profile
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return profile

    def _read(self, profile_hash: str) -> Profile | None:
        if not _HASH.fullmatch(profile_hash):  # it comes from a device: never a path
            return None
        path = self._blobs / "sha256" / profile_hash
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != profile_hash:
                return None
            return read_json(data, Profile, file=path)
        except (OSError, ContractError):
            return None
