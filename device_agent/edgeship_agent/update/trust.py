"""Trust: the signature under a goal state, and The Update Framework's verification in a short-lived child process.

python-tuf takes 30 MB that a device needs for a second a month, so it lives in a child: ``python -m
edgeship_agent.update.trust`` reads one request from standard input and prints one answer. The reference time that
expiry is judged by: ``docs/adr/0003-tuf-reference-time.md``.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import (
    ConfigError,
    ContractError,
    EdgeshipError,
    TransferError,
    VerificationError,
)
from edgeship_agent.contract.goal import GOAL_PAYLOAD_TYPE, GoalState, SignedGoal
from edgeship_agent.contract.oci import hex_of, signed_bytes
from edgeship_agent.contract.wire import decode_goal
from edgeship_agent.identity.credentials import Credentials, client_context
from edgeship_agent.identity.signatures import is_signed
from edgeship_agent.update.disk import DISK, Disk
from edgeship_agent.update.launcher import Launcher

if TYPE_CHECKING:
    from tuf.ngclient.fetcher import FetcherInterface

#: 2026-11-01T00:00:00Z: this version of the agent did not exist before, so no right clock shows less.
EARLIEST_S: Final = 1793491200.0
_TIMEOUT_S: Final = 90.0
_READ_TIMEOUT_S: Final = 20


def verify_goal(signed: SignedGoal, public_key: bytes) -> GoalState:
    """The goal state inside, if the key of this fleet signed it.

    Args:
        signed: as it came from the broker.
        public_key: raw Ed25519 public key, 32 bytes.

    Raises:
        VerificationError: another key signed it, or nobody did.
        ContractError: the signature is right and the payload is not a goal state.
    """
    key_id = hashlib.sha256(public_key).hexdigest()
    if signed.key_id != key_id:
        raise VerificationError(
            "the goal state is signed by another key", key="goal", expected=key_id[:16], got=signed.key_id[:16]
        )
    if not is_signed(public_key, signed.signature, signed_bytes(GOAL_PAYLOAD_TYPE, signed.payload)):
        raise VerificationError("the signature under the goal state is wrong", key="goal")
    return decode_goal(signed.payload)


def read_public_key(path: Path, key_name: str = "goal_key") -> bytes:
    """A raw Ed25519 public key from a file of 64 hexadecimal digits.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, key=key_name) from error
    except ValueError as error:
        raise ConfigError("not a public key", file=path, key=key_name, expected="64 hexadecimal digits") from error
    if len(key) != 32:
        raise ConfigError("not a public key", file=path, key=key_name, expected="32 bytes", got=len(key))
    return key


class TrustRequest(Struct, frozen=True, kw_only=True):
    """What the child shall fetch and verify.

    Attributes:
        root: the root metadata that the device was set up with.
        metadata_directory: where verified metadata is kept between runs.
        target: path of the target inside the repository.
        size_bytes: length that the goal state declares.
        output: where the verified target goes.
        floor_s: no clock below this is believed (seconds since 1970).
        identity: key and certificate of this device, where the server asks for them; empty for none.
        authority: certificate of the fleet's authority.
    """

    root: str
    metadata_directory: str
    server_url: str
    target: str
    size_bytes: int
    output: str
    floor_s: float
    identity: str = ""
    authority: str = ""


class TrustAnswer(Struct, frozen=True, kw_only=True):
    """What the child found; ``kind`` is ``ok``, ``refused`` (for good) or ``unreachable`` (try again)."""

    kind: str
    detail: str = ""
    reference_time_s: float = 0.0


class TrustedSource:
    """The verified list of bundles that exist, as the server's repository publishes it.

    Args:
        root: file of the root metadata that this device was set up with.
        directory: the ``tuf`` folder of the state directory.
        server_url: ``http://host:port``.
        launcher: starts the child.
        credentials: of this device, where the server asks for them.
    """

    def __init__(
        self, root: Path, directory: Path, server_url: str, launcher: Launcher, credentials: Credentials | None = None
    ) -> None:
        self._root = root
        self._directory = directory
        self._server_url = server_url.rstrip("/") + "/"
        self._launcher = launcher
        self._credentials = credentials
        directory.mkdir(parents=True, exist_ok=True)

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:
        """Fetch the index of a bundle; what lies at ``output`` afterwards was signed for.

        Raises:
            TransferError: the server could not be reached (retryable).
            VerificationError: the metadata or the index is not what the keys of this fleet signed.
        """
        request = TrustRequest(
            root=str(self._root),
            metadata_directory=str(self._directory),
            server_url=self._server_url,
            target=f"bundles/{hex_of(digest)}.json",
            size_bytes=size_bytes,
            output=str(output),
            floor_s=floor_s,
            identity=str(self._credentials.identity) if self._credentials else "",
            authority=str(self._credentials.authority) if self._credentials else "",
        )
        done = self._launcher.run(
            "edgeship_agent.update.trust", (), stdin=msgspec.json.encode(request), timeout_s=_TIMEOUT_S
        )
        try:
            answer = msgspec.json.decode(done.output, type=TrustAnswer)
        except msgspec.MsgspecError as error:
            last = done.errors.decode(errors="replace").strip().splitlines()[-1:]
            raise TransferError(
                f"the verification process ended with {done.return_code}: {' '.join(last)}", retryable=True
            ) from error
        if answer.kind == "unreachable":
            raise TransferError(answer.detail, retryable=True, file=self._server_url)
        if answer.kind != "ok":
            raise VerificationError(answer.detail, file=request.target)


