"""How close our int8 is to the source, beside what every other quantizer makes of the same float file.

    python benchmarks/build_quality.py --json
    python benchmarks/build_quality.py --json --only resnet-20:litert --only ds-cnn
    python benchmarks/build_quality.py --json --resume

For each model and runtime (a cell): the build's search and every peer get the same calibration samples; each file runs
in its runtime on the same evaluation samples, and all latencies are taken in turns in one run. Models of others are
read from the folder that EDGESHIP_TEST_DATA names; those that are not there are left out, and said. The toolchains that
they need, and the peers' environments, are installed where they are missing (4.4 GB). A peer is closer only where
the paired interval says so. Exit code 1 if a model was left out, 3 if a goal is missed:

- no peer's file is proven closer to the source than ours at equal size and latency;
- ours is, within the interval, as close as the closest file of any peer (of those that are no slower than the float
  file), and as fast;
- on half of the cells ours is proven closer than that one by a fifth, and no larger.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import structs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import judge
from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.judge import Measured
from benchmarks.peers.olive import olive
from benchmarks.peers.onnx2tf_int8 import onnx2tf_int8
from benchmarks.peers.quantizers import Peer, folder_name, peers_of
from benchmarks.peers.tflite_converter import tflite_converter
from benchmarks.run import RESULTS, commit

from edgeship.build import inputs, layout, routes, target_files, toolchains, verify
from edgeship.build.backends import Artifact
from edgeship.build.candidates import Built, Goals, Workshop
from edgeship.build.measure import measure
from edgeship.build.options import MAX_RELATIVE_RMS
from edgeship.build.progress import Silence
from edgeship.build.quiet import quiet
from edgeship.targets import Measure
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.runtime import EngineOptions, open_engine
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Engine
from edgeship_agent.runtime.isa import isa_class, isa_class_of

TARGETS: Final = {"onnxruntime": "x86-64-server", "openvino": "intel-nuc", "litert": "x86-64-litert"}
OURS: Final = "ours"
FLOAT: Final = "float"
PLAN: Final = Measure(warm_up=40, min_queries=1500, min_seconds=0.6)
#: Goals of single cells, from the issue: ours stays below these.
STATED: Final = {"resnet-20:litert": {"relative_rms": 0.045, "latency_over_float": 0.35}}
#: The last figure of a cell: where it stands in the results, the cell is whole.
LAST: Final = "error_over_closest_peer"
CLOSER_GOAL: Final = "cells_clearly_closer"

Row = dict[str, Any]


def main() -> None:
    """The cells that were asked for, then the goals over all of them."""
    wanted = _arguments()
    done = finished(_rows(), commit()) if wanted.resume else {}
    last: dict[str, Row] = dict(done)
    missed, left_out = False, False
    with tempfile.TemporaryDirectory(prefix="edgeship-") as name:
        for case_name, make in CASES.items():
            runtimes = [each for each in TARGETS if _is_wanted(wanted.only, case_name, each)]
            todo = [each for each in runtimes if f"{case_name}:{each}" not in done]
            if not todo:
                continue
            try:
                case = make(Path(name) / case_name)
            except (FileNotFoundError, LookupError, EdgeshipError) as reason:
                left_out = True
                print(f"{case_name}: not tried: {reason}", file=sys.stderr)
                continue
            for runtime in todo:
                for row in cell(case, runtime, Path(name) / f"{case_name}-{runtime}"):
                    missed |= row["met"] is False
                    print(json.dumps(row, ensure_ascii=False), flush=True)
                    if row["name"].endswith(LAST):
                        last[row["cell"]] = row
    if not wanted.only and not left_out:
        row = summary(last)
        missed |= row["met"] is False
        print(json.dumps(row, ensure_ascii=False), flush=True)
    sys.exit(3 if missed else 1 if left_out else 0)


def finished(rows: Sequence[Row], measured: str) -> dict[str, Row]:
    """Cells that stand in the results already, measured at one commit: cell → its last figure."""
    return {row["cell"]: row for row in rows if row.get("commit") == measured and row["name"].endswith(LAST)}


def summary(last: Mapping[str, Row]) -> Row:
    """On how many cells ours is closer than the closest peer by a fifth; a larger file of ours does not count."""
    fair = {name: (row["low"], row["high"]) for name, row in last.items()
            if row["size_over_peer"] <= judge.SAME_SIZE}  # fmt: skip
    closer = judge.clearly_closer(fair)
    row = figure(f"build.{CLOSER_GOAL}", len(closer) / max(len(last), 1), "share", n=len(last), goal="≥ 0.5")
    return {**row, "against": "the closest file of any peer, at equal size", "cells": sorted(closer)}


def cell(case: Case, runtime: str, folder: Path) -> Iterator[Row]:
    """The figures of one model and runtime, all with the cell's name and the time at which its run began."""
    name = f"{case.name}:{runtime}"
    about = {"cell": name, "run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    try:
        entries, failures = build(case, runtime, folder)
    except EdgeshipError as error:
        row = figure(f"build.{case.name}.{runtime}.failed", 1, "failures", n=0, goal="≤ 0", against=OURS)
        yield {**row, **about, "reason": error.message}
        return
    prefix = f"build.{case.name}.{runtime}."
    for peer, reason in failures.items():
        yield {**figure(prefix + "failed", 1, "failures", n=0, against=peer), **about, "reason": reason}
    for row in (*_single(entries, STATED.get(name, {})), *_compared_rows(entries)):
        yield {**row, **about, "name": prefix + row["name"]}


def _single(entries: Mapping[str, Entry], stated: Mapping[str, float]) -> Iterator[Row]:
    """What each file is by itself."""
    reference = entries[FLOAT].measured
    for name, entry in entries.items():
        one, about = entry.measured, {"n": len(entry.measured.errors), "against": name}
        goals = {key: f"≤ {limit}" for key, limit in stated.items()} if name == OURS else {}
        if name != FLOAT:
            row = figure("relative_rms", one.relative_rms, "ratio", goal=goals.get("relative_rms"), **about)
            yield {**_between(row, judge.rms_interval(one)), "scheme": entry.built.artifact.scheme}
            metric = entry.built.comparison.metric
            row = figure(f"{metric.name}_drop", metric.drop, "fraction", **about)
            yield _between(row, (metric.drop_low, metric.drop_high))
            ratio, between = judge.time_ratio(one, reference)
            row = figure("latency_over_float", ratio, "ratio", goal=goals.get("latency_over_float"), **about)
            yield _between(row, between)
        yield figure("latency_p50_ms", one.p50_ms, "ms", **about)
        yield figure("size", one.size_bytes, "bytes", **about)


def _compared_rows(entries: Mapping[str, Entry]) -> Iterator[Row]:
    """Ours beside each peer, and beside the closest."""
    ours = entries[OURS].measured
    peers = [entry.measured for name, entry in entries.items() if name not in (OURS, FLOAT)]
    if not peers:
        return
    n = len(ours.errors)
    for peer in peers:
        rival = judge.is_rival(peer, ours)
        yield {**_error_over(ours, peer, "error_over_peer", goal=rival), "rival": rival}
    best = judge.closest(peers, ours, entries[FLOAT].measured)
    ratio, between = judge.time_ratio(ours, best)
    yield _between(figure("latency_over_closest_peer", ratio, "ratio", n=n, against=best.name,
                          goal=f"≤ {judge.SAME_TIME}"), between)  # fmt: skip
    yield {**_error_over(ours, best, LAST, goal=True), "size_over_peer": round(ours.size_bytes / best.size_bytes, 4)}


def _error_over(ours: Measured, peer: Measured, name: str, *, goal: bool) -> Row:
    """Ours ÷ theirs; missed only where theirs is proven closer: the whole interval lies above 1."""
    low, high = judge.ratio_interval(ours, peer)
    value = ours.relative_rms / peer.relative_rms if peer.relative_rms else math.inf
    row = _between(figure(name, value, "ratio", n=len(ours.errors), against=peer.name), (low, high))
    return {**row, "goal": "low ≤ 1", "met": bool(low <= 1.0)} if goal else row


class Entry:
    """One file of a cell."""

    def __init__(self, built: Built, measured: Measured) -> None:
        self.built = built
        self.measured = measured


def build(case: Case, runtime: str, folder: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The float file, ours and every peer's that runs, measured; and why the other peers have none."""
    read = inputs.read(case.options, folder / "source", Silence())
    forms = routes.Forms(read.source, folder / "forms", toolchains.install)
    workshop = Workshop(read, folder, forms, Goals(max_relative_rms=MAX_RELATIVE_RMS), Silence())
    target = target_files.load(TARGETS[runtime])
    try:
        floating = workshop.float_variant(runtime, target)
        on_target = isa_class_of(target.arch, target.isa) == isa_class()
        ours = workshop.quantized_variant(target, runtime, "int8", on_target=on_target)
        peers, failures = _made(_peers(case, runtime, read, forms), floating.artifact, read, folder)
        return _measured({FLOAT: floating, OURS: ours, **peers}, read), failures
    finally:
        workshop.close()


def _measured(files: Mapping[str, Built], read: inputs.Inputs) -> dict[str, Entry]:
    """Errors on the evaluation samples, and all latencies in turns: one call of the runtime, inputs in its layout."""
    engines = {name: open_engine(each.artifact.runtime, each.artifact.model, EngineOptions(threads=1))
               for name, each in files.items()}  # fmt: skip
    try:
        samples = read.evaluation_inputs[:16]
        runs = {name: _call(engines[name], each.artifact, samples) for name, each in files.items()}
        numbers = [{"": np.array(index)} for index in range(len(samples))]
        times = measure(runs, numbers, PLAN, Silence())
    finally:
        for engine in engines.values():
            engine.close()
    first = next(iter(read.truth.outputs))
    reference = read.truth.outputs[first].astype(np.float64)
    entries = {}
    for name, each in files.items():
        outputs = verify.run_all(each.bound.run, read.evaluation_inputs, name, Silence())
        flat = (len(reference), -1)
        one = Measured(
            name=name, errors=((outputs[first] - reference) ** 2).reshape(flat).sum(axis=1),
            sizes=(reference**2).reshape(flat).sum(axis=1), times_ms=times[name].times_ms,
            size_bytes=each.artifact.size_bytes,
        )  # fmt: skip
        entries[name] = Entry(each, one)
    return entries


def _call(engine: Engine, artifact: Artifact, samples: Sequence[Mapping[str, np.ndarray]]) -> Callable[..., Any]:
    """One inference of a runtime; a file that takes integers gets them made from floats, as its caller must."""
    order = sorted(artifact.inputs, key=lambda each: each.artifact_index)
    laid = [structs.replace(each, scale=0.0, dtype="float32" if each.scale else each.dtype) for each in order]
    plain = [structs.replace(each, transpose=(), steps=()) for each in order]
    ready = [[np.ascontiguousarray(to_artifact(each, sample[each.name])) for each in laid] for sample in samples]

    def call(number: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = ready[int(number[""])]
        engine.run([to_artifact(each, array) for each, array in zip(plain, arrays, strict=True)])
        return {}

    return call


def _peers(case: Case, runtime: str, read: inputs.Inputs, forms: routes.Forms) -> dict[str, Peer]:
    """Name → peer, of those that can start from this source."""
    peers: dict[str, Peer] = peers_of(runtime)
    if runtime == "onnxruntime":
        return {**peers, **olive()}
    if runtime != "litert" or len(read.source.inputs) != 1:
        return peers
    if case.keras is not None:
        return {**peers, **tflite_converter(case.keras)}
    document = forms.file(() if read.source.format == "onnx" else ("torch.onnx",))
    for granularity, words in (("per-channel", "default (per channel)"), ("per-tensor", "per tensor")):
        peers[f"onnx2tf int8 {words}"] = onnx2tf_int8(document, read.source.inputs[0].name, granularity)
    return peers


def _made(
    peers: Mapping[str, Peer], floating: Artifact, read: inputs.Inputs, folder: Path
) -> tuple[dict[str, Built], dict[str, str]]:
    """Name → what a peer made, compared; and name → why there is nothing."""
    order = sorted(floating.inputs, key=lambda each: each.artifact_index)
    samples = [{each.artifact_name: np.ascontiguousarray(to_artifact(each, sample[each.name])) for each in order}
               for sample in read.source_inputs]  # fmt: skip
    found: dict[str, Built] = {}
    failures: dict[str, str] = {}
    for name, peer in peers.items():
        place = folder / folder_name(name)
        place.mkdir(parents=True)
        try:
            with quiet():
                file = peer(floating.model, samples, place)
            found[name] = _compared(file, floating, read)
        except Exception as error:  # noqa: BLE001 (a peer's own failure is its result)
            failures[name] = _reason(error).replace(f"{place}/", "")
    return found, failures


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
           against: str | None = None) -> Row:  # fmt: skip
    """One line of the result; a goal is a sign and a number."""
    met = None
    if goal is not None:
        sign, limit = goal.split()
        met = value <= float(limit) if sign == "≤" else value >= float(limit)
    return {"name": name, "value": round(value, 5), "unit": unit, "low": None, "high": None, "n": n, "goal": goal,
            "met": met, "against": against}  # fmt: skip


def _between(row: Row, interval: tuple[float, float]) -> Row:
    """With its interval, where there is one."""
    low, high = interval
    return {**row, "low": round(low, 4), "high": round(high, 4)} if math.isfinite(low + high) else row


def _reason(error: BaseException) -> str:
    """In a line, without the paths of this run."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    lines = [line for line in words.strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, subprocess.CalledProcessError) else 0][:400]


def _rows() -> list[Row]:
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.is_file() else []
    return [row for row in map(json.loads, lines) if "cell" in row]


def _is_wanted(only: Sequence[str], case: str, runtime: str) -> bool:
    return not only or case in only or f"{case}:{runtime}" in only


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How close our int8 is to the source, beside every other quantizer's.")
    parser.add_argument("--json", action="store_true", help="one figure a line, which is the only form")
    parser.add_argument("--only", action="append", default=[], metavar="MODEL[:RUNTIME]", help="these cells alone")
    parser.add_argument("--resume", action="store_true", help="leave out cells that this commit has figures of")
    arguments = parser.parse_args()
    known = {*CASES, *(f"{case}:{runtime}" for case in CASES for runtime in TARGETS)}
    if unknown := [each for each in arguments.only if each not in known]:
        parser.error(f"no such cell: {', '.join(unknown)}; models: {', '.join(CASES)}; runtimes: {', '.join(TARGETS)}")
    return arguments


if __name__ == "__main__":
    main()
