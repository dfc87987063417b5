"""Messages between device and server, as MessagePack arrays.

A reader ignores trailing fields that it does not know, so fields are only ever added at the end, with a default.
Strings are bounded where they are read (:mod:`edgeship_agent.contract.wire`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct, field

from edgeship_agent.contract.sketch import ExponentialSketch, Sketch

PROTOCOL_VERSION: Final = 1


class UpdateState(str, Enum):
    """States of one update attempt on a device."""

    IDLE = "idle"
    ACCEPTED = "accepted"
    PRECHECK = "precheck"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    WAIT_WINDOW = "wait_window"
    SHADOW = "shadow"
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    INCONSISTENT = "inconsistent"
    REJECTED = "rejected"
    FAILED_CLEAN = "failed_clean"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"

    @property
    def is_terminal(self) -> bool:
        """Whether an attempt ends here."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        UpdateState.COMMITTED,
        UpdateState.ROLLED_BACK,
        UpdateState.INCONSISTENT,
        UpdateState.REJECTED,
        UpdateState.FAILED_CLEAN,
        UpdateState.CANCELED,
        UpdateState.SUPERSEDED,
    }
)


class RunningArm(Struct, frozen=True, kw_only=True, array_like=True):
    """A model that a device has loaded right now.

    Attributes:
        digest: digest of the bundle that is *actually loaded*.
        variant: ``target/runtime/precision``.
        state: ``committed`` or ``probation``.
        retained_version: what a rollback would go to, without network; empty for none.
        fallback: why the bundle's full precision is served in place of the variant that the build chose, such as
            ``golden_mismatch``; empty where the chosen one is.
    """

    model: str
    arm: str
    version: str
    digest: str
    variant: str
    state: str
    retained_version: str = ""
    fallback: str = ""


class UpdateReport(Struct, frozen=True, kw_only=True, array_like=True):
    """One step of an update attempt, keyed by (device, deployment, attempt, seq).

    Attributes:
        seq: counts the reports of an attempt from 1.
        reason: short code for machines, such as ``golden_mismatch``; empty where all is well.
        detail: one sentence for people.
        loaded_digest: what is actually loaded after this step.
        figures: numbers that the decision was made from, by name with the unit last.
        without_field_traffic: committed on golden inputs alone; never counts as a pass of a stage.
    """

    protocol_version: int
    device_id: str
    deployment: str
    attempt: int
    seq: int
    model: str
    arm: str
    version: str
    digest: str
    state: UpdateState
    reason: str = ""
    detail: str = ""
    loaded_digest: str = ""
    at_s: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    without_field_traffic: bool = False
    session: int = 0


class OutboxCounters(Struct, frozen=True, kw_only=True, array_like=True):
    """What became of every window since the device's state directory was made.

    ``created = acknowledged + evicted + waiting`` always holds.

    Attributes:
        unclean_ends: how often the agent ended by a power cut or a kill. Each may have cost the windows that one flush
            interval made and the server had not acknowledged; no other counter holds those.
    """

    created: int = 0
    acknowledged: int = 0
    evicted: int = 0
    waiting: int = 0
    unclean_ends: int = 0


class Birth(Struct, frozen=True, kw_only=True, array_like=True):
    """Full state of a device, sent on every connect.

    Attributes:
        session: grows with every connect, kept on disk; a will of an older session is ignored.
        runtimes: name → version of the inference runtimes that are installed.
        isa: instruction set extensions that matter: ``vnni``, ``dotprod``, ``i8mm``, ``avx2``, ...
        last_reports: newest report of every attempt that the device remembers.
        accepts: hash of the output contract that the application declared, by model; empty for any.
    """

    protocol_version: int
    device_id: str
    session: int
    sent_at_s: float
    clock_quality: str
    agent_version: str
    target: str
    arch: str
    isa: tuple[str, ...]
    runtimes: dict[str, str]
    tags: dict[str, str]
    running: tuple[RunningArm, ...]
    last_reports: tuple[UpdateReport, ...]
    outbox: OutboxCounters
    goal_generation: int
    accepts: dict[str, str] = field(default_factory=dict)


class Death(Struct, frozen=True, kw_only=True, array_like=True):
    """Last will: this session is gone."""

    protocol_version: int
    device_id: str
    session: int


class Heartbeat(Struct, frozen=True, kw_only=True, array_like=True):
    """A device is alive, and this is what it runs."""

    protocol_version: int
    device_id: str
    session: int
    uptime_s: float
    running: tuple[RunningArm, ...]
    outbox: OutboxCounters
    goal_generation: int


class LabelTally(Struct, frozen=True, kw_only=True, array_like=True):
    """Labels that came for predictions of one version and arm, which may be older than the window that reports them.

    Attributes:
        labelled: predictions that got their label; a label that is said again is not counted again.
        correct: those whose predicted class was the label.
        confusion: (predicted class, label, count), in order; at most :data:`MAX_CONFUSION_CELLS`, what does not fit is
            counted in ``labelled`` and ``correct`` alone. A predicted class of -1: the outputs held NaN.
        confidence_sum_millionths: Σ of their confidences, in millionths, each rounded.
        predicted_from_s, predicted_until_s: when the oldest and the newest of them was predicted, wall clock.
    """

    version: str
    arm: str
    digest: str
    labelled: int
    correct: int
    confusion: tuple[tuple[int, int, int], ...] = ()
    confidence_sum_millionths: int = 0
    predicted_from_s: float = 0.0
    predicted_until_s: float = 0.0


