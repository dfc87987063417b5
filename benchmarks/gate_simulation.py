"""How often the gate is wrong: something worse than the margin passes; and how many labels it needs to be sure.

    python benchmarks/gate_simulation.py --json

Every trial draws the counts, or the samples, of a model whose true drop is exactly the margin, and asks the rules that
a build asks. Whoever passes then passed by chance. Seeded. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from edgeship.build.metric_gate import FieldEvidence, judge_field, judge_metric
from edgeship.build.metrics import Cells, Metric, Paired, figures
from edgeship.build.metrics.balance import Balanced
from edgeship.build.metrics.errors import Errors
from edgeship.build.metrics.means import Cost
from edgeship.build.metrics.ranking import Auc, class_score
from edgeship.statistics import Disagreements, disagreement_drop, wilson

SEED: Final = 20_270_117
TRIALS: Final = 10_000
#: Of metrics whose every trial resamples thousands of times.
RESAMPLED_TRIALS: Final = 500
SAMPLES: Final = 600
MARGIN: Final = 0.01
#: Where power is measured: int8 that disagrees on 5 % of the samples, as ResNet-8's does, and truly loses 0.3 points.
POWER_DROP: Final = 0.003
DISAGREE: Final = 0.05
UNLABELLED: Final = 20_000
POWER: Final = 0.8
#: Share of disagreements on which both are wrong.
NEITHER: Final = 0.3

Rng = np.random.Generator
Array = np.ndarray[Any, np.dtype[Any]]


def figure(name: str, hits: int, n: int, goal: str | None = None, against: str | None = None) -> dict[str, Any]:
    """A share with its interval; a goal ``≤ x`` is met where the whole interval keeps to it."""
    interval = wilson(hits, n)
    met = None if goal is None else interval.high <= float(goal.split()[1])
    return {
        "name": f"gate/{name}", "value": round(hits / n, 5), "unit": "share", "low": round(interval.low, 5),
        "high": round(interval.high, 5), "n": n, "goal": goal, "met": met, "against": against,
    }  # fmt: skip


@cache
def passes(both: int, lost: int, won: int, neither: int, position: int = 1) -> bool:
    """Whether a build would call these cells proven."""
    cells = Cells(both=both, only_reference=lost, only_candidate=won, neither=neither)
    return judge_metric(Paired(figures=figures("top1", cells), cells=cells), MARGIN, position=position).holds is True


@cache
def passes_by_disagreements(samples: int, found: int, outcomes: tuple[int, int, int], look: int = 1) -> bool:
    """Whether a build would call these labels of disagreements proven."""
    lost, won, neither = outcomes
    counts = Disagreements(
        samples=samples, found=found, only_reference=lost, only_candidate=won, neither=neither
    )  # fmt: skip
    return judge_field(FieldEvidence(counts=counts, look=look), MARGIN).holds is True


def cells_of(drop: float, differ: float, accuracy: float, n: int, rng: Rng, trials: int) -> Array:
    """Paired cells [trials, 4]: both right, only the source, only the variant, neither."""
    lost, won = (differ + drop) / 2.0, (differ - drop) / 2.0
    shares = [accuracy - lost, lost, won, 1.0 - accuracy - won]
    return rng.multinomial(n, shares, size=trials)


def labelled(rng: Rng) -> Iterator[dict[str, Any]]:
    """The gate on labelled samples, at the margin."""
    for n in (540, 1_000, 2_000, 5_000):
        for differ in (0.0101, 0.02, 0.05):
            drawn = cells_of(MARGIN, differ, 0.9, n, rng, TRIALS)
            hits = sum(passes(*map(int, row)) for row in drawn)
            yield figure(f"false pass, labelled, n={n}, one right in {differ:.2%}", hits, TRIALS, "≤ 0.05")


def disagreements(rng: Rng) -> Iterator[dict[str, Any]]:
    """The gate on labels of disagreements, at the margin."""
    for samples in (2_000, UNLABELLED):
        for differ in (0.0101, DISAGREE, 0.15):
            for labels in (100, 400):
                rows = [outcomes_of(samples, differ, labels, MARGIN, rng) for _ in range(TRIALS)]
                hits = sum(passes_by_disagreements(samples, found, outcome) for found, outcome in rows)
                name = f"false pass, {labels} labels of disagreements, {samples} unlabelled, {differ:.2%} disagree"
                yield figure(name, hits, TRIALS, "≤ 0.05")


def outcomes_of(samples: int, differ: float, labels: int, drop: float, rng: Rng) -> tuple[int, tuple[int, int, int]]:
    """Disagreements that are found, and who was right on those that are labelled."""
    neither = min(NEITHER, 1.0 - drop / differ)
    share = drop / differ
    shares = [(1.0 - neither + share) / 2.0, max(0.0, (1.0 - neither - share) / 2.0), neither]
    found = int(rng.binomial(samples, differ))
    lost, won, rest = rng.multinomial(min(labels, found), shares)
    return found, (int(lost), int(won), int(rest))


def ladders(rng: Rng) -> Iterator[dict[str, Any]]:
    """Several variants of a target, each exactly at the margin: does any of them pass?"""
    for count in (2, 4):
        draws = [cells_of(MARGIN, 0.03, 0.9, 2_000, rng, TRIALS) for _ in range(count)]
        rows = [[tuple(map(int, draw[trial])) for draw in draws] for trial in range(TRIALS)]
        corrected = sum(any(passes(*row, position=k + 1) for k, row in enumerate(trial)) for trial in rows)
        plain = sum(any(passes(*row) for row in trial) for trial in rows)
        against = f"the same at 95 % each: {plain / TRIALS:.4f}"
        yield figure(f"false pass of any of {count} variants, labelled, n=2000", corrected, TRIALS, "≤ 0.05", against)


def looks(rng: Rng) -> Iterator[dict[str, Any]]:
    """Labels that are read again and again as they come in: 100 more each time."""
    hits = plain = 0
    for _ in range(TRIALS):
        found = int(rng.binomial(UNLABELLED, DISAGREE))
        share = MARGIN / DISAGREE
        order = rng.choice(3, size=500, p=[(1 - NEITHER + share) / 2, (1 - NEITHER - share) / 2, NEITHER])
        seen = [tuple(int(count) for count in np.bincount(order[:end], minlength=3)) for end in range(100, 501, 100)]
        hits += any(passes_by_disagreements(UNLABELLED, found, one, look) for look, one in enumerate(seen, start=1))
        plain += any(passes_by_disagreements(UNLABELLED, found, one) for one in seen)
    against = f"the same at 95 % each time: {plain / TRIALS:.4f}"
    yield figure("false pass in any of 5 looks at labels of disagreements", hits, TRIALS, "≤ 0.05", against)


def coverage(rng: Rng) -> Iterator[dict[str, Any]]:
    """How often the interval from labels of disagreements misses the true drop, on either side."""
    for drop in (0.0, 0.003, 0.01):
        misses = 0
        for _ in range(TRIALS):
            found, (lost, won, rest) = outcomes_of(UNLABELLED, DISAGREE, 340, drop, rng)
            counts = Disagreements(
                samples=UNLABELLED, found=found, only_reference=lost, only_candidate=won, neither=rest
            )  # fmt: skip
            interval = disagreement_drop(counts)
            misses += not interval.low <= drop <= interval.high
        yield figure(
            f"interval misses a true drop of {drop:.3f}, 340 labels of disagreements", misses, TRIALS, "≤ 0.06"
        )


def power(rng: Rng) -> Iterator[dict[str, Any]]:
    """Labels until a true drop of 0.3 points is proven within one point in 80 % of trials, both ways."""
    differ = DISAGREE * (1.0 - NEITHER)

    def by_labels(n: int) -> float:
        drawn = cells_of(POWER_DROP, differ, 0.87, n, rng, TRIALS // 5)
        return sum(passes(*map(int, row)) for row in drawn) / len(drawn)

    def by_disagreements(n: int) -> float:
        rows = [outcomes_of(UNLABELLED, DISAGREE, n, POWER_DROP, rng) for _ in range(TRIALS // 5)]
        return sum(passes_by_disagreements(UNLABELLED, found, outcome) for found, outcome in rows) / len(rows)

    many, few = _first(by_labels, 500, 16_000), _first(by_disagreements, 50, 990)
    drawn = cells_of(POWER_DROP, differ, 0.87, many, rng, TRIALS)
    hits = sum(passes(*map(int, row)) for row in drawn)
    yield figure(f"power of {many} labelled samples, true drop {POWER_DROP}", hits, TRIALS)
    rows = [outcomes_of(UNLABELLED, DISAGREE, few, POWER_DROP, rng) for _ in range(TRIALS)]
    hits = sum(passes_by_disagreements(UNLABELLED, found, outcome) for found, outcome in rows)
    yield figure(f"power of {few} labels of disagreements among {UNLABELLED}, true drop {POWER_DROP}", hits, TRIALS)
    yield {
        "name": "gate/labels of disagreements ÷ labels at equal power", "value": round(few / many, 4), "unit": "ratio",
        "low": None, "high": None, "n": TRIALS // 5, "goal": "≤ 0.1", "met": few / many <= 0.1,
        "against": f"{few} against {many} labels",
    }  # fmt: skip


def _first(share: Callable[[int], float], low: int, high: int) -> int:
    """Smallest number of labels with the wanted power, to one part in fifty."""
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) >= POWER else (middle, high)
    return high


Trial = Callable[[int], tuple[Metric, Array, Array]]


def resampled(rng: Rng) -> Iterator[dict[str, Any]]:
    """Metrics that are no shares, at a margin that is exactly what the variant truly loses."""
    for name, draw, limit in trials(rng):
        hits = 0
        for _ in range(RESAMPLED_TRIALS):
            metric, reference, candidate = draw(SAMPLES)
            paired = metric.compare({"y": reference}, {"y": candidate})
            hits += judge_metric(paired, limit).holds is True
        yield figure(f"false pass, {name}, n={SAMPLES}", hits, RESAMPLED_TRIALS, "≤ 0.05")


def trials(rng: Rng) -> Iterator[tuple[str, Trial, float]]:
    """Name, how a set of samples is drawn, and the true drop: exact, or from a million samples."""

    def classes(n: int) -> tuple[tuple[int, ...], Array, Array]:
        labels = rng.choice(3, size=n, p=np.array([0.5, 0.3, 0.2]))
        source = np.where(rng.random(n) < 0.08, (labels + 1) % 3, labels)
        variant = np.where(rng.random(n) < 0.03, (labels + rng.integers(1, 3, n)) % 3, source)
        return tuple(map(int, labels)), np.eye(3)[source], np.eye(3)[variant]

    def cost(n: int) -> tuple[Metric, Array, Array]:
        labels, source, variant = classes(n)
        return Cost(labels=labels, matrix=((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (4.0, 4.0, 0.0))), source, variant

    def f1(n: int) -> tuple[Metric, Array, Array]:
        labels, source, variant = classes(n)
        return Balanced(name="f1", labels=labels, classes=3), source, variant

    def auc(n: int) -> tuple[Metric, Array, Array]:
        positive = rng.random(n) < 0.3
        source = rng.normal(1.5 * positive, 1.0)
        metric = Auc(name="auc:1", positive=tuple(map(bool, positive)), score=class_score(0, softmax=False))
        return metric, source[:, None], (source + rng.normal(0.0, 0.5, n))[:, None]

    def rmse(n: int) -> tuple[Metric, Array, Array]:
        targets = rng.normal(0.0, 1.0, (n, 4))
        source = targets + rng.standard_t(5, (n, 4)) * 0.1
        return Errors(name="rmse", targets=targets), source, source + rng.normal(0.0, 0.03, (n, 4))

    yield "cost", cost, _drop_of_a_million(cost)
    yield "f1", f1, _drop_of_a_million(f1)
    cumulative = NormalDist().cdf
    yield "auc", auc, cumulative(1.5 / math.sqrt(2.0)) - cumulative(1.5 / math.sqrt(2.0 + 2.0 * 0.25))
    variance = 0.01 * 5.0 / 3.0  # of Student's t with 5 degrees of freedom, scaled
    yield "rmse", rmse, math.sqrt((variance + 0.03**2) / variance) - 1.0


def _drop_of_a_million(draw: Trial) -> float:
    metric, reference, candidate = draw(1_000_000)
    return metric.compare({"y": reference}, {"y": candidate}).figures.drop


def parts() -> Sequence[Callable[[Rng], Iterator[dict[str, Any]]]]:
    """Everything that is simulated."""
    return (labelled, disagreements, ladders, looks, coverage, power, resampled)


def main() -> None:
    """Print every figure: as JSON lines with ``--json``, else as text."""
    missed = False
    for part in parts():
        for one in part(np.random.default_rng(SEED)):
            missed = missed or one["met"] is False
            if "--json" in sys.argv[1:]:
                print(json.dumps(one, ensure_ascii=False), flush=True)
            else:
                mark = {True: "✔ met", False: "✖ missed", None: "·"}[one["met"]]
                peer = f"   against {one['against']}" if one["against"] else ""
                print(f"{mark:9} {one['name']}: {one['value']} [{one['low']}, {one['high']}]{peer}", flush=True)
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
