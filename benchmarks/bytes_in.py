"""What folding the normalisation gains, bytes in to answer out.

    python benchmarks/bytes_in.py MODEL.tflite --json

The same quantized and float files with the arithmetic in them and outside, called as the agent calls them: the device's
steps in numpy, then the runtime. Both take turns in one run, so the ratio holds when the machine's speed drifts. The
model takes images [1, height, width, 3] of float32; three contracts: a cast alone, a share of 255, and a mean and a
deviation for each channel. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeship.build import folding, oracle, sources
from edgeship.build.backends import Job, Scheme, open_backend
from edgeship.build.measure import measure
from edgeship.build.progress import Silence
from edgeship.build.routes import Forms, plan
from edgeship.build.verify import open_artifact
from edgeship.targets import Measure
from edgeship_agent.contract.manifest import Cast, InputContract, Normalize, Scale, Step
from edgeship_agent.processing import prepare
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import Array

PLAN = Measure(warm_up=200, min_queries=2000, min_seconds=0.5)
SAMPLES = 32
PARTS = 20
#: Folding must cost nothing; what a run of this length can tell apart is two hundredths.
GOAL = 1.02
CONTRACTS: dict[str, tuple[Step, ...]] = {
    "cast": (Cast(dtype="float32"),),
    "share": (Cast(dtype="float32"), Scale(factor=1 / 255)),
    "channels": (Cast(dtype="float32"), Normalize(mean=(1.0, 2.0, 3.0), std=(1.01, 1.02, 1.03))),
}
RUNTIMES = ("litert", "onnxruntime", "openvino")


class Call:
    """One inference from the raw sample on."""

    def __init__(self, bound: BoundModel, contract: InputContract) -> None:
        self._bound, self._contracts = bound, [contract]

    def __call__(self, raw: Mapping[str, Array]) -> Mapping[str, Array]:
        """The agent's own path."""
        return self._bound.run(prepare(self._contracts, raw))


def calls(
    model: Path, runtime: str, steps: tuple[Step, ...], folder: Path
) -> tuple[dict[str, Call], list[dict[str, Array]]]:
    """``precision/plain`` and ``precision/folded``, and raw samples."""
    source = sources.load(model)
    spec = source.inputs[0]
    whole = InputContract(tensor=spec.name, dtype="uint8", shape=spec.call_shape[1:], steps=steps)
    short = folding.shorten(whole, spec)
    assert isinstance(short, InputContract)
    rng = np.random.default_rng(1)
    raw = [{spec.name: rng.integers(0, 256, whole.shape, np.uint8)} for _ in range(SAMPLES)]
    full = [prepare([whole], each) for each in raw]
    answers = oracle.open_oracle(source, folder / "source").run(full, "source", Silence())
    form = Forms(source, folder / "forms", lambda _: None).file(plan(source.format, runtime)[-1])
    made = {}
    for name, contract in (("plain", whole), ("folded", short)):
        backend = open_backend(runtime, [contract])
        job = Job(source=source, samples=full, checks=full[:4], expected=answers[:4], folder=folder / name)
        job.folder.mkdir()
        floats = backend.convert(job, form)
        for artifact in (floats, backend.quantize(job, floats, Scheme())):
            made[f"{artifact.precision}/{name}"] = Call(open_artifact(artifact), contract)
    return made, raw


def figures(model: Path, runtime: str, name: str) -> list[dict[str, object]]:
    """One object a precision."""
    with tempfile.TemporaryDirectory() as folder:
        made, raw = calls(model, runtime, CONTRACTS[name], Path(folder))
        times = measure(made, raw, PLAN, Silence())
    found: list[dict[str, object]] = []
    for precision in ("fp32", "int8"):
        plain, folded = (np.array(times[f"{precision}/{way}"].times_ms) for way in ("plain", "folded"))
        count = min(len(plain), len(folded))
        parts = zip(np.array_split(folded[:count], PARTS), np.array_split(plain[:count], PARTS), strict=True)
        blocks = [np.median(new) / np.median(old) for new, old in parts]
        low, high = np.percentile(blocks, [2.5, 97.5])
        ratio = float(np.median(folded) / np.median(plain))
        found.append({
            "name": f"bytes_in/{runtime}/{precision}/{name}", "value": round(ratio, 4), "unit": "ratio of medians",
            "low": round(float(low), 4), "high": round(float(high), 4), "n": count, "goal": f"<= {GOAL}",
            "met": ratio <= GOAL, "against": f"the same file with numpy in front: {np.median(plain):.4f} ms",
        })  # fmt: skip
    return found


def main(arguments: list[str]) -> int:
    """Measure and print."""
    model = Path(next(each for each in arguments if not each.startswith("--")))
    found = [each for runtime in RUNTIMES for name in CONTRACTS for each in figures(model, runtime, name)]
    for each in found:
        print(json.dumps(each))
    return 0 if all(each["met"] for each in found) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
