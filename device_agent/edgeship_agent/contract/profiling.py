"""Profile jobs: a device measures artifacts for a build or an operator.

The order comes signed, as a goal state does, and names a plan by its digest; the plan names every file by its digest.
What a device measures is therefore what the server ordered, whichever cache it came through.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.contract.oci import check_digest

JOB_PAYLOAD_TYPE: Final = "application/vnd.edgeship.profile-job.v1+msgpack"
PLAN_VERSION: Final = 1
#: What a device takes on: it has a model to serve.
MAX_TASKS: Final = 16
MAX_PLAN_BYTES: Final = 4 * 1024 * 1024
MAX_FILES_BYTES: Final = 2 * 1024**3
MAX_QUERIES: Final = 1_000_000
MAX_SECONDS: Final = 600.0
MAX_TIMEOUT_S: Final = 3600.0
#: Of the times of one task that travel back; of more every n-th does.
MOST_TIMES: Final = 8000
MOST_TIMES_OF_ALL: Final = 48_000
_MAX_THREADS: Final = 64


class JobState(str, Enum):
    """How far a job is."""

    ORDERED = "ordered"  # by the server; the device has not answered
    ACCEPTED = "accepted"
    DOWNLOADING = "downloading"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether a job ends here."""
        return self in (JobState.DONE, JobState.REFUSED, JobState.FAILED, JobState.CANCELED)


class ProfileOrder(Struct, frozen=True, kw_only=True, array_like=True):
    """An order for one device.

    Attributes:
        plan_digest, plan_size_bytes: of the :class:`ProfilePlan`.
        cancel: end the job of this id instead.
    """

    protocol_version: int
    device_id: str
    job_id: str
    issued_at_s: float
    expires_at_s: float
    plan_digest: str
    plan_size_bytes: int
    cancel: bool = False


class SignedOrder(Struct, frozen=True, kw_only=True, array_like=True):
    """An order as it travels.

    Attributes:
        payload: MessagePack of a :class:`ProfileOrder`.
        key_id: sha256 (hex) of the raw public key.
        signature: Ed25519 over ``signed_bytes(JOB_PAYLOAD_TYPE, payload)``.
    """

    protocol_version: int
    payload: bytes
    key_id: str
    signature: bytes


class PlanFile(Struct, frozen=True, kw_only=True):
    """A file that the plan needs."""

    name: str
    digest: str
    size_bytes: int


class ProfileTask(Struct, frozen=True, kw_only=True):
    """One artifact.

    Attributes:
        files: the model first, then what belongs beside it.
        variant: its entry in a manifest, as far as running it needs one.
        expected: tensor file of the outputs that it should give for the plan's inputs, the one that is compared first;
            None for no parity.
        tolerance: largest relative RMS of that output.
    """

    label: str
    runtime: str
    threads: int
    files: tuple[PlanFile, ...]
    variant: Variant
    expected: PlanFile | None = None
    tolerance: float = 0.0


class ProfilePlan(Struct, frozen=True, kw_only=True):
    """What is measured, and within which limits (JSON).

    Attributes:
        inputs: tensor file of prepared inputs, batch axis included.
        warm_up: inferences before the clock starts.
        min_queries, min_seconds: fewest inferences, and shortest time, that are measured of each task.
        memory_bytes: what one measuring process may take; 0 for no limit.
        timeout_s: of the whole job on the device.
    """

    schema_version: int = PLAN_VERSION
    tasks: tuple[ProfileTask, ...]
    inputs: PlanFile
    warm_up: int = 50
    min_queries: int = 1000
    min_seconds: float = 1.0
    memory_bytes: int = 0
    timeout_s: float = 600.0


class TaskLatency(Struct, frozen=True, kw_only=True):
    """Latency of one task.

    Attributes:
        queries: how many were measured.
        times_ms: of the queries in their order, or of every n-th: at most 8,000.
        first_quarter_p50_ms, last_quarter_p50_ms: medians, in ms.
    """

    queries: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    mean_ms: float
    first_quarter_p50_ms: float
    last_quarter_p50_ms: float
    times_ms: tuple[float, ...]


class TaskParity(Struct, frozen=True, kw_only=True):
    """Outputs on the device against the expected ones.

    Attributes:
        relative_rms: of the first output; -1 where it has no value.
    """

    passed: bool
    relative_rms: float
    tolerance: float
    samples: int


