"""The fleet server's tables. Times are seconds since the epoch (UTC, the server's receive time)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata: Final = MetaData()

devices: Final = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("target", String, nullable=False),
    Column("arch", String, nullable=False),
    Column("isa", JSON, nullable=False),  # list of str
    Column("runtimes", JSON, nullable=False),  # name → version
    Column("tags", JSON, nullable=False),  # reported by the device, overridden by the operator's
    Column("operator_tags", JSON, nullable=False),
    Column("agent_version", String, nullable=False),
    Column("session", BigInteger, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("first_seen_s", Float, nullable=False),
    Column("last_seen_s", Float, nullable=False),
    Column("goal_generation", BigInteger, nullable=False),  # the newest that the device has accepted
    Column("running", JSON, nullable=False),  # list of maps: RunningArm's fields
    Column("outbox", JSON, nullable=False),  # OutboxCounters' fields
    Column("accepts", JSON, nullable=False),
)

releases: Final = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("digest", String(71), nullable=False),  # of the bundle's image index
    Column("size_bytes", Integer, nullable=False),  # of that index
    Column("manifest", LargeBinary, nullable=False),  # edgeship.json
    Column("author_key", String, nullable=False),
    Column("added_at_s", Float, nullable=False),
    Column("state", String, nullable=False),  # available | blocked
    Column("blocked_reason", String, nullable=False, default=""),
    Column("blocked_by", String, nullable=False, default=""),  # rollout id
    Column("build", LargeBinary, nullable=True),  # build.json, where it came along
    Column("report", LargeBinary, nullable=True),  # report.html, where it came along
    UniqueConstraint("model", "version"),
)

# Releases of several models that switch together.
joint_releases: Final = Table(
    "joint_releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", String, nullable=False),
    Column("digest", String(71), nullable=False),  # of what it holds
    Column("parts", JSON, nullable=False),  # list of {model, version, digest}
    Column("added_at_s", Float, nullable=False),
    Column("state", String, nullable=False),  # available | blocked
    Column("blocked_reason", String, nullable=False, default=""),
    Column("blocked_by", String, nullable=False, default=""),  # rollout id
    UniqueConstraint("name", "version"),
)

author_keys: Final = Table(
    "author_keys",
    metadata,
    Column("model", String, primary_key=True),
    Column("key", String, primary_key=True),  # Ed25519 public key, hex
    Column("trusted_at_s", Float, nullable=False),
)

# What each device shall run. ``generation`` grows with every change of a device's goal.
assignments: Final = Table(
    "assignments",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("model", String, primary_key=True),
    Column("version", String, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("deployment", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("is_rollback", Boolean, nullable=False),
    Column("force", Boolean, nullable=False),
    Column("probation", JSON, nullable=False),  # Probation's fields
    Column("share", Float, nullable=False, server_default="1.0"),  # of the device's traffic
    Column("mirror", Float, nullable=False, server_default="0.0"),  # share of the inputs, for a shadow
    Column("base_version", String, nullable=False, server_default=""),  # who answers the rest; "" for nobody
    Column("base_digest", String, nullable=False, server_default=""),
    Column("base_size_bytes", Integer, nullable=False, server_default="0"),
    Column("cpu_ratio", Float, nullable=False, server_default="0.25"),  # what a shadow may take
    Column("memory_bytes", BigInteger, nullable=False, server_default="0"),  # 0 for no limit
    Column("release", String, nullable=False, server_default=""),  # name@version of the release that it is a part of
)

goals: Final = Table(
    "goals",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("signed", LargeBinary, nullable=False),  # SignedGoal, as it travels
    Column("issued_at_s", Float, nullable=False),
)

rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("id", String, primary_key=True),  # r1, r2, ...
    Column("number", Integer, nullable=False, unique=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("policy", JSON, nullable=False),  # {"name": "threshold", ...}
    Column("stages", JSON, nullable=False),  # list of cumulative shares 0–1
    Column("filter", JSON, nullable=False),  # tag → value
    Column("seed", BigInteger, nullable=False),
    Column("state", String, nullable=False),  # edgeship.rollout.RolloutState
    Column("stage_index", Integer, nullable=False),
    Column("stage_states", JSON, nullable=False),  # list of edgeship.rollout.StageState
    Column("stage_started_s", Float, nullable=False),
    Column("reason", String, nullable=False),  # one sentence: the verdict in words
    Column("verdict", JSON, nullable=True),  # the newest edgeship.rollout.Verdict
    Column("revision", Integer, nullable=False),  # compare-and-set
    Column("created_at_s", Float, nullable=False),
    Column("updated_at_s", Float, nullable=False),
    Column("ended_at_s", Float, nullable=True),
    Column("share", Float, nullable=False, server_default="1.0"),  # of each device's traffic
    Column("mirror", Float, nullable=False, server_default="0.0"),  # share of the inputs, for a shadow
    Column("parts", JSON, nullable=False, server_default="[]"),  # list of {model, version, digest}
)

rollout_devices: Final = Table(
    "rollout_devices",
    metadata,
    Column("rollout_id", String, ForeignKey("rollouts.id"), primary_key=True),
    Column("device_id", String(64), primary_key=True),
    Column("stage_index", Integer, nullable=False),
    Column("stratum", String, nullable=False),
    Column("state", String, nullable=False),  # edgeship.rollout.DeviceState
    Column("substate", String, nullable=False),  # UpdateState of the device
    Column("reason", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("previous_version", String, nullable=False),  # "" where the device had none
    Column("previous_digest", String, nullable=False),
    Column("offered_at_s", Float, nullable=True),
    Column("activated_at_s", Float, nullable=True),
    Column("updated_at_s", Float, nullable=False),
    Column("without_field_traffic", Boolean, nullable=False),
    Column("parts", JSON, nullable=False, server_default="[]"),  # list of MemberPart's fields: how each model stands
)

reports: Final = Table(
    "reports",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("deployment", String, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("model", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("version", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("loaded_digest", String, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("without_field_traffic", Boolean, nullable=False),
    Column("received_at_s", Float, nullable=False),
)

windows: Final = Table(
    "windows",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("variant", String, nullable=False),
    Column("profile_hash", String, nullable=False),
    Column("started_at_s", Float, nullable=False),
    Column("ended_at_s", Float, nullable=False),
    Column("received_at_s", Float, nullable=False),
    Column("inferences", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("deadline_misses", BigInteger, nullable=False),
    Column("crashes", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # MessagePack of the Window
    Index("windows_by_device", "device_id", "model", "version", "received_at_s"),
    Index("windows_by_version", "model", "version", "received_at_s"),
)

# What windows said of predictions that may be older than they are, one row per version and arm.
labels: Final = Table(
    "labels",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("received_at_s", Float, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("unknown", BigInteger, nullable=False),  # of the window, in a row of its own
    Column("confidence_sum_millionths", BigInteger, nullable=False),
    Column("confusion", JSON, nullable=False),  # list of [predicted, label, count]
    Column("predicted_from_s", Float, nullable=False),  # the device's clock
    Column("predicted_until_s", Float, nullable=False),
    Column("lost", BigInteger, nullable=False, server_default="0"),  # of the window, in the same row as unknown
    Index("labels_by_version", "model", "version", "received_at_s"),
)

outcomes: Final = Table(
    "outcomes",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("received_at_s", Float, nullable=False),
    Column("name", String, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
    Column("square_total", Float, nullable=False),
    Index("outcomes_by_version", "model", "version", "received_at_s"),
)

shadows: Final = Table(
    "shadows",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),  # of the candidate
    Column("beside", String, nullable=False),  # version of the champion
    Column("received_at_s", Float, nullable=False),
    Column("compared", BigInteger, nullable=False),
    Column("disagreed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("error_square_sum", Float, nullable=False),
    Column("champion_square_sum", Float, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
    Index("shadows_by_version", "model", "version", "received_at_s"),
)

# One row per start of a device's agent: how far its windows are safe, and the books about repeats.
streams: Final = Table(
    "streams",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("acknowledged_seq", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("evicted", BigInteger, nullable=False),  # gaps that the device's floor skipped
    Column("updated_at_s", Float, nullable=False),
)

# A device's own first windows of a model version: what its drift is judged against.
device_references: Final = Table(
    "device_references",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("model", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("profile_hash", String, primary_key=True),
    Column("window_count", Integer, nullable=False),
    Column("sample_count", BigInteger, nullable=False),
    Column("signals", LargeBinary, nullable=False),  # MessagePack map: signal → sketch
    Column("complete", Boolean, nullable=False),
)

# The newest drift figures of a device and model version; the page's heat map reads the history from the windows.
drift_states: Final = Table(
    "drift_states",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("model", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("updated_at_s", Float, nullable=False),
    Column("sample_count", BigInteger, nullable=False),
    Column("worst_signal", String, nullable=False),
    Column("worst_value", Float, nullable=False),
    Column("state", String, nullable=False),  # no_data | ok | warn | alert
    Column("figures", JSON, nullable=False),  # list of edgeship.drift.SignalDistance's fields, per reference
    Column("alarm", JSON, nullable=False),  # edgeship.drift.AlarmState
)

incidents: Final = Table(
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # data_drift | prediction_drift | performance | infrastructure | security
    Column("device_id", String(64), nullable=False),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("state", String, nullable=False),  # open | closed
    Column("severity", String, nullable=False),  # warn | alert
    Column("sentence", String, nullable=False),
    Column("opened_at_s", Float, nullable=False),
    Column("closed_at_s", Float, nullable=True),
    Column("evidence", JSON, nullable=False),
    Index("incidents_by_state", "state", "device_id"),
)

# Every decision with the evidence that it was made from, so that it can be replayed to the identical verdict.
decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("subject", String, nullable=False),  # rollout/r1, incident/4, refusal/<device>/<attempt>
    Column("at_s", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("sentence", String, nullable=False),
    Column("evidence", JSON, nullable=False),
    Index("decisions_by_subject", "subject", "at_s"),
)

events: Final = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_s", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String, nullable=False),  # device/<id>, rollout/<id>, release/<model>/<version>, server
    Column("sentence", String, nullable=False),
    Column("data", JSON, nullable=False),
)

settings: Final = Table(
    "settings",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", JSON, nullable=False),
)

# Invitations of devices. The secret itself is shown once and never kept.
invitations: Final = Table(
    "invitations",
    metadata,
    Column("id", String, primary_key=True),  # e1, e2, ...
    Column("number", Integer, nullable=False, unique=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("tags", JSON, nullable=False),  # name → value: the group that its devices belong to
    Column("device_limit", Integer, nullable=False),
    Column("device_count", Integer, nullable=False),
    Column("needs_approval", Boolean, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False),
)

# One row per certificate, and per request that waits for an operator.
identities: Final = Table(
    "identities",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", String(64), nullable=False),
    Column("state", String, nullable=False),  # pending | active | replaced | revoked
    Column("key_sha256", String(64), nullable=False),  # SubjectPublicKeyInfo, DER
    Column("csr", String, nullable=False),
    Column("certificate", String, nullable=False, default=""),  # PEM; empty while pending
    Column("serial", String, nullable=False, default=""),  # decimal: SQLite has no integers of 160 bits
    Column("target", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("invitation", String, nullable=False),
    Column("requested_at_s", Float, nullable=False),
    Column("changed_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False, default=0.0),
    Index("identities_by_device", "device_id", "state"),
)
