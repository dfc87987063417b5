"""A detector in int8 on every runtime: our choice beside what each peer's default makes of the same float file.

    python benchmarks/detector_quality.py --json

The detector of ``tests/factories/detector`` joins boxes in pixels of 640 × 640 and scores up to 1 in one output. For
each runtime the build's search and the peers' defaults get the same calibration images; each file answers the same
evaluation images in its runtime, and all latencies are taken in turns in one run. Per file: mean average precision, its
paired drop with a 95 % interval, relative RMS of the whole output and of the scores alone, size, latency. Exit code 3
if a goal is missed: on every runtime the drop of ours is proven within one point.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.cases import RUNTIMES, detector
from benchmarks.peers.onnx2tf_int8 import onnx2tf_int8
from benchmarks.peers.quantizers import Peer, ai_edge_quantizer, folder_name, nncf_openvino, onnxruntime_static

from edgeship.build import inputs, layout, routes, target_files, toolchains, verify
from edgeship.build.backends import Artifact
from edgeship.build.candidates import Built, Goals, Workshop
from edgeship.build.measure import measure
from edgeship.build.options import MAX_RELATIVE_RMS
from edgeship.build.progress import Silence
from edgeship.build.quiet import quiet
from edgeship.targets import Measure
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.isa import isa_class, isa_class_of

TARGETS: Final = {"onnxruntime": "x86-64-server", "openvino": "intel-nuc", "litert": "x86-64-litert"}
OURS: Final = "ours"
PLAN: Final = Measure(warm_up=20, min_queries=600, min_seconds=0.3)
MARGIN: Final = 0.01


def main() -> None:
    """Every runtime."""
    missed = False
    with tempfile.TemporaryDirectory(prefix="edgeship-") as name:
        read = inputs.read(detector(Path(name) / "data").options, Path(name) / "source", Silence())
        for runtime in RUNTIMES:
            for line in lines(read, runtime, Path(name) / runtime):
                missed |= line["met"] is False
                print(json.dumps(line, ensure_ascii=False), flush=True)
    sys.exit(3 if missed else 0)


def lines(read: inputs.Inputs, runtime: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of one runtime."""
    made, p50_ms = build(read, runtime, folder)
    for name, built in made.items():
        comparison, metric = built.comparison, built.comparison.metric
        prefix, about = f"detector.{runtime}", {"n": metric.n, "against": name}
        yield {**figure(f"{prefix}.map", metric.value, "fraction", **about), "low": round(metric.low, 4),
               "high": round(metric.high, 4)}  # fmt: skip
        if name != "float":
            met = {"goal": f"high ≤ {MARGIN}", "met": metric.drop_high <= MARGIN} if name == OURS else {}
            yield {**figure(f"{prefix}.map_drop", metric.drop, "fraction", **about),
                   "low": round(metric.drop_low, 4), "high": round(metric.drop_high, 4), **met}  # fmt: skip
            yield figure(f"{prefix}.relative_rms", comparison.relative_rms, "ratio", **about)
            yield figure(f"{prefix}.scores_relative_rms", comparison.groups["scores"], "ratio", **about)
        yield figure(f"{prefix}.size", built.artifact.size_bytes, "bytes", **about)
        yield figure(f"{prefix}.latency_over_float", p50_ms[name] / p50_ms["float"], "ratio", **about)


def build(read: inputs.Inputs, runtime: str, folder: Path) -> tuple[dict[str, Built], dict[str, float]]:
    """Float, ours, and the peers' defaults that made something that runs; and their median latencies in one run.

    Args:
        read: source and data.
        runtime: where everything runs.
        folder: to work in; must not exist.
    """
    forms = routes.Forms(read.source, folder / "forms", toolchains.install)
    workshop = Workshop(read, folder, forms, Goals(max_relative_rms=MAX_RELATIVE_RMS), Silence())
    target = target_files.load(TARGETS[runtime])
    on_target = isa_class_of(target.arch, target.isa) == isa_class()
    try:
        floating = workshop.float_variant(runtime, target)
        ours = workshop.quantized_variant(target, runtime, "int8", on_target=on_target)
        made = {"float": floating, OURS: ours, **_peers(read, floating.artifact, folder)}
        times = measure({name: built.bound.run for name, built in made.items()}, read.evaluation_inputs, PLAN,
                        Silence())  # fmt: skip
        return made, {name: latency.p50_ms for name, latency in times.items()}
    finally:
        workshop.close()


def defaults_of(runtime: str, source: Path, input_name: str) -> dict[str, Peer]:
    """Name → the peer whose default it is."""
    if runtime == "onnxruntime":
        return {"ORT default": onnxruntime_static()}
    if runtime == "openvino":
        return {"NNCF default": nncf_openvino()}
    return {"aeq default": ai_edge_quantizer(), "onnx2tf int8": onnx2tf_int8(source, input_name, "per-channel")}


def _peers(read: inputs.Inputs, floating: Artifact, folder: Path) -> dict[str, Built]:
    """What the peers made; those that fail say so on stderr."""
    order = sorted(floating.inputs, key=lambda each: each.artifact_index)
    samples = [{each.artifact_name: np.ascontiguousarray(to_artifact(each, sample[each.name])) for each in order}
               for sample in read.source_inputs]  # fmt: skip
    found: dict[str, Built] = {}
    for name, peer in defaults_of(floating.runtime, read.source.path, read.source.inputs[0].name).items():
        place = folder / folder_name(name)
        place.mkdir(parents=True)
        try:
            found[name] = _compared(peer, samples, (floating, place), read)
        except Exception as error:  # noqa: BLE001 (a peer's own failure is its result)
            print(f"{floating.runtime}: {name}: {_said(error)}", file=sys.stderr)
    return found


def _compared(
    peer: Peer, samples: Sequence[Mapping[str, np.ndarray]], where: tuple[Artifact, Path], read: inputs.Inputs
) -> Built:
    floating, place = where
    with quiet():
        file = peer(floating.model, samples, place)
    artifact = as_artifact(file, floating)
    bound = verify.open_artifact(artifact)
    outputs = verify.run_all(bound.run, read.evaluation_inputs, "peer", Silence())
    return Built(artifact=artifact, comparison=verify.compare(read.truth, outputs), bound=bound,
                 classes=read.truth.classes)  # fmt: skip


def as_artifact(file: Path, floating: Artifact) -> Artifact:
    """A file that someone else made of the float one."""
    engine = open_engine(floating.runtime, file)
    bindings = [layout.rebind(mine, theirs, floating.runtime) for mine, theirs in
                ((floating.inputs, engine.signature.inputs), (floating.outputs, engine.signature.outputs))]  # fmt: skip
    engine.close()
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else None
    return Artifact(runtime=floating.runtime, precision="int8", model=file, weights=weights, inputs=bindings[0],
                    outputs=bindings[1])  # fmt: skip


def figure(name: str, value: float | None, unit: str, *, n: int, against: str) -> dict[str, Any]:
    """One line of the result; a relative RMS that is not finite has no value."""
    return {"name": name, "value": None if value is None else round(value, 5), "unit": unit, "low": None, "high": None,
            "n": n, "goal": None, "met": None, "against": against}  # fmt: skip


def _said(error: Exception) -> str:
    """The last thing that a peer said before it gave up."""
    text = getattr(error, "stderr", None) or str(error)
    lines_said = [line for line in (text.decode(errors="replace") if isinstance(text, bytes) else text).splitlines()
                  if "Error: " in line] or [str(error)]  # fmt: skip
    return lines_said[0].strip()[:300]


if __name__ == "__main__":
    main()
