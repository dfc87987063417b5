"""A detector whose boxes and scores share one output: int8 that keeps both, and files that lose one are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from msgspec import structs

from edgeship.build import gate, metrics, verify
from edgeship.build.backends import Artifact, open_backend
from edgeship.build.backends.base import Job
from edgeship.build.gate import Candidate, Limits
from edgeship.build.inputs import Inputs, read
from edgeship.build.measure import Latency
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.build.schema import GateReport
from edgeship.build.verify import Comparison, Truth
from tests.factories.detector import scenes

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "tests" / "factories" / "detector" / "detector.onnx"
#: As few as prove a drop within one point where hardly anything is lost.
EVALUATION = 560
LIMITS = Limits(max_drop=0.01, max_relative_rms=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_data(folder, evaluation=EVALUATION)
    return folder


def _command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "edgeship", "build", str(DETECTOR), "-o", str(output), "--key", str(data / "key"),
        "--calibration", str(data / "calibration.npz"), "--evaluation", str(data / "evaluation.npz"),
        "--preprocess", str(data / "preprocess.toml"), "--postprocess", str(data / "postprocess.toml"),
        "--json", *more,
    ]  # fmt: skip


def test_int8_keeps_boxes_and_scores_and_the_documents_say_so(data: Path, tmp_path: Path) -> None:
    """From the command line, the objects as a folder of YOLO text files; the guide's own steps."""
    command = _command(data, tmp_path / "out", "-t", "x86-64-server", "--metric", "map50", "--effort", "quick",
                       "--ground-truth", str(data / "labels"))  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    chosen = next(each for each in document["variants"] if each["chosen"])
    assert chosen["precision"] == "int8"
    assert chosen["metric"]["value"] > 0.97
    assert "ends in float" in chosen["scheme"] or "ends and" in chosen["scheme"]
    rule = next(each for each in document["gates"] if each["id"] == "group_rms" and each["precision"] == "int8")
    assert set(rule["evidence"]) == {"boxes", "scores"}
    assert rule["value"] < 0.1
    assert "worst channel group" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    cards = [path for path in (tmp_path / "out" / "bundle" / "blobs" / "sha256").iterdir()
             if b"worst channel group" in path.read_bytes()]  # fmt: skip
    verified = subprocess.run(
        [sys.executable, "-m", "edgeship", "verify", str(tmp_path / "out"), "--source", str(DETECTOR), "--evaluation",
         str(data / "evaluation.npz"), "--ground-truth", str(data / "labels"), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    claims = [each["claim"] for each in json.loads(verified.stdout)["claims"] if "from the data" in each["claim"]]
    assert any(each.startswith("drop of map50 recomputed") for each in claims)
    assert all(each.endswith("the same") for each in claims)
    assert cards, "the model card names the channel group that lies furthest off"


def _gates(data: Path, tmp_path: Path, model: Path, *, decoded: bool) -> tuple[dict[str, GateReport], Comparison]:
    """The rules for a file that someone else made, with the decoding known or not."""
    options = BuildOptions(
        source=DETECTOR, targets=(), calibration=data / "calibration.npz", evaluation=data / "evaluation.npz",
        preprocess=data / "preprocess.toml", postprocess=data / "postprocess.toml", metric="map50",
        ground_truth=data / "truth.json", fold_normalisation=False,
    )  # fmt: skip
    if not decoded:
        options = structs.replace(options, metric="closeness", postprocess=None, ground_truth=None)
    inputs = read(options, tmp_path / f"source-{decoded}", Silence())
    comparison = _compared(inputs, inputs.truth, _as_artifact(inputs, model, tmp_path / f"work-{decoded}"))
    latency = Latency(times_ms=(1.0,))
    candidate = Candidate(
        target="box", runtime="onnxruntime", precision="int8", size_bytes=1, comparison=comparison, on_target=True,
        latency=latency, classes=inputs.truth.classes, fp32_size_bytes=4, fp32_latency=latency,
    )  # fmt: skip
    return {each.id: each for each in gate.judge(candidate, LIMITS)}, comparison


def _as_artifact(inputs: Inputs, model: Path, folder: Path) -> Artifact:
    job = Job(source=inputs.source, samples=inputs.calibration_inputs, checks=inputs.calibration_inputs[:4],
              expected=inputs.answers, folder=folder)  # fmt: skip
    made = open_backend("onnxruntime").convert(job, inputs.source.path)
    made.model.write_bytes(model.read_bytes())
    return made


def _compared(inputs: Inputs, truth: Truth, artifact: Artifact) -> Comparison:
    bound = verify.open_artifact(artifact)
    outputs = verify.run_all(bound.run, inputs.evaluation_inputs, "artifact", Silence())
    bound.close()
    assert not outputs["detections"][:, 4:].any(), "the peer's default loses every score"
    return verify.compare(truth, outputs)


def _onnxruntime_default(data: Path, folder: Path) -> Path:
    """What ONNX Runtime's own quantizer makes of the detector with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    with np.load(data / "calibration.npz") as archive:
        images = archive["x"][:50, None, None].astype(np.float32) / 255.0

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._left, None)
            return None if image is None else {"image": image}

    quantize_static(str(DETECTOR), str(folder / "default.onnx"), Reader())
    return folder / "default.onnx"


def test_a_file_that_loses_every_score_is_refused_although_the_whole_looks_perfect(data: Path, tmp_path: Path) -> None:
    lost = _onnxruntime_default(data, tmp_path)
    gates, comparison = _gates(data, tmp_path, lost, decoded=True)
    assert comparison.cosine is not None
    assert comparison.cosine > 0.999
    assert gates["relative_rms"].holds is True
    assert gates["distinct"].holds is True
    assert (gates["group_rms"].holds, gates["map50"].holds) == (False, False)
    assert "scores has relative RMS 1" in gates["group_rms"].sentence
    assert "outputs of their own" in gates["group_rms"].next
    assert gates["group_rms"].evidence["boxes"] < 0.01
    # without a word about columns the shorter axis is taken for the channels: boxes outnumber them
    gates, comparison = _gates(data, tmp_path, lost, decoded=False)
    assert gates["group_rms"].holds is False
    assert comparison.worst_group_name.removeprefix("channel ") in {str(index) for index in range(4, 14)}


def test_the_committed_file_finds_what_the_scenes_show(data: Path) -> None:
    session = onnxruntime.InferenceSession(DETECTOR)
    with np.load(data / "evaluation.npz") as archive:
        images = archive["x"][:100, None, None].astype(np.float32) / 255.0
    found = np.concatenate([session.run(None, {"image": image})[0] for image in images])
    decoding = metrics.files.read_decoding(data / "postprocess.toml", {"detections": found})
    asked = metrics.objects.Asked(decoding=decoding, count=EVALUATION, classes=10)
    truth = metrics.objects.read_objects(data / "truth.json", asked).objects[:100]
    again = metrics.objects.read_objects(data / "labels", asked).objects[:100]
    for one, other in zip(truth, again, strict=True):
        assert np.allclose(one.boxes, other.boxes, atol=1e-5)
        assert np.array_equal(one.classes, other.classes)
    metric = metrics.average_precision.MeanAveragePrecision(name="map50", truth=truth, decoding=decoding)
    assert metric.compare({"detections": found}, {"detections": found}).figures.value > 0.97


@pytest.mark.slow
def test_int8_is_proven_on_all_runtimes_where_peers_lose_everything() -> None:
    """The benchmark itself: every runtime, the peers' defaults beside ours."""
    outcome = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "detector_quality.py"), "--json"],
                             capture_output=True, text=True, check=False)  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    proven = [line for line in lines if line["name"].endswith("map_drop") and line["against"] == "ours"]
    assert [line["name"].split(".")[1] for line in proven] == ["onnxruntime", "openvino", "litert"]
    assert all(line["high"] <= 0.01 for line in proven)
    scores = {(line["name"].split(".")[1], line["against"]): line["value"] for line in lines
              if line["name"].endswith("scores_relative_rms")}  # fmt: skip
    for runtime in ("onnxruntime", "openvino", "litert"):
        peers = [value for (where, who), value in scores.items() if where == runtime and who != "ours"]
        assert peers
        assert all(scores[runtime, "ours"] < peer for peer in peers)
