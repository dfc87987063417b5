"""Profile jobs: ordered for one device, signed, followed until they end.

They live in memory: a job is of use to whoever waits for it, and a server that was restarted says that it knows none.
"""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from edgeship.server.blob_store import blob_path, blob_size, read_blob
from edgeship.server.store import devices, releases
from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError, InputError
from edgeship_agent.contract.messages import PROTOCOL_VERSION
from edgeship_agent.contract.profiling import (
    MAX_PLAN_BYTES,
    JobState,
    ProfileOrder,
    ProfilePlan,
    ProfileReport,
    ProfileResult,
    check_plan,
    plan_files,
)
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import encode, read_json

if TYPE_CHECKING:
    from edgeship.server.context import ServerContext

#: Jobs that are remembered.
_MOST_JOBS: Final = 200
#: How long an order may be followed beyond the job's own time, and how soon one without an answer is sent again.
_VALIDITY_S: Final = 600.0
_REPEAT_S: Final = 3.0
#: An order that a device has not answered in this time is given up.
ANSWER_S: Final = 30.0
_log = logging.getLogger("edgeship.server.profile_jobs")


class JobRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/devices/{id}/profile-jobs``; the blobs were uploaded before.

    Attributes:
        plan: digest of the :class:`ProfilePlan`.
        uploaded: digests that were uploaded for this job alone; they are removed when it has ended.
    """

    plan: str
    uploaded: list[str] = []


class ProfileJob(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/profile-jobs/{id}``.

    Attributes:
        done, total: of ``label``, while it is running.
        result: what the device found, where the state is ``done``.
    """

    schema_version: int = 1
    id: str
    device_id: str
    state: JobState
    detail: str = ""
    label: str = ""
    done: int = 0
    total: int = 0
    seq: int = 0
    ordered_at_s: float
    result: ProfileResult | None = None


class _Entry(Struct, kw_only=True):
    job: ProfileJob
    order: ProfileOrder
    uploaded: tuple[str, ...]
    files: frozenset[str]
    releases_before: int
    sent_at_s: float = 0.0


