"""How close our int8 is to the source, beside what every other quantizer makes of the same float file.

    python benchmarks/build_quality.py --json

For each model and runtime: the build's search and every peer get the same calibration samples; each file runs in its
runtime on the same evaluation samples, and all latencies are taken in turns in one run. Models of others are read from
the folder that EDGESHIP_TEST_DATA names; those that are not there are left out, and said. Exit code 3 if a goal is
missed: no peer's file may be closer to the source than ours at equal size and latency, and on half of the cells ours
must be closer by a fifth than the best of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.cases import Case, cases
from benchmarks.peers.onnx2tf_int8 import onnx2tf_int8
from benchmarks.peers.quantizers import Peer, folder_name, peers_of
from benchmarks.peers.tflite_converter import tflite_converter

from edgeship.build import inputs, layout, routes, target_files, toolchains, verify
from edgeship.build.backends import Artifact
from edgeship.build.candidates import Built, Goals, Workshop
from edgeship.build.measure import measure
from edgeship.build.options import MAX_RELATIVE_RMS
from edgeship.build.progress import Silence
from edgeship.build.quiet import quiet
from edgeship.targets import Measure
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.isa import isa_class, isa_class_of

TARGETS: Final = {"onnxruntime": "x86-64-server", "openvino": "intel-nuc", "litert": "x86-64-litert"}
OURS: Final = "ours"
PLAN: Final = Measure(warm_up=20, min_queries=600, min_seconds=0.3)
#: Files whose sizes and medians differ by less than this are equally large and fast: two runs differ by so much, and a
#: quantizer that writes its settings into the file makes a small one larger by so much.
SAME_SIZE: Final = 1.1
SAME_TIME: Final = 1.15
#: How much closer ours is to be on half of the cells.
CLEARLY: Final = 0.8
SEED: Final = 7
RESAMPLES: Final = 400


class Entry:
    """One quantized file of a cell."""

    def __init__(self, name: str, built: Built, outputs: Mapping[str, np.ndarray], reference: np.ndarray) -> None:
        self.name = name
        self.built = built
        first = next(iter(outputs.values()))
        flat = (len(first), -1)
        self._errors = ((first.astype(np.float64) - reference) ** 2).reshape(flat).sum(axis=1)
        self._sizes = (reference.astype(np.float64) ** 2).reshape(flat).sum(axis=1)
        self.p50_ms = 0.0

    @property
    def relative_rms(self) -> float:
        """Over all samples."""
        return float(np.sqrt(self._errors.sum() / self._sizes.sum()))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap of the relative RMS."""
        rng = np.random.default_rng(SEED)
        picked = rng.integers(0, len(self._errors), (RESAMPLES, len(self._errors)))
        values = np.sqrt(self._errors[picked].sum(axis=1) / self._sizes[picked].sum(axis=1))
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)


def main() -> None:
    """Every cell, then the goals over all of them."""
    missed = False
    gains: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edgeship-") as name:
        for number, case in enumerate(cases(Path(name))):
            for runtime in case.runtimes:
                for line in cell(case, runtime, Path(name) / f"{number}-{runtime}", gains):
                    missed |= line["met"] is False
                    print(json.dumps(line, ensure_ascii=False), flush=True)
    closer = sum(gain <= CLEARLY for gain in gains)
    line = figure("cells_clearly_closer", closer / max(len(gains), 1), "share", n=len(gains), goal="≥ 0.5")
    print(json.dumps(line, ensure_ascii=False))
    sys.exit(3 if missed or line["met"] is False else 0)


def cell(case: Case, runtime: str, folder: Path, gains: list[float]) -> Iterator[dict[str, Any]]:
    """The figures of one model and runtime."""
    try:
        entries, reference = build(case, runtime, folder)
    except EdgeshipError as error:
        print(f"{case.name} on {runtime}: {error.message}", file=sys.stderr)
        return
    ours, peers = entries[0], entries[1:]
    prefix = f"build.{case.name}.{runtime}"
    for entry in entries:
        low, high = entry.interval
        about = {"n": len(entry._errors), "against": entry.name}
        yield {**figure(f"{prefix}.relative_rms", entry.relative_rms, "ratio", **about), "low": round(low, 4),
               "high": round(high, 4), "scheme": entry.built.artifact.scheme}  # fmt: skip
        metric = entry.built.comparison.metric
        yield {**figure(f"{prefix}.{metric.name}_drop", metric.drop, "fraction", **about),
               "low": round(metric.drop_low, 4), "high": round(metric.drop_high, 4)}  # fmt: skip
        yield figure(f"{prefix}.latency_over_float", entry.p50_ms / reference.p50_ms, "ratio", **about)
        yield figure(f"{prefix}.size", entry.built.artifact.size_bytes, "bytes", **about)
    rivals = [each for each in peers if _as_small(each, ours) and each.p50_ms <= SAME_TIME * ours.p50_ms]
    best = min(rivals or peers, key=lambda each: each.relative_rms)
    gain = ours.relative_rms / best.relative_rms
    gains.append(gain)
    yield figure(f"{prefix}.error_over_best_peer", gain, "ratio", n=len(ours._errors), goal="≤ 1", against=best.name)


