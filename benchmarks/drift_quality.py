"""How often drift alarms cry wolf, and what they see: real digits, real corruptions, the demo's real models.

    python benchmarks/drift_quality.py --json

Every rule looks at the same samples in the same run: ours (bias-free Jensen–Shannon distance, limit and significance
over all signals), "PSI > 0.2 on any signal" and "KS p < 0.05 on any signal". Seeded. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from msgspec import Struct
from scipy.stats import ks_2samp

import edgeship.demo
from edgeship.demo.digits import Images, fogged, inverted, lens_blurred, load_digits
from edgeship.drift import (
    AlarmState,
    DriftState,
    SignalDistance,
    compare,
    design_effects,
    merge_sketches,
    next_alarm,
)
from edgeship.statistics import wilson
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.sketch import BinnedSketch, Sketch
from edgeship_agent.telemetry.signals import SignalAccumulator, Values, make_profile, measure

SEED: Final = 20_261_123
MODELS: Final = Path(edgeship.demo.__file__).parent / "models"
CONTRACT: Final = OutputContract(labels=tuple("0123456789"), activation="softmax")
#: Where false alarms are counted, every third pixel is a tabular feature, so that a comparison has 28 signals. Power is
#: measured on the 7 signals of an image classifier alone: pixels would make it easy.
PIXELS: Final = tuple(range(0, 63, 3))
NULL_TRIALS: Final = 150
POWER_TRIALS: Final = 20
DEVICES: Final = 60
LOOKS: Final = 40
WINDOW_CALLS: Final = 60
MERGED_WINDOWS: Final = 5
HOT, OF = 3, 4
RULES: Final = ("edgeship", "PSI > 0.2", "KS p < 0.05")
#: A corruption that costs more accuracy than this is harmful.
HARMFUL_DROP: Final = 0.05
SEVERITIES: Final = (1, 2, 3, 4, 5)

Rng = np.random.Generator


class Measured(Struct, frozen=True):
    """Signals of some images through a model.

    Attributes:
        rows: one map of signals per image.
        matrix: the same [N, signals], in the order of ``names``.
        right: share of right answers.
    """

    rows: list[Values]
    names: tuple[str, ...]
    matrix: np.ndarray[Any, np.dtype[np.float64]]
    right: float


def measured(images: Images, labels: np.ndarray[Any, Any], version: str, pixels: Sequence[int] = ()) -> Measured:
    """Run a demo model and measure what a device would measure, and some pixels as tabular features."""
    session = onnxruntime.InferenceSession(str(MODELS / f"digits-{version}.onnx"))
    (logits,) = session.run(None, {"image": images[:, None].astype(np.float32) / 16.0})
    rows = []
    for image, scores in zip(images, logits, strict=True):
        values = measure({"image": image}, {"logits": scores[None]}, CONTRACT)
        flat = image.reshape(-1)
        rows.append({**values, **{f"input/pixels/{index}": float(flat[index]) for index in pixels}})
    names = tuple(rows[0])
    matrix = np.asarray([[row[name] for name in names] for row in rows], np.float64)
    return Measured(rows=rows, names=names, matrix=matrix, right=float(np.mean(logits.argmax(1) == labels)))


def sketches(profile: Profile, rows: Sequence[Values]) -> dict[str, Sketch]:
    """What a device would send."""
    accumulator = SignalAccumulator(profile)
    for row in rows:
        accumulator.add(row)
    return accumulator.take()


class Baseline:
    """Reference samples with the profile made from them."""

    def __init__(self, source: Measured, chosen: np.ndarray[Any, Any]) -> None:
        self.source = source
        self.chosen = chosen
        self.profile = make_profile([source.rows[i] for i in chosen], class_count=10)

    def verdicts(self, seen: Measured, drawn: np.ndarray[Any, Any]) -> tuple[tuple[SignalDistance, ...], list[bool]]:
        """Our distances, and whether each of :data:`RULES` cries out over these samples, sent in five windows."""
        windows = [
            sketches(self.profile, [seen.rows[i] for i in part]) for part in np.array_split(drawn, MERGED_WINDOWS)
        ]
        taken = merge_sketches(windows)
        distances = compare(self.profile, taken, dependence=design_effects(windows))
        ours = any(distance.state is DriftState.ALERT for distance in distances)
        by_ks = any(
            ks_2samp(seen.matrix[drawn, k], self.source.matrix[self.chosen, k], method="asymp").pvalue < 0.05
            for k in range(len(seen.names))
        )
        return distances, [ours, self._by_psi(taken), by_ks]

    def _by_psi(self, taken: dict[str, Sketch]) -> bool:
        for signal in self.profile.signals:
            seen = taken.get(signal.name)
            if isinstance(seen, BinnedSketch) and isinstance(signal.reference, BinnedSketch):
                p = (np.asarray(seen.counts) + 0.5) / (seen.total + 0.5 * len(seen.counts))
                q = (np.asarray(signal.reference.counts) + 0.5) / (signal.reference.total + 0.5 * len(seen.counts))
                if float(np.sum((p - q) * np.log(p / q))) > 0.2:
                    return True
        return False


def _pixels(values: np.ndarray[Any, Any]) -> Images:
    return np.clip(np.rint(values), 0, 16).astype(np.uint8)


def noise(images: Images, severity: int, rng: Rng) -> Images:
    """Sensor noise."""
    return _pixels(images + rng.normal(0.0, 0.6 * severity, images.shape))


def blur(images: Images, severity: int, rng: Rng) -> Images:
    """A lens more and more out of focus."""
    del rng
    weight = severity / 5.0
    return _pixels((1.0 - weight) * images + weight * lens_blurred(images))


def brightness(images: Images, severity: int, rng: Rng) -> Images:
    """More light."""
    del rng
    return _pixels(images + 0.8 * severity)


def contrast(images: Images, severity: int, rng: Rng) -> Images:
    """Less contrast around mid-grey."""
    del rng
    return _pixels(8.0 + (images - 8.0) * (1.0 - 0.15 * severity))


def invert(images: Images, severity: int, rng: Rng) -> Images:
    """A share of the frames arrives inverted."""
    hit = rng.random(len(images)) < severity / 5.0
    return np.where(hit[:, None, None], inverted(images), images)


def shift(images: Images, severity: int, rng: Rng) -> Images:
    """A share of the frames is one pixel off."""
    hit = rng.random(len(images)) < severity / 5.0
    return np.where(hit[:, None, None], np.roll(images, 1, axis=2), images)


def occlusion(images: Images, severity: int, rng: Rng) -> Images:
    """Something covers a corner."""
    del rng
    covered = images.copy()
    covered[:, : severity + 1, : severity + 1] = 0
    return covered


def dead_pixels(images: Images, severity: int, rng: Rng) -> Images:
    """Pixels that are stuck, the same in every frame."""
    stuck = rng.choice(64, size=2 * severity, replace=False)
    broken = images.reshape(-1, 64).copy()
    broken[:, stuck] = 16 * rng.integers(0, 2, len(stuck), dtype=np.uint8)
    return broken.reshape(-1, 8, 8)


CORRUPTIONS: Final[tuple[Callable[[Images, int, Rng], Images], ...]] = (
    noise,
    blur,
    brightness,
    contrast,
    invert,
    shift,
    occlusion,
    dead_pixels,
)


def figure(name: str, hits: int, n: int, goal: str | None = None, against: str | None = None) -> dict[str, Any]:
    """A share as a benchmark figure; the goal is ``≤ x`` or ``≥ x``, held by the share itself."""
    interval = wilson(hits, n)
    met = None
    if goal is not None:
        bound = float(goal.split()[1])
        met = hits / n <= bound if goal.startswith("≤") else hits / n >= bound
    return {
        "name": f"drift/{name}",
        "value": round(hits / n, 5),
        "unit": "share",
        "low": round(interval.low, 5),
        "high": round(interval.high, 5),
        "n": n,
        "goal": goal,
        "met": met,
        "against": against,
    }


def peers(counts: Sequence[int], n: int) -> str:
    """What the naive rules did on the same samples."""
    return ", ".join(f"{rule}: {count / n:.3f}" for rule, count in zip(RULES[1:], counts[1:], strict=True))


def false_alerts(pool: Measured, rng: Rng) -> Iterator[dict[str, Any]]:
    """Looks at samples of the very distribution that the baseline is of, by sample size."""
    size = len(pool.rows)
    for n in (60, 100, 300, 600):
        looks, signal_alerts, signals = [0, 0, 0], 0, 0
        for _ in range(NULL_TRIALS):
            order = rng.permutation(size)
            baseline = Baseline(pool, order[: size // 2])
            distances, cries = baseline.verdicts(pool, order[size // 2 :][:n])
            looks = [count + cry for count, cry in zip(looks, cries, strict=True)]
            signal_alerts += sum(distance.state is DriftState.ALERT for distance in distances)
            signals += len(distances)
        yield figure(f"false alerts per signal, n={n}", signal_alerts, signals, goal="≤ 0.001")
        yield figure(
            f"false alerts per look at 28 signals, n={n}", looks[0], NULL_TRIALS, "≤ 0.01", peers(looks, NULL_TRIALS)
        )


def false_alarms(pool: Measured, rng: Rng, repeats: int) -> Iterator[dict[str, Any]]:
    """Healthy devices over 40 looks at their newest five windows of 60 calls, 3 hot looks of 4 open an incident.

    Args:
        pool: what both sides are drawn from.
        rng: randomness.
        repeats: how often the camera sends each frame, one after the other; the samples depend on each other then.
    """
    size, opened = len(pool.rows), [0, 0, 0]
    for _ in range(DEVICES):
        order = rng.permutation(size)
        baseline, rest = Baseline(pool, order[: size // 2]), order[size // 2 :]
        frames = (LOOKS + MERGED_WINDOWS) * WINDOW_CALLS // repeats
        stream = np.repeat(rng.choice(rest, size=frames), repeats)
        alarms, fired = [AlarmState() for _ in RULES], [False for _ in RULES]
        for look in range(LOOKS):
            newest = stream[look * WINDOW_CALLS : (look + MERGED_WINDOWS) * WINDOW_CALLS]
            for k, cry in enumerate(baseline.verdicts(pool, newest)[1]):
                alarms[k], event = next_alarm(alarms[k], cry, HOT, OF)
                fired[k] = fired[k] or event == "open"
        opened = [count + one for count, one in zip(opened, fired, strict=True)]
    frames_sent = "" if repeats == 1 else f", each frame sent {repeats} times"
    name = f"healthy devices with an incident in {LOOKS} looks{frames_sent}"
    yield figure(name, opened[0], DEVICES, "≤ 0.02", peers(opened, DEVICES))


def power(images: Images, labels: np.ndarray[Any, Any], pool: Measured, rng: Rng) -> Iterator[dict[str, Any]]:
    """Corrupted streams of 300 calls against a baseline of clean images that the stream does not hold."""
    half = len(images) // 2
    baseline = Baseline(pool, np.arange(half))
    found = {True: [0, 0, 0], False: [0, 0, 0]}
    looks = {True: 0, False: 0}
    for corruption in CORRUPTIONS:
        hits = 0
        for severity in SEVERITIES:
            broken = measured(corruption(images[half:], severity, rng), labels[half:], "v2")
            harmful = pool.right - broken.right > HARMFUL_DROP
            for _ in range(POWER_TRIALS):
                drawn = rng.choice(len(broken.rows), size=300, replace=False)
                cries = baseline.verdicts(broken, drawn)[1]
                hits += cries[0]
                found[harmful] = [count + cry for count, cry in zip(found[harmful], cries, strict=True)]
                looks[harmful] += 1
        yield figure(f"{corruption.__name__} seen, all severities, n=300", hits, POWER_TRIALS * len(SEVERITIES))
    for harmful, word, goal in ((True, "harmful", "≥ 0.95"), (False, "harmless", None)):
        if looks[harmful]:
            counts, n = found[harmful], looks[harmful]
            yield figure(f"{word} corruptions seen, n=300", counts[0], n, goal, peers(counts, n))


def demo_cases(rng: Rng) -> Iterator[dict[str, Any]]:
    """What the demo claims: its two corruptions on v2, and v3 seeing images that are not inverted."""
    digits = load_digits()
    base = np.concatenate([digits.calibration.images, digits.rest.images])
    labels = np.concatenate([digits.calibration.labels, digits.rest.labels])
    stream = digits.evaluation
    cases = (
        ("lens out of focus", "v2", base, lens_blurred(stream.images), "input", 300),
        ("fog", "v2", base, fogged(stream.images), "input", 300),
        ("v3 on normal images, by its predictions", "v3", inverted(base), stream.images, "output", 100),
    )
    for name, version, normal, images, family, n in cases:
        reference = measured(normal, labels, version)
        baseline = Baseline(reference, np.arange(len(reference.rows)))
        seen, hits = measured(images, stream.labels, version), 0
        for _ in range(POWER_TRIALS):
            distances, _ = baseline.verdicts(seen, rng.choice(len(seen.rows), size=n, replace=False))
            hits += any(d.state is DriftState.ALERT for d in distances if d.family == family)
        yield figure(f"demo: {name}, n={n}, baseline {len(base)}", hits, POWER_TRIALS, "≥ 1")


def demo_healthy(rng: Rng) -> Iterator[dict[str, Any]]:
    """The demo's healthy devices: its baseline, and each device's own first 300 calls as a second reference."""
    digits = load_digits()
    base = np.concatenate([digits.calibration.images, digits.rest.images])
    labels = np.concatenate([digits.calibration.labels, digits.rest.labels])
    opened = looked = 0
    for version in ("v1", "v2"):
        normal = measured(base, labels, version)
        profile = Baseline(normal, np.arange(len(normal.rows))).profile
        stream = measured(digits.evaluation.images, digits.evaluation.labels, version)
        for _ in range(DEVICES):
            calls = [stream.rows[i] for i in rng.choice(len(stream.rows), (LOOKS + 2 * MERGED_WINDOWS) * WINDOW_CALLS)]
            windows = [
                sketches(profile, calls[start : start + WINDOW_CALLS]) for start in range(0, len(calls), WINDOW_CALLS)
            ]
            opened += _opens(profile, windows)
            looked += 1
    yield figure(
        f"demo: healthy devices with an incident in {LOOKS} looks, baseline {len(base)}", opened, looked, "≤ 0.01"
    )


def _opens(profile: Profile, windows: list[dict[str, Sketch]]) -> bool:
    """Whether a device's windows ever open an incident, against its baseline or against its own first windows."""
    own = merge_sketches(windows[:MERGED_WINDOWS])
    alarm = AlarmState()
    for start in range(MERGED_WINDOWS, len(windows) - MERGED_WINDOWS):
        newest = windows[start : start + MERGED_WINDOWS]
        seen, dependence = merge_sketches(newest), design_effects(newest)
        distances = [
            *compare(profile, seen, dependence=dependence),
            *compare(profile, seen, own, reference="device", dependence=dependence),
        ]
        hot = any(distance.state is DriftState.ALERT for distance in distances)
        alarm, event = next_alarm(alarm, hot, HOT, OF)
        if event == "open":
            return True
    return False


def figures() -> Iterator[dict[str, Any]]:
    """All figures, from one seed."""
    rng = np.random.default_rng(SEED)
    digits = load_digits()
    parts = (digits.calibration, digits.evaluation, digits.rest)  # not what the models were trained on
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    wide = measured(images, labels, "v2", PIXELS)
    yield from false_alerts(wide, rng)
    yield from false_alarms(wide, rng, repeats=1)
    yield from false_alarms(wide, rng, repeats=3)
    yield from power(images, labels, measured(images, labels, "v2"), rng)
    yield from demo_cases(rng)
    yield from demo_healthy(rng)


def main() -> None:
    """Print every figure: as JSON lines with ``--json``, else as text."""
    missed = False
    for one in figures():
        missed = missed or one["met"] is False
        if "--json" in sys.argv[1:]:
            print(json.dumps(one, ensure_ascii=False), flush=True)
        else:
            mark = {True: "✔ met", False: "✖ missed", None: "·"}[one["met"]]
            peer = f"   against {one['against']}" if one["against"] else ""
            print(
                f"{mark:9} {one['name']}: {one['value']} [{one['low']}, {one['high']}] n={one['n']}{peer}", flush=True
            )
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
