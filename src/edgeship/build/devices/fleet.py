"""An enrolled device, measured through its fleet server: no account on it and no open port.

Files go to the server by digest, the device gets a signed order, downloads what it lacks, measures in processes of its
own at low priority, and answers over the connection that it holds anyway.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
from msgspec import Struct

from edgeship.build.progress import Progress
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError, TransferError
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.contract.oci import digest_of, hex_of
from edgeship_agent.contract.profiling import PlanFile, ProfilePlan, ProfileResult, ProfileTask
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.tensors import encode_tensor_file

_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.3
#: How long a device gets to say that it has ended a job that was taken back.
_GOODBYE_S: Final = 15.0
#: Beyond the job's own time: download over a thin line is counted by the device, the rest is slack.
_SLACK_S: Final = 60.0


class Artifact(Struct, frozen=True, kw_only=True):
    """What is measured.

    Attributes:
        files: name → bytes, or the file that the server has already; the model first.
        variant: its entry in a manifest, as far as running it needs one.
        expected: outputs that it should give, one mapping per input, the compared one first; None for no parity.
        tolerance: largest relative RMS of that output.
    """

    label: str
    runtime: str
    files: Mapping[str, bytes | PlanFile]
    variant: Variant
    expected: Sequence[Mapping[str, Array]] | None = None
    tolerance: float = 0.0
    threads: int = 1


class Limits(Struct, frozen=True, kw_only=True):
    """How much is measured, and what that may take on the device."""

    warm_up: int = 50
    min_queries: int = 1000
    min_seconds: float = 1.0
    memory_bytes: int = 0
    timeout_s: float = 600.0


class FleetDevice:
    """One device of a fleet; use it as a context manager.

    Args:
        server: address of the fleet server.
        device_id: of the device.
        progress: told what goes on.

    Raises:
        ConfigError: not an address.
        TransferError: the server cannot be reached.
        InputError: it knows no such device.
    """

    def __init__(self, server: str, device_id: str, progress: Progress) -> None:
        if not server.startswith(("http://", "https://")):
            raise ConfigError("not a server address", key="--server", expected="http://HOST:PORT", got=server)
        self.id = device_id
        self._server = server.rstrip("/")
        self._progress = progress
        self._http = httpx.Client(base_url=self._server, timeout=_TIMEOUT_S)
        try:
            #: As ``GET /api/v1/devices/{id}`` shows it.
            self.facts: dict[str, Any] = self._ask("GET", f"/api/v1/devices/{device_id}").json()
        except BaseException:
            self._http.close()
            raise

    def __enter__(self) -> Self:
        """The device itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection to the server."""
        self._http.close()

    def document(self, path: str) -> bytes:
        """What the server has at a path.

        Raises:
            TransferError: it cannot be reached.
            InputError: there is no such thing.
        """
        return self._ask("GET", path).content

    def blob(self, digest: str) -> bytes:
        """A blob that the server has.

        Raises:
            TransferError: it cannot be reached, or what came is not that blob.
        """
        data = self.document(f"/blobs/sha256/{hex_of(digest)}")
        if digest_of(data) != digest:
            raise TransferError("the server sent another blob than asked for", retryable=True, file=self._server)
        return data

    def measure(
        self, artifacts: Sequence[Artifact], inputs: Sequence[Mapping[str, Array]], limits: Limits
    ) -> ProfileResult:
        """Let the device measure; an interrupt ends the job there.

        Raises:
            TransferError: the server or the device cannot be reached.
            InputError: the device is offline.
            ConversionError: the device refused the job, or could not do it.
        """
        uploaded: list[str] = []
        tasks = []
        for each in artifacts:
            files = [
                found if isinstance(found, PlanFile) else self._upload(name, found, uploaded)
                for name, found in each.files.items()
            ]
            expected = None
            if each.expected is not None:
                expected = self._upload("expected", encode_tensor_file(each.expected), uploaded)
            tasks.append(ProfileTask(label=each.label, runtime=each.runtime, threads=each.threads, files=tuple(files),
                                     variant=each.variant, expected=expected, tolerance=each.tolerance))  # fmt: skip
        sent = self._upload("inputs", encode_tensor_file(inputs), uploaded)
        plan = ProfilePlan(tasks=tuple(tasks), inputs=sent, **msgspec.structs.asdict(limits))
        order = self._upload("plan", msgspec.json.encode(plan), uploaded)
        body = {"plan": order.digest, "uploaded": uploaded}
        job = self._ask("POST", f"/api/v1/devices/{self.id}/profile-jobs", json=body).json()
        try:
            job = self._follow(job["id"], limits.timeout_s)
        except BaseException:
            self._take_back(job["id"])
            raise
        if job["state"] != "done":
            raise ConversionError(f"{self.id} {_WORDS[job['state']]}: {job['detail'] or 'no reason given'}",
                                  target=self.id)  # fmt: skip
        return msgspec.convert(job["result"], ProfileResult)

    def _follow(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        end_s = time.monotonic() + 2 * timeout_s + _SLACK_S
        while time.monotonic() < end_s:
            job: dict[str, Any] = self._ask("GET", f"/api/v1/profile-jobs/{job_id}").json()
            if job["state"] in _WORDS or job["state"] == "done":
                return job
            if job["total"]:
                self._progress.count(f"{job['label']} on {self.id}", job["done"], job["total"])
            time.sleep(_POLL_S)
        raise TransferError("the device does not come to an end", retryable=True, file=self.id)

    def _take_back(self, job_id: str) -> None:
        """End the job on the device, and wait for its word that it has, for a while."""
        with contextlib.suppress(TransferError, InputError):
            self._ask("POST", f"/api/v1/profile-jobs/{job_id}/cancel", json={})
            end_s = time.monotonic() + _GOODBYE_S
            while time.monotonic() < end_s:
                state = self._ask("GET", f"/api/v1/profile-jobs/{job_id}").json()["state"]
                if state in _WORDS or state == "done":
                    return
                time.sleep(_POLL_S)

    def _upload(self, name: str, data: bytes, uploaded: list[str]) -> PlanFile:
        digest = digest_of(data)
        path = f"/api/v1/blobs/{digest}"
        if self._ask("HEAD", path, allowed=(404,)).status_code == 404:
            self._ask("PUT", path, content=data)
            uploaded.append(digest)
        return PlanFile(name=name, digest=digest, size_bytes=len(data))

    def _ask(self, method: str, path: str, *, allowed: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransferError(f"the server cannot be reached: {error}", retryable=True, file=self._server,
                                next_step="name the server with --server, or start it") from error  # fmt: skip
        if answer.is_success or answer.status_code in allowed:
            return answer
        try:
            said = answer.json()
        except ValueError:
            said = {}
        sentence = said.get("error") or said.get("detail") or f"the server answered {answer.status_code}"
        next_step = said.get("next_step") or "edgeship devices list"
        if answer.status_code >= 500:
            raise TransferError(str(sentence), retryable=True, file=self._server)
        raise InputError(str(sentence), next_step=next_step)


#: State in which a job ended without a result → in words.
_WORDS: Final = {"refused": "refused the job", "failed": "could not do the job", "canceled": "ended the job"}


def files_of(paths: Sequence[Path]) -> dict[str, bytes]:
    """Name → bytes of some files.

    Raises:
        InputError: one cannot be read.
    """
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=error.filename) from error
