"""What the demo claims, each with its number and its limit: decided here, from figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

RESULT_VERSION: Final = 1
MAX_RELATIVE_RMS: Final = 0.05
MAX_LATENCY_P99_MS: Final = 10.0
EVALUATION_COUNT: Final = 900
MIN_LATENCY_CALLS: Final = 2000


class Claim(Struct, frozen=True, kw_only=True):
    """One checked statement.

    Attributes:
        kind: ``logic`` (must hold anywhere) or ``timing`` (a measurement of this machine).
        n: how many samples, devices or windows the value rests on.
    """

    id: str
    text: str
    kind: str
    value: Any
    limit: Any
    n: int
    holds: bool


class Books(Struct, frozen=True, kw_only=True):
    """One device's windows, in its own books and in the server's.

    Attributes:
        created: windows that the device made, by its own counter.
        evicted: windows that it gave up for want of space, by its own counter.
        stored: rows of that device in the server's database, by the database's count.
    """

    device_id: str
    created: int
    evicted: int
    stored: int


def accuracy_claims(version: str, variants: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Accuracy with its interval, and closeness to the source, of every chosen variant of a build."""
    claims = []
    for variant in variants:
        metric = variant["metric"]
        name = f"{variant['runtime']} {variant['precision']}"
        claims.append(
            Claim(
                id=f"accuracy.{version}.{variant['runtime']}",
                text=f"{version} on {name}: {metric['value']:.1%} right "
                f"(95 % {metric['low']:.1%}–{metric['high']:.1%}), "
                f"drop to the source at most {metric['drop_high']:+.2%}",
                kind="logic",
                value={"accuracy": metric["value"], "low": metric["low"], "high": metric["high"]},
                limit={"verdict": "pass", "n": EVALUATION_COUNT},
                n=metric["n"],
                holds=variant["verdict"] == "pass" and metric["n"] == EVALUATION_COUNT,
            )
        )
        claims.append(
            Claim(
                id=f"relative_rms.{version}.{variant['runtime']}",
                text=f"{version} on {name}: relative RMS to the source {variant['relative_rms']:.4f}",
                kind="logic",
                value=variant["relative_rms"],
                limit=MAX_RELATIVE_RMS,
                n=metric["n"],
                holds=variant["relative_rms"] <= MAX_RELATIVE_RMS,
            )
        )
    return claims


def runtime_claim(runtimes: Mapping[str, str], wanted: int) -> Claim:
    """The fleet runs on that many different runtimes; ``runtimes`` is device → runtime that answered."""
    seen = sorted(set(runtimes.values()))
    return Claim(
        id="runtimes",
        text=f"the fleet runs {len(seen)} runtimes: {', '.join(seen)}",
        kind="logic",
        value=seen,
        limit=wanted,
        n=len(runtimes),
        holds=len(seen) == wanted,
    )


def latency_claim(runtime: str, latencies_ms: Sequence[float]) -> Claim:
    """p99 of single calls through the agent's socket."""
    ordered = sorted(latencies_ms)
    p99_ms = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else float("inf")
    p50_ms = ordered[len(ordered) // 2] if ordered else float("inf")
    return Claim(
        id=f"latency_p99_ms.{runtime}",
        text=f"{runtime} answers through the socket in p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms",
        kind="timing",
        value=round(p99_ms, 4),
        limit=MAX_LATENCY_P99_MS,
        n=len(ordered),
        holds=p99_ms < MAX_LATENCY_P99_MS and len(ordered) >= MIN_LATENCY_CALLS,
    )


def committed_claim(version: str, running: Mapping[str, str]) -> Claim:
    """A version is committed on every device; ``running`` is device → version loaded and committed."""
    there = [device for device, seen in running.items() if seen == version]
    return Claim(
        id=f"{version}_committed",
        text=f"{version} is committed on {len(there)} of {len(running)} devices",
        kind="logic",
        value=len(there),
        limit=len(running),
        n=len(running),
        holds=bool(running) and len(there) == len(running),
    )


def drift_claim(expected: Sequence[str], found: Sequence[str]) -> Claim:
    """Drift incidents stand on exactly the devices whose input was corrupted."""
    return Claim(
        id="drift_devices",
        text=f"drift incidents on {', '.join(sorted(set(found))) or 'no device'}; "
        f"corrupted were {', '.join(sorted(expected))}",
        kind="logic",
        value=sorted(set(found)),
        limit=sorted(expected),
        n=len(expected),
        holds=sorted(set(found)) == sorted(expected),
    )


def halt_claims(version: str, rollout: Mapping[str, Any], reached: Sequence[str], canaries: int) -> list[Claim]:
    """The bad version was halted at its first stage and never went further than the canaries."""
    stage = int(rollout["stage_index"]) + 1
    return [
        Claim(
            id=f"{version}_halted",
            text=f"{version} was halted at stage {stage}: {rollout['reason']}",
            kind="logic",
            value={"state": rollout["state"], "stage": stage},
            limit={"state": "rolled_back", "stage": 1},
            n=len(reached),
            holds=rollout["state"] == "rolled_back" and stage == 1,
        ),
        Claim(
            id=f"{version}_blast_radius",
            text=f"{version} reached {len(reached)} of at most {canaries} devices",
            kind="logic",
            value=sorted(reached),
            limit=canaries,
            n=len(reached),
            holds=0 < len(reached) <= canaries,
        ),
    ]


def recovery_claims(bad: str, good: str, running: Mapping[str, str], release_state: str) -> list[Claim]:
    """After the rollback: nowhere the bad version, everywhere the good one, and the bad one blocked."""
    left = sorted(device for device, version in running.items() if version == bad)
    healthy = sorted(device for device, version in running.items() if version == good)
    return [
        Claim(
            id=f"{bad}_nowhere",
            text=f"{bad} is left on {len(left)} devices",
            kind="logic",
            value=left,
            limit=[],
            n=len(running),
            holds=not left and bool(running),
        ),
        Claim(
            id="fleet_healthy",
            text=f"the fleet is healthy on {good}: {len(healthy)} of {len(running)} devices",
            kind="logic",
            value=len(healthy),
            limit=len(running),
            n=len(running),
            holds=len(healthy) == len(running) > 0,
        ),
        Claim(
            id=f"{bad}_blocked",
            text=f"release {bad} is {release_state}",
            kind="logic",
            value=release_state,
            limit="blocked",
            n=1,
            holds=release_state == "blocked",
        ),
    ]


def book_claims(books: Sequence[Books]) -> list[Claim]:
    """No window is lost and none is counted twice: the devices' own counters against the server's rows."""
    created = sum(book.created for book in books)
    lost = sum(max(0, book.created - book.stored) for book in books)
    twice = sum(max(0, book.stored - book.created) for book in books)
    return [
        Claim(
            id="windows_lost",
            text=f"{lost} of {created} windows lost",
            kind="logic",
            value=lost,
            limit=0,
            n=created,
            holds=lost == 0 and created > 0,
        ),
        Claim(
            id="windows_counted_twice",
            text=f"{twice} of {created} windows counted twice",
            kind="logic",
            value=twice,
            limit=0,
            n=created,
            holds=twice == 0 and created > 0,
        ),
    ]