class Conditions(Struct, frozen=True, kw_only=True):
    """The device at one moment; 0 where it does not tell."""

    frequency_khz: float = 0.0
    temperature_c: float = 0.0


class TaskResult(Struct, frozen=True, kw_only=True):
    """What was found about one task.

    Attributes:
        error: why it could not be measured; then nothing else is known.
        peak_memory_bytes: resident memory of a process with this task alone, at its highest.
    """

    label: str
    error: str = ""
    peak_memory_bytes: int = 0
    parity: TaskParity | None = None
    latency: TaskLatency | None = None


class ProfileResult(Struct, frozen=True, kw_only=True):
    """What a device found (JSON).

    Attributes:
        isa: ISA class, such as ``aarch64+dotprod``.
        throttling: reasons to believe that the processor was slowed down meanwhile; empty for none noticed.
        first, last: conditions when measuring began and ended.
    """

    schema_version: int = 1
    arch: str
    isa: str
    cpu: str
    runtimes: dict[str, str]
    tasks: tuple[TaskResult, ...]
    throttling: tuple[str, ...] = ()
    first: Conditions = Conditions()
    last: Conditions = Conditions()


class ProfileReport(Struct, frozen=True, kw_only=True, array_like=True):
    """How far a job is, keyed by (device, job, seq).

    Attributes:
        done, total: of ``label``, while it is running.
        result: JSON of a :class:`ProfileResult`, with ``done`` alone.
    """

    protocol_version: int
    device_id: str
    job_id: str
    seq: int
    state: JobState
    detail: str = ""
    label: str = ""
    done: int = 0
    total: int = 0
    result: bytes = b""


_order_encoder: Final = msgspec.msgpack.Encoder()
_order_decoder: Final = msgspec.msgpack.Decoder(ProfileOrder)


def encode_order(order: ProfileOrder) -> bytes:
    """Payload of a :class:`SignedOrder`."""
    return _order_encoder.encode(order)


def decode_order(payload: bytes) -> ProfileOrder:
    """The order in a payload whose signature was verified.

    Raises:
        ContractError: the payload is not an order.
    """
    try:
        return _order_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"unreadable order: {error}", key="job") from error


def plan_files(plan: ProfilePlan) -> list[PlanFile]:
    """Every file that a plan names, each content once."""
    return list({file.digest: file for file in _named(plan)}.values())


def _named(plan: ProfilePlan) -> list[PlanFile]:
    found = [plan.inputs]
    for task in plan.tasks:
        found += [*task.files, *([] if task.expected is None else [task.expected])]
    return found


def check_plan(plan: ProfilePlan) -> None:
    """Refuse a plan that asks for more than a device does.

    Raises:
        ContractError: names what is wrong.
    """
    _within("schema_version", plan.schema_version, 1, PLAN_VERSION)
    _within("tasks", len(plan.tasks), 1, MAX_TASKS)
    _within("warm_up", plan.warm_up, 0, MAX_QUERIES)
    _within("min_queries", plan.min_queries, 1, MAX_QUERIES)
    _within("min_seconds", plan.min_seconds, 0.0, MAX_SECONDS)
    _within("timeout_s", plan.timeout_s, 1.0, MAX_TIMEOUT_S)
    _within("memory_bytes", plan.memory_bytes, 0, 1 << 50)
    _within("files", sum(file.size_bytes for file in plan_files(plan)), 0, MAX_FILES_BYTES)
    for file in _named(plan):
        check_digest(file.digest)
        _within(file.name[:80], file.size_bytes, 0, MAX_FILES_BYTES)
    if len({task.label for task in plan.tasks}) != len(plan.tasks):
        raise ContractError("two tasks of the same label", key="tasks")
    for task in plan.tasks:
        _within(f"{task.label[:80]}: threads", task.threads, 1, _MAX_THREADS)
        names = [file.name for file in task.files]
        if not names or len(set(names)) != len(names) or any(not _is_plain(name) for name in names):
            raise ContractError("not plain names of files", key=task.label[:80], got=", ".join(names)[:80] or "none")


def _is_plain(name: str) -> bool:
    return bool(name) and name not in {".", ".."} and not any(bad in name for bad in ("/", "\\", "\0"))


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ContractError("out of range", key=key, expected=f"{low:g} … {high:g}", got=value)
