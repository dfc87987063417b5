"""The update repository of The Update Framework: what a device trusts for which bundles exist.

State is the metadata files themselves. A new version is written bottom-up (targets, snapshot, then ``timestamp.json``),
so that a crash in between leaves the old timestamp and with it the old, consistent view.
Source: The Update Framework specification 1.0.34, sections 3 (roles) and 6.2 (writing consistent snapshots).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # public, not in an __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined] # public, not in an __all__
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from edgeship.server.disk import write_atomic
from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.oci import hex_of

_DAY_S: Final = 86400.0
#: How long each role's signature is good for. The timestamp is what tells a frozen repository, so it is short; root and
#: targets bridge a server that is off for a season.
VALIDITY_S: Final = {
    Root.type: 1825 * _DAY_S,
    Targets.type: 365 * _DAY_S,
    Snapshot.type: 90 * _DAY_S,
    Timestamp.type: 7 * _DAY_S,
}
#: A role is signed again once this share of its validity is gone.
RENEW_RATIO: Final = 0.25
_RESTORE: Final = "restore DATA/tuf and DATA/keys from the same backup"

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


def target_path(digest: str) -> str:
    """The name under which a bundle's image index is a target.

    >>> target_path("sha256:" + "ab" * 32)[:14]
    'bundles/ababab'
    """
    return f"bundles/{hex_of(digest)}.json"


@dataclass(frozen=True, kw_only=True)
class TufKeys:
    """One private key a role."""

    root: Ed25519PrivateKey
    targets: Ed25519PrivateKey
    snapshot: Ed25519PrivateKey
    timestamp: Ed25519PrivateKey

    def signer(self, role: str) -> CryptoSigner:
        """The signer of a role."""
        return CryptoSigner({"root": self.root, "targets": self.targets}.get(role) or self._online(role))

    def _online(self, role: str) -> Ed25519PrivateKey:
        return {"snapshot": self.snapshot, "timestamp": self.timestamp}[role]


class TufRepository:
    """Reads and writes the metadata in one directory.

    Args:
        directory: where the metadata lies, as it is served.
        keys: private keys.
        clock: seconds since the epoch.

    Raises:
        VerificationError: metadata on disk is damaged or was signed with other keys.
    """

    def __init__(self, directory: Path, keys: TufKeys, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._keys = keys
        self._clock = clock
        self._lock = threading.RLock()
        if not (directory / "timestamp.json").exists():
            self._create()
        self._load()

    @property
    def root_bytes(self) -> bytes:
        """The first root: what a device is given to trust."""
        return self._path("root", 1).read_bytes()

    def has(self, digest: str) -> bool:
        """Whether a bundle is a target."""
        return target_path(digest) in self._targets.signed.targets

    def add(self, digest: str, index: bytes) -> None:
        """Make a bundle's image index a target; adding it again changes nothing."""
        path = target_path(digest)
        with self._lock:
            if path in self._targets.signed.targets:
                return
            self._targets.signed.targets[path] = TargetFile.from_data(path, index, ["sha256"])
            self._publish(targets_changed=True)

    def refresh(self) -> tuple[str, ...]:
        """Sign again what is close to its expiry.

        Returns:
            The roles that were renewed.
        """
        with self._lock:
            due = {role for role, signed in self._signed().items() if self._is_due(role, signed)}
            if Root.type in due:
                self._renew_root()
            if due - {Root.type}:
                self._publish(targets_changed=Targets.type in due, snapshot_changed=Snapshot.type in due)
        return tuple(sorted(due))

    def _signed(self) -> dict[str, Signed]:
        return {
            Root.type: self._root.signed,
            Targets.type: self._targets.signed,
            Snapshot.type: self._snapshot.signed,
            Timestamp.type: self._timestamp.signed,
        }

    def _is_due(self, role: str, signed: Signed) -> bool:
        left_s = signed.expires.timestamp() - self._clock()
        return left_s < (1.0 - RENEW_RATIO) * VALIDITY_S[role]

    def _create(self) -> None:
        root = Root(version=1, expires=self._expiry(Root.type), consistent_snapshot=True)
        for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
            root.add_key(self._keys.signer(role).public_key, role)
        self._write_versioned(Metadata(root))
        self._write_versioned(Metadata(Targets(version=1, expires=self._expiry(Targets.type))))
        self._write_versioned(Metadata(Snapshot(version=1, expires=self._expiry(Snapshot.type))))
        self._write_timestamp(Metadata(Timestamp(version=1, expires=self._expiry(Timestamp.type))))

    def _load(self) -> None:
        versions = [int(path.name.split(".")[0]) for path in self._directory.glob("*.root.json")]
        self._root = self._read(self._path("root", max(versions, default=1)), Root)
        self._timestamp = self._read(self._directory / "timestamp.json", Timestamp)
        self._snapshot = self._read(self._path("snapshot", self._timestamp.signed.snapshot_meta.version), Snapshot)
        self._targets = self._read(self._path("targets", self._snapshot.signed.meta["targets.json"].version), Targets)

    def _read(self, path: Path, kind: type[S]) -> Metadata[S]:
        try:
            metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
            root = metadata.signed if kind.type == "root" else self._root.signed
            root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except (OSError, DeserializationError, RepositoryError, AttributeError) as error:
            raise VerificationError(
                f"update metadata cannot be used: {error}", file=path, next_step=_RESTORE
            ) from error
        if not isinstance(metadata.signed, kind):
            raise VerificationError("wrong role", file=path, expected=kind.type, got=type(metadata.signed).__name__)
        if self._keys.signer(kind.type).public_key.keyid not in root.roles[kind.type].keyids:
            raise VerificationError(f"signed with another {kind.type} key", file=path, next_step=_RESTORE)
        return metadata

    def _publish(self, *, targets_changed: bool, snapshot_changed: bool = True) -> None:
        try:
            self._write(targets_changed=targets_changed, snapshot_changed=snapshot_changed)
        except OSError:
            self._load()  # memory must not be ahead of the disk
            raise

    def _write(self, *, targets_changed: bool, snapshot_changed: bool) -> None:
        if targets_changed:
            self._next(self._targets)
            self._write_versioned(self._targets)
            self._snapshot.signed.meta["targets.json"] = MetaFile(self._targets.signed.version)
        if targets_changed or snapshot_changed:
            self._next(self._snapshot)
            self._write_versioned(self._snapshot)
            self._timestamp.signed.snapshot_meta = MetaFile(self._snapshot.signed.version)
        self._next(self._timestamp)
        self._write_timestamp(self._timestamp)

    def _renew_root(self) -> None:
        self._next(self._root)
        self._write_versioned(self._root)

    def _next(self, metadata: Metadata[S]) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(metadata.signed.type)

    def _expiry(self, role: str) -> datetime:
        return datetime.fromtimestamp(self._clock() + VALIDITY_S[role], UTC).replace(microsecond=0)

    def _write_versioned(self, metadata: Metadata[S]) -> None:
        metadata.sign(self._keys.signer(metadata.signed.type))
        write_atomic(self._path(metadata.signed.type, metadata.signed.version), metadata.to_bytes())

    def _write_timestamp(self, metadata: Metadata[Timestamp]) -> None:
        metadata.sign(self._keys.signer(Timestamp.type))
        write_atomic(self._directory / "timestamp.json", metadata.to_bytes())

    def _path(self, role: str, version: int) -> Path:
        return self._directory / f"{version}.{role}.json"