class OutcomeTally(Struct, frozen=True, kw_only=True, array_like=True):
    """Business figures of one name that came for predictions of one version and arm.

    Attributes:
        count: predictions with such a figure.
        total, square_total: Σ of the values (each at most ± :data:`MAX_OUTCOME`) and of their squares; exact for whole
            numbers below 2⁵³.
    """

    version: str
    arm: str
    digest: str
    name: str
    count: int
    total: float
    square_total: float


#: Greatest figure of an outcome, either way: a double still holds its unit (below 2⁵³), and the squares of as many as
#: can be counted (2⁵³) have a sum that is far from a double's end, 2·10⁴⁶ of 2·10³⁰⁸.
MAX_OUTCOME: Final = 1e15
#: Cells of one confusion table in one window.
MAX_CONFUSION_CELLS: Final = 256


class ShadowTally(Struct, frozen=True, kw_only=True, array_like=True):
    """A candidate beside the champion: the same inputs, both outputs compared, the candidate's thrown away.

    Attributes:
        version, digest: of the candidate.
        compared: inputs that both answered.
        disagreed: those of another class; 0 where the outputs are no classes.
        failed: inputs that the candidate answered with an error, or died of.
        dropped: inputs that were drawn but not mirrored: over the budget, or the one before was still running.
        error_square_sum, champion_square_sum: Σ (candidate - champion)² and Σ champion² over all values of the first
            output; the relative RMS is the root of their ratio.
        busy_us: time that the candidate took.
    """

    version: str
    digest: str
    compared: int
    disagreed: int
    failed: int
    dropped: int
    error_square_sum: float = 0.0
    champion_square_sum: float = 0.0
    busy_us: int = 0


class Window(Struct, frozen=True, kw_only=True, array_like=True):
    """Telemetry of one model arm over some time or some calls.

    Keyed by (device, boot_id, seq); ``profile_hash`` keeps sketches over different bins apart.

    Attributes:
        boot_id: names one start of the agent.
        seq: counts the windows of that start from 1, over all models.
        digest: digest of the bundle that answered.
        profile_hash: sha256 (hex) of the profile whose bins the sketches use.
        inferences: answered calls; a call is answered, failed or shed.
        failures: calls that ended in an error.
        deadline_misses: answered too late; they count as answered as well.
        crashes: deaths of the worker process that were not asked for.
        latency_us: per call, preprocessing included.
        signals: signal name → sketch.
        schema_faults: check → count: ``missing``, ``type``, ``range``, ``unseen_category``.
        gauges: infrastructure at the end of the window: ``memory_bytes``, ``cpu_ratio``, ``temperature_c``, ...
        hard_stops: reasons for which one device suffices: ``nan_output``, ``constant_class``, ...
        labels, outcomes: what was learnt in this time of predictions that may be older.
        label_unknown: labels and outcomes for predictions that this device does not remember (any more).
        shadow: candidates that ran beside this arm.
        label_lost: labels and outcomes for predictions that were lost when a worker died; not in ``label_unknown``.
        stream_delay_us: of answers that ``edgeship-agent stream`` gave with this release, from the input's time until
            the answer was out; None where there were none. These answers are not in ``inferences``.
    """

    boot_id: str
    seq: int
    model: str
    version: str
    arm: str
    digest: str
    variant: str
    profile_hash: str
    started_at_s: float
    ended_at_s: float
    clock_quality: str
    inferences: int
    failures: int
    deadline_misses: int
    shed: int
    crashes: int
    latency_us: ExponentialSketch
    signals: dict[str, Sketch]
    schema_faults: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    hard_stops: tuple[str, ...] = ()
    labels: tuple[LabelTally, ...] = ()
    outcomes: tuple[OutcomeTally, ...] = ()
    label_unknown: int = 0
    shadow: tuple[ShadowTally, ...] = ()
    label_lost: int = 0
    stream_delay_us: ExponentialSketch | None = None


class WindowBatch(Struct, frozen=True, kw_only=True, array_like=True):
    """Windows of one start of the agent, in order of ``seq``; travels zlib-compressed.

    Attributes:
        floor_seq: the lowest seq that can still arrive; what lies below was acknowledged or evicted.
        outbox: the device's own counters, for the server's books.
    """

    protocol_version: int
    device_id: str
    boot_id: str
    floor_seq: int
    windows: tuple[Window, ...]
    outbox: OutboxCounters = OutboxCounters()


class Ack(Struct, frozen=True, kw_only=True, array_like=True):
    """Sent after the database commit: every window up to ``seq`` of that start is safe with the server."""

    protocol_version: int
    boot_id: str
    seq: int


Message = Birth | Death | Heartbeat | WindowBatch | UpdateReport | Ack