def reference_time(now_s: float, floor_s: float) -> float:
    """The time that expiry is judged by: never before what this fleet's keys have proven to be past.

    >>> reference_time(0.0, 2e9), reference_time(3e9, 2e9), reference_time(0.0, 0.0) == EARLIEST_S
    (2000000000.0, 3000000000.0, True)
    """
    return max(now_s, floor_s, EARLIEST_S)


def fetch_verified(request: TrustRequest, now_s: float, disk: Disk = DISK) -> TrustAnswer:
    """Run The Update Framework's client workflow for one target (inside the child)."""
    from tuf.api.exceptions import (  # 30 MB: only in the child
        DownloadError,
        DownloadHTTPError,
        DownloadLengthMismatchError,
        RepositoryError,
    )

    at_s = reference_time(now_s, request.floor_s)
    try:
        problem = _fetch(request, at_s, disk)
        kind, detail = ("refused", problem) if problem else ("ok", "")
    except (DownloadLengthMismatchError, RepositoryError) as error:
        kind, detail = "refused", _sentence(error)
    except DownloadHTTPError as error:
        is_final = 400 <= error.status_code < 500 and error.status_code not in (404, 408, 429)
        kind, detail = ("refused" if is_final else "unreachable"), _sentence(error)
    except (DownloadError, OSError) as error:
        kind, detail = "unreachable", _sentence(error)
    return TrustAnswer(kind=kind, detail=detail, reference_time_s=at_s)


def _fetch(request: TrustRequest, at_s: float, disk: Disk) -> str:
    """Bring the verified target to its place, or say why it is refused."""
    from tuf.ngclient.updater import Updater

    output = Path(request.output)
    updater = Updater(
        metadata_dir=request.metadata_directory,
        metadata_base_url=urljoin(request.server_url, "tuf/metadata/"),
        target_dir=str(output.parent),
        target_base_url=urljoin(request.server_url, "tuf/targets/"),
        fetcher=_fetcher(request),
        bootstrap=Path(request.root).read_bytes(),
    )
    # ADR 0003: the client workflow reads the clock once, in its constructor, and offers no argument for it
    trusted = updater._trusted_set
    if not hasattr(trusted, "reference_time"):
        return "this version of tuf keeps its reference time elsewhere; refused rather than judged by a wrong clock"
    trusted.reference_time = datetime.fromtimestamp(at_s, tz=timezone.utc)  # noqa: UP017 (datetime.UTC needs 3.11)
    updater.refresh()
    target = updater.get_targetinfo(request.target)
    if target is None:
        return f"the fleet's repository has no {request.target}"
    if target.length != request.size_bytes:
        return f"the signed length of {request.target} is {target.length}, the goal says {request.size_bytes}"
    with tempfile.TemporaryDirectory(prefix="edgeship-index-") as folder:
        verified = Path(folder) / "index"
        updater.download_target(target, filepath=str(verified))
        disk.write_atomic(output, verified.read_bytes())
    return ""


def _fetcher(request: TrustRequest) -> FetcherInterface:
    if request.identity:
        from edgeship_agent.update.member_fetcher import MemberFetcher

        credentials = Credentials(identity=Path(request.identity), authority=Path(request.authority))
        context = client_context(credentials, time.time(), max(request.floor_s, EARLIEST_S))
        return MemberFetcher(context, _READ_TIMEOUT_S)
    from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

    return Urllib3Fetcher(socket_timeout=_READ_TIMEOUT_S)


def _sentence(error: BaseException) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {error}{cause}"[:400]


def main() -> int:
    """The child: one request in, one answer out."""
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrustRequest)
        answer = fetch_verified(request, time.time())
    except (msgspec.MsgspecError, ContractError) as error:
        answer = TrustAnswer(kind="refused", detail=f"unreadable request: {error}")
    except EdgeshipError as error:
        answer = TrustAnswer(kind="refused", detail=error.sentence())
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0 if answer.kind == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