def _as_small(peer: Entry, ours: Entry) -> bool:
    return peer.built.artifact.size_bytes <= SAME_SIZE * ours.built.artifact.size_bytes


def build(case: Case, runtime: str, folder: Path) -> tuple[list[Entry], Entry]:
    """Ours first, then the peers that made something that runs; and the float file."""
    read = inputs.read(case.options, folder / "source", Silence())
    forms = routes.Forms(read.source, folder / "forms", toolchains.install)
    goals = Goals(max_relative_rms=MAX_RELATIVE_RMS)
    workshop = Workshop(read, folder, forms, goals, Silence())
    target = target_files.load(TARGETS[runtime])
    try:
        floating = workshop.float_variant(runtime, target)
        on_target = isa_class_of(target.arch, target.isa) == isa_class()
        ours = workshop.quantized_variant(target, runtime, "int8", on_target=on_target)
        made = {OURS: ours, **_peers(case, runtime, floating, read, folder)}
        entries = [_entry(name, built, read) for name, built in made.items()]
        reference = _entry("float", floating, read)
        everything = [*entries, reference]
        times = measure({each.name: each.built.bound.run for each in everything}, read.evaluation_inputs, PLAN,
                        Silence())  # fmt: skip
        for each in everything:
            each.p50_ms = times[each.name].p50_ms
        return entries, reference
    finally:
        workshop.close()


def _entry(name: str, built: Built, read: inputs.Inputs) -> Entry:
    outputs = verify.run_all(built.bound.run, read.evaluation_inputs, name, Silence())
    first = next(iter(read.truth.outputs))
    return Entry(name, built, {first: outputs[first]}, read.truth.outputs[first])


def _peers(case: Case, runtime: str, floating: Built, read: inputs.Inputs, folder: Path) -> dict[str, Built]:
    """Name → what a peer made, compared; peers that fail say so on stderr."""
    artifact = floating.artifact
    order = sorted(artifact.inputs, key=lambda each: each.artifact_index)
    samples = [{each.artifact_name: np.ascontiguousarray(to_artifact(each, sample[each.name])) for each in order}
               for sample in read.source_inputs]  # fmt: skip
    peers: dict[str, Peer] = peers_of(runtime)
    if runtime == "litert" and case.options.source.suffix == ".onnx" and len(order) == 1:
        for granularity in ("per-channel", "per-tensor"):
            peer = onnx2tf_int8(case.options.source, read.source.inputs[0].name, granularity)
            if peer is not None:
                peers[f"onnx2tf int8 {granularity}"] = peer
    if runtime == "litert" and case.keras is not None:
        peers |= tflite_converter(case.keras)
    found: dict[str, Built] = {}
    for name, peer in peers.items():
        place = folder / folder_name(name)
        place.mkdir(parents=True)
        try:
            with quiet():
                file = peer(artifact.model, samples, place)
            found[name] = _compared(file, artifact, read)
        except Exception as error:  # noqa: BLE001 (a peer's own failure is its result)
            print(f"{case.name} on {runtime}: {name}: {_first_line(error)}", file=sys.stderr)
    return found


def _compared(file: Path, floating: Artifact, read: inputs.Inputs) -> Built:
    engine = open_engine(floating.runtime, file)
    bindings = (
        layout.rebind(floating.inputs, engine.signature.inputs, floating.runtime),
        layout.rebind(floating.outputs, engine.signature.outputs, floating.runtime),
    )
    engine.close()
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else None
    artifact = Artifact(runtime=floating.runtime, precision="int8", model=file, weights=weights, inputs=bindings[0],
                        outputs=bindings[1])  # fmt: skip
    bound = verify.open_artifact(artifact)
    outputs = verify.run_all(bound.run, read.evaluation_inputs, "peer", Silence())
    return Built(artifact=artifact, comparison=verify.compare(read.truth, outputs), bound=bound,
                 classes=read.truth.classes)  # fmt: skip


def figure(name: str, value: float, unit: str, *, n: int, goal: str | None = None,
           against: str | None = None) -> dict[str, Any]:  # fmt: skip
    """One line of the result; a goal is a sign and a number."""
    met = None
    if goal is not None:
        sign, limit = goal.split()
        met = value <= float(limit) if sign == "≤" else value >= float(limit)
    return {"name": name, "value": round(value, 5), "unit": unit, "low": None, "high": None, "n": n, "goal": goal,
            "met": met, "against": against}  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:200]


if __name__ == "__main__":
    main()