class ProfileJobs:
    """Every job since the server was started.

    Args:
        context: the server's parts.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def order(self, device_id: str, request: JobRequest) -> ProfileJob:
        """Sign an order and send it.

        Raises:
            InputError: no such device, or it is offline.
            VerificationError: a blob was not uploaded.
            ContractError: the plan is none, or asks for too much.
        """
        context = self._context
        with context.read() as connection:
            row = devices.find(connection, device_id)
            known = len(releases.list_all(connection, ""))
        if row is None:
            raise InputError("no such device", key=device_id, next_step="edgeship devices list")
        if not row.online:
            raise InputError("the device is offline", key=device_id, next_step=f"edgeship devices show {device_id}")
        plan = self._read_plan(request.plan)
        now_s = context.clock()
        order = ProfileOrder(
            protocol_version=PROTOCOL_VERSION,
            device_id=device_id,
            job_id=secrets.token_hex(8),
            issued_at_s=now_s,
            expires_at_s=now_s + plan.timeout_s + _VALIDITY_S,
            plan_digest=request.plan,
            plan_size_bytes=blob_size(context.blobs, request.plan) or 0,
        )
        job = ProfileJob(id=order.job_id, device_id=device_id, state=JobState.ORDERED, ordered_at_s=now_s)
        files = frozenset({request.plan, *(file.digest for file in plan_files(plan))})
        uploaded = tuple(digest for digest in request.uploaded if digest in files)
        entry = _Entry(job=job, order=order, uploaded=uploaded, files=files, releases_before=known)
        with self._lock:
            self._entries[job.id] = entry
            ended = [each for each, other in self._entries.items() if other.job.state.is_terminal]
            for old in ended[: max(0, len(self._entries) - _MOST_JOBS)]:
                del self._entries[old]
        labels = ", ".join(task.label for task in plan.tasks)
        self._record("profile_ordered", job, f"{device_id} was asked to measure {labels}"[:500])
        self._send(entry)
        return job

    def find(self, job_id: str) -> ProfileJob | None:
        """A job as it is now; an order that was not answered is sent again, and given up after a while."""
        with self._lock:
            entry = self._entries.get(job_id)
        if entry is None:
            return None
        now_s = self._context.clock()
        if entry.job.state is JobState.ORDERED:
            if now_s - entry.job.ordered_at_s > ANSWER_S:
                self._give_up(entry, "the device does not answer: is its agent older than profile jobs?")
            elif now_s - entry.sent_at_s > _REPEAT_S:
                self._send(entry)
        elif not entry.job.state.is_terminal and now_s > entry.order.expires_at_s:
            self._give_up(entry, "the device never said how the job ended")
        return entry.job

    def cancel(self, job_id: str) -> ProfileJob | None:
        """Take an order back; the device says when it has ended the job."""
        with self._lock:
            entry = self._entries.get(job_id)
        if entry is not None and not entry.job.state.is_terminal:
            self._send(entry, cancel=True)
        return None if entry is None else entry.job

    def take(self, connection: Connection, report: ProfileReport) -> None:
        """A device said how far it is.

        Raises:
            ContractError: its result cannot be read.
        """
        with self._lock:
            entry = self._entries.get(report.job_id)
            if entry is None or entry.job.device_id != report.device_id or report.seq <= entry.job.seq:
                return
            if entry.job.state.is_terminal:
                return
            result = read_json(report.result, ProfileResult, file="result") if report.result else None
            if report.state is JobState.DONE and result is None:
                raise ContractError("a job that is done without a result", key="profile")
            entry.job = msgspec.structs.replace(
                entry.job, state=report.state, detail=report.detail, label=report.label, done=report.done,
                total=report.total, seq=report.seq, result=result,
            )  # fmt: skip
        if report.state.is_terminal:
            sentence = f"{report.device_id}: profile job {report.state.value}. {report.detail}".strip()
            self._context.record(connection, "profile_ended", f"device/{report.device_id}", sentence, _facts(entry.job))
            self._context.store.after_commit(lambda: self._clean_up(entry))

    def _read_plan(self, digest: str) -> ProfilePlan:
        size = blob_size(self._context.blobs, digest)
        if size is not None and size > MAX_PLAN_BYTES:
            raise ContractError("plan too long", key="plan", expected=f"≤ {MAX_PLAN_BYTES}", got=size)
        plan = read_json(read_blob(self._context.blobs, digest), ProfilePlan, file="plan")
        check_plan(plan)
        for file in plan_files(plan):
            if blob_size(self._context.blobs, file.digest) != file.size_bytes:
                raise ConfigError("a file of the plan was not uploaded", key=file.name, got=file.digest)
        return plan

    def _send(self, entry: _Entry, *, cancel: bool = False) -> None:
        entry.sent_at_s = self._context.clock()
        order = msgspec.structs.replace(entry.order, cancel=cancel)
        signed = encode(Kind.JOB, self._context.trust.sign_order(order))
        self._context.publish(Topic(device_id=order.device_id, kind=Kind.JOB), signed, False)

    def _give_up(self, entry: _Entry, detail: str) -> None:
        with self._lock:
            entry.job = msgspec.structs.replace(entry.job, state=JobState.FAILED, detail=detail)
        self._record("profile_ended", entry.job, f"{entry.job.device_id}: profile job failed. {detail}")
        self._send(entry, cancel=True)
        self._clean_up(entry)

    def _record(self, kind: str, job: ProfileJob, sentence: str) -> None:
        with self._context.write() as connection:
            self._context.record(connection, kind, f"device/{job.device_id}", sentence, _facts(job))

    def _clean_up(self, entry: _Entry) -> None:
        """Remove what was uploaded for this job alone; what a release may have come to need is left."""
        try:
            with self._context.read() as connection:
                if len(releases.list_all(connection, "")) != entry.releases_before:
                    return
            with self._lock:
                busy = [each for each in self._entries.values() if not each.job.state.is_terminal]
            in_use = {digest for each in busy for digest in each.files}
            for digest in set(entry.uploaded) - in_use:
                blob_path(self._context.blobs, digest).unlink(missing_ok=True)
        except (OSError, EdgeshipError) as error:
            _log.warning("files of profile job %s are left: %s", entry.job.id, error)


def _facts(job: ProfileJob) -> dict[str, Any]:
    return {"job": job.id, "state": job.state.value}
