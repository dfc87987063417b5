"""``edgeship build`` as a whole, in this process and as a user types it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec import structs

from edgeship.build import fallback, pipeline, toolchains
from edgeship.build.options import BuildOptions
from edgeship.build.progress import CANDIDATES, Silence
from edgeship.build.schema import BuildDocument
from edgeship.bundle import Bundle, verify
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.runtime.isa import isa_class
from tests import models

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
#: Measures for a moment only: no test judges a time.
TARGET = """
id = "{name}"
extends = "{base}"
title = "test"
{more}
[measure]
warm_up = 2
min_queries = 50
min_seconds = 0.0
"""
#: Enough that one discordant pair still proves a drop within one point.
EVALUATION_COUNT = 700


class Workspace:
    """A small model, its data and targets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = models.classifier(folder / "net.onnx")
        session = onnxruntime.InferenceSession(str(self.model))
        for name, count, seed in (("calibration", 80, 1), ("evaluation", EVALUATION_COUNT, 2), ("few", 60, 3)):
            x = models.inputs(count, seed=seed)
            labels = session.run(None, {"x": x})[0].argmax(1)
            np.savez(folder / f"{name}.npz", x=x, y=labels)
        for name, base in (("ort", "x86-64-server"), ("ov", "intel-nuc"), ("lite", "x86-64-litert")):
            self.target(name, base)

    def target(self, name: str, base: str, more: str = "") -> str:
        path = self.folder / f"{name}.toml"
        path.write_text(TARGET.format(name=name, base=base, more=more))
        return str(path)

    def options(self, *targets: str, **changes: object) -> BuildOptions:
        options = BuildOptions(
            source=self.model,
            targets=tuple(str(self.folder / f"{name}.toml") for name in targets),
            calibration=self.folder / "calibration.npz",
            evaluation=self.folder / "evaluation.npz",
            output=self.folder / "out",
            key=self.folder / "author.key",
            max_drop=0.05,
            install_toolchains=True,
        )
        return structs.replace(options, **changes)

    def command(self, *more: str, target: str = "ort") -> list[str]:
        return [
            *(sys.executable, "-m", "edgeship", "build", str(self.model), "-t", str(self.folder / f"{target}.toml")),
            *("--calibration", str(self.folder / "calibration.npz")),
            *("--evaluation", str(self.folder / "evaluation.npz")),
            *("--key", str(self.folder / "author.key"), "-o", str(self.folder / "out"), *more),
        ]

    def run(self, *more: str, target: str = "ort") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*more, target=target), capture_output=True, text=True, check=False,
                              timeout=200, cwd=self.folder)  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


class Counts(Silence):
    """Listens to what is counted."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def count(self, label: str, done: int, total: int) -> None:
        self.labels.append(label)


def _build(options: BuildOptions) -> pipeline.BuildResult:
    return pipeline.build(options, Silence())


def test_three_runtimes_one_bundle(work: Workspace) -> None:
    before = hashlib.sha256(work.model.read_bytes()).hexdigest()
    result = _build(work.options("ort", "ov", "lite"))
    document = result.document
    assert result.verdict == "pass"
    assert [each.target for each in document.variants if each.chosen] == ["ort", "ov", "lite"]
    assert hashlib.sha256(work.model.read_bytes()).hexdigest() == before
    out = work.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "build.json",
        "bundle",
        "report.html",
        "report.md",
        "variants",
    ]
    assert (out / "build.json").read_bytes() == pipeline.encode(document)
    for variant in document.variants:
        assert Path(variant.file).is_file()
        assert Path(variant.file).is_absolute()
        assert variant.relative_rms is not None
        assert variant.metric.n == EVALUATION_COUNT
        assert variant.measured_on.isa == isa_class()
    bundle = Bundle.open(out / "bundle")
    assert bundle.digest == document.bundle_digest
    report = verify(bundle)
    assert report.passed
    assert not report.not_run
    manifest = bundle.manifest
    shipped = [(each.target, each.precision) for each in manifest.variants]
    assert shipped == [(target, precision) for target in ("ort", "ov", "lite") for precision in ("int8", "fp32")]
    spares = [each for each in document.variants if each.reason == fallback.SHIPS]
    assert [(each.target, each.precision, each.chosen) for each in spares] == [
        (target, "fp32", False) for target in ("ort", "ov", "lite")
    ]
    assert manifest.output.kind == "classification"
    assert manifest.output.activation == "softmax"
    assert not manifest.input_schema["x"][0].documented
    assert {file.role for file in manifest.variants[2].files} >= {"model", "weights", "golden_inputs", "profile"}
    _looked_into(document)


def _looked_into(document: BuildDocument) -> None:
    """What the report shows of an int8: its operators, its confusions, its delegate."""
    assert [(each.target, each.runtime) for each in document.sensitivity] == [
        ("ort", "onnxruntime"), ("ov", "openvino"), ("lite", "litert"),
    ]  # fmt: skip
    for each in document.sensitivity:
        assert sum(one.noise_share for one in each.operators) == pytest.approx(1.0)
        assert {one.sqnr_db is None or 20 < one.sqnr_db < 80 for one in each.operators} == {True}
        assert any("onv" in one.kind or "CONV" in one.kind for one in each.operators)
    for variant in document.variants:
        noted = [note for note in variant.notes if "XNNPACK partition" in note]
        assert len(noted) == (variant.runtime == "litert")
        if variant.precision == "fp32":
            assert variant.confusion is None
            continue
        assert variant.confusion is not None
        for counts in (
            [each.source for each in variant.confusion.cells],
            [each.variant for each in variant.confusion.cells],
        ):
            assert sum(counts) == EVALUATION_COUNT
        right = sum(each.variant for each in variant.confusion.cells if each.actual == each.said)
        assert right / EVALUATION_COUNT == pytest.approx(variant.metric.value)


def test_an_operator_that_a_user_keeps_stays_in_float(work: Workspace) -> None:
    quick = work.options("ort", effort="quick", keep_float=("Conv_0",))
    document = _build(quick).document
    int8 = next(each for each in document.variants if each.precision == "int8")
    assert "Conv_0 in float" in int8.scheme.replace("head and ", "")
    graph = onnx.load(int8.file).graph
    conv = next(node for node in graph.node if node.name == "Conv_0")
    weights = {tensor.name for tensor in graph.initializer}
    assert conv.input[1] in weights, "its weights are read as they are, not from 8 bits"
    assert {each.name for each in document.sensitivity[0].operators if each.in_float} >= {"Conv_0"}
    heard = Counts()
    with pytest.raises(ConfigError, match="no operator of this name") as refusal:
        pipeline.build(structs.replace(quick, keep_float=("Conv_00",)), heard)
    assert "Conv_0" in str(refusal.value.expected)
    assert not [label for label in heard.labels if label.endswith(CANDIDATES)], "nothing was searched"


def test_full_precision_ships_where_the_size_budget_allows_it(work: Workspace) -> None:
    """What is chosen stays the same with it and without it."""
    both = _build(work.options("ort", effort="quick")).document
    assert _shipped(work) == ["int8", "fp32"]
    sizes = {each.precision: each.size_bytes for each in both.variants}
    for changes in ({"fp32_fallback": False}, {"size_bytes": sum(sizes.values()) - 1}):
        document = _build(work.options("ort", effort="quick", **changes)).document
        assert [each.precision for each in document.variants if each.chosen] == ["int8"]
        assert _shipped(work) == ["int8"]


def _shipped(work: Workspace) -> list[str]:
    return [each.precision for each in Bundle.open(work.folder / "out" / "bundle").manifest.variants]


def test_the_same_inputs_give_the_same_bundle(work: Workspace) -> None:
    first = _build(work.options("ov", "lite"))
    second = _build(work.options("ov", "lite", output=work.folder / "again"))
    assert first.document.bundle_digest == second.document.bundle_digest


def test_json_on_stdout_is_build_json(work: Workspace) -> None:
    done = work.run("--json", "--max-drop", "0.05")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (work.folder / "out" / "build.json").read_text()
    document = json.loads(done.stdout)
    assert document["verdict"] == "pass"
    assert set(document["variants"][0]) >= {
        "target", "runtime", "precision", "file", "size_bytes", "latency_p50_ms", "latency_p99_ms", "measured_on",
        "on_target", "metric", "relative_rms", "sqnr_db", "verdict", "chosen", "reason",
    }  # fmt: skip
    assert done.stderr.strip().splitlines()[-1].startswith("next: edgeship verify")


def _elsewhere(work: Workspace) -> str:
    """A target of another ISA class than this machine's."""
    base = "x86-64-litert" if "vnni" in isa_class() or "aarch64" in isa_class() else "x86-64-server"
    work.target("away", base)
    return "away"


def test_a_latency_budget_elsewhere_is_inconclusive_and_a_proxy_decides(work: Workspace) -> None:
    away = _elsewhere(work)
    budget = work.options(away, latency_p99_ms=10_000.0)
    result = _build(budget)
    assert result.verdict == "inconclusive"
    assert result.document.bundle is None
    assert not (result.folder / "bundle").exists()
    assert (result.folder / "report.html").is_file()
    assert all(Path(each.file).is_file() for each in result.document.variants)
    assert not any(each.on_target for each in result.document.variants)
    assert _build(structs.replace(budget, accept_proxy_latency=True)).verdict == "pass"


@pytest.mark.parametrize(
    ("more", "code", "verdict"),
    [
        (("--size-bytes", "10"), 3, "fail"),
        # 60 samples prove no drop within one point, whatever they say
        (("--evaluation", "few.npz", "--max-drop", "0.01", "--size-bytes", "60000"), 4, "inconclusive"),
    ],
)
def test_exit_codes_of_verdicts(work: Workspace, more: tuple[str, ...], code: int, verdict: str) -> None:
    done = work.run(*more, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["bundle"]) == (verdict, None)
    assert "explain build/" in done.stderr.splitlines()[-1]


def test_a_variant_that_is_not_proven_gives_way_to_float_and_strict_refuses(work: Workspace) -> None:
    few = work.options("ort", max_drop=0.01, evaluation=work.folder / "few.npz")
    result = _build(few)
    chosen = [each for each in result.document.variants if each.chosen]
    assert [(each.precision, result.verdict) for each in chosen] == [("fp32", "pass")]
    int8 = next(each for each in result.document.variants if each.precision == "int8")
    assert int8.verdict == "inconclusive"
    assert "not proven" in int8.reason
    assert _build(structs.replace(few, strict=True)).verdict == "fail"


def test_too_far_from_the_source_is_refused_whatever_the_metric_says(work: Workspace) -> None:
    result = _build(work.options("ort", max_drop=1.0, max_relative_rms=1e-4))
    gates = [gate for gate in result.document.gates if gate.id == "relative_rms" and gate.precision == "int8"]
    assert [gate.holds for gate in gates] == [False]
    assert [each.precision for each in result.document.variants if each.chosen] == ["fp32"]


def test_a_raw_model_with_two_outputs_and_no_labels(work: Workspace) -> None:
    model = models.two_outputs(work.folder / "raw.onnx")
    for name, count, seed in (("c", 40, 3), ("e", 60, 4)):
        np.savez(work.folder / f"{name}.npz", x=models.inputs(count, seed=seed, channels=2))
    options = work.options("lite", source=model, calibration=work.folder / "c.npz", evaluation=work.folder / "e.npz")
    result = _build(structs.replace(options, max_drop=0.2))
    assert result.verdict == "pass"
    assert {each.metric.name for each in result.document.variants} == {"closeness"}
    manifest = Bundle.open(result.folder / "bundle").manifest
    assert manifest.output.kind == "raw"
    assert [each.name for each in manifest.outputs] == ["map", "mean"]
    assert verify(Bundle.open(result.folder / "bundle")).passed


def test_a_quantized_source_is_never_quantized_again(work: Workspace) -> None:
    first = _build(work.options("ort"))
    int8 = next(Path(each.file) for each in first.document.variants if each.precision == "int8")
    result = _build(work.options("ort", source=int8, output=work.folder / "twice"))
    (variant,) = result.document.variants
    assert (variant.precision, variant.chosen, variant.metric.drop) == ("int8", True, 0.0)
    assert "quantized already" in result.document.tried[0].reason
    assert {gate.id for gate in result.document.gates} == {"distinct", "relative_rms"}, "it is judged against itself"


def test_half_precision_is_the_next_step_where_int8_is_not_proven(work: Workspace) -> None:
    refused = work.options("lite", max_relative_rms=0.002)
    result = _build(refused)
    found = {each.precision: each for each in result.document.variants}
    assert list(found) == ["int8", "fp16", "fp32"]
    assert found["int8"].verdict == "fail"
    assert found["fp16"].chosen
    assert found["fp16"].size_bytes < 0.6 * found["fp32"].size_bytes
    assert found["fp16"].scheme == "half-precision weights"
    assert verify(Bundle.open(result.folder / "bundle")).passed


def test_precisions_are_made_on_request_and_judged_like_the_others(work: Workspace) -> None:
    result = _build(work.options("lite", precisions=("dynamic", "int16x8", "int8io", "int4"), effort="quick"))
    found = {each.precision: each for each in result.document.variants}
    assert list(found) == ["int8", "dynamic", "int16x8", "int8io", "fp32"]
    assert found["int8"].chosen
    assert {gate.precision for gate in result.document.gates if gate.id == "slowdown"} == set(found) - {"fp32"}
    assert any(each.precision == "int4" and "no precision of TFLite" in each.reason for each in result.document.tried)
    inputs = {each: Path(found[each].file).read_bytes() for each in ("int8", "int8io")}
    assert inputs["int8"] != inputs["int8io"]
    assert (found["int16x8"].relative_rms or 1.0) < 0.03  # products of its BATCH_MATMUL are no zeros


def test_a_size_budget_has_what_it_asks_for_made(work: Workspace) -> None:
    """Float too large and int8 too far from the source: what is as small and closer is made without being named."""
    first = {each.precision: each for each in _build(work.options("lite", effort="quick")).document.variants}
    assert "int16x8" not in first
    assert first["int8"].relative_rms is not None
    tight = work.options("lite", effort="quick", size_bytes=int(first["int8"].size_bytes * 1.3),
                         max_relative_rms=first["int8"].relative_rms / 2)  # fmt: skip
    assert tight.size_bytes is not None and first["fp32"].size_bytes > tight.size_bytes
    document = _build(tight).document
    made = {each.precision: each for each in document.variants}
    assert {"int8", "fp16", "int16x8", "dynamic", "fp32"} == set(made)
    # each of them is judged by the same rules, and named
    (target,) = document.targets
    assert all(each.chosen == (each.verdict == "pass") or each.verdict == "pass" for each in document.variants)
    assert target.chosen or all(f"lite/litert/{name}: " in target.reason for name in made)
    # a budget that nothing keeps names every candidate
    none = _build(work.options("ort", effort="quick", size_bytes=100)).document
    assert none.verdict == "fail"
    for precision in ("int8", "fp16", "fp32"):
        assert f"ort/onnxruntime/{precision}: " in none.targets[0].reason
    assert any(each.precision == "int4" for each in (*none.variants, *none.tried))


def test_every_candidate_that_was_tried_is_recorded_with_its_error(work: Workspace) -> None:
    result = _build(work.options("ov"))
    tried = [each for each in result.document.tried if each.outcome == "not chosen"]
    assert len(tried) > 5
    assert all("relative RMS" in each.reason for each in tried)
    assert any("percentile" in each.reason for each in tried)
    chosen = next(each for each in result.document.variants if each.precision == "int8")
    assert all(chosen.scheme != each.reason.split(":")[0] for each in tried)


def test_no_way_to_a_target_is_an_error_with_its_reason(work: Workspace) -> None:
    model = _with_an_operator_beyond_the_converter(work.folder / "beyond.onnx")
    for name, count, seed in (("c", 40, 3), ("e", 60, 4)):
        np.savez(work.folder / f"{name}.npz", x=models.inputs(count, seed=seed)[:, 0])
    options = work.options("lite", source=model, calibration=work.folder / "c.npz", evaluation=work.folder / "e.npz")
    with pytest.raises(ConversionError, match="there is no way from this model to lite") as refusal:
        _build(options)
    assert refusal.value.exit_code == 1
    assert "biasgelu" in str(refusal.value).lower()
    assert refusal.value.next_step == f"edgeship bisect {model} --runtime litert --inputs {work.folder / 'c.npz'}"
    assert not (work.folder / "out").exists()


def test_a_route_that_fails_is_followed_by_the_next_and_told(work: Workspace) -> None:
    """Magika computes a shape that the converter gets wrong; with constants folded it does not."""
    model = TEST_DATA / "magika" / "fast_v2_1" / "model.onnx"
    if not model.is_file():
        pytest.skip("the shared test data are not here: magika on LiteRT was not tried")
    rng = np.random.default_rng(0)
    for name in ("c", "e"):
        np.savez(work.folder / f"{name}.npz", x=rng.integers(0, 256, (8, 1024)).astype(np.int32))
    options = work.options("lite", source=model, calibration=work.folder / "c.npz", evaluation=work.folder / "e.npz")
    result = _build(structs.replace(options, task="classification"))
    fp32 = next(each for each in result.document.variants if each.precision == "fp32")
    assert fp32.relative_rms is not None
    assert fp32.relative_rms < 1e-4
    assert any("fold → onnx2tf" in note for note in fp32.notes)
    assert any("does not compute what the source computes" in note for note in fp32.notes)
    fallback = next(each for each in result.document.tried if each.outcome == "fallback")
    assert fallback.stage == "runtime", "LiteRT does not run the first route's file"
    assert fallback.reason.endswith("the next route was taken")


def test_mnist_from_cntk_is_not_one_class(work: Workspace) -> None:
    model, data = TEST_DATA / "onnx" / "mnist_cntk.onnx", TEST_DATA / "data" / "mnist_t10k_first2000.npz"
    if not (model.is_file() and data.is_file()):
        pytest.skip("the shared test data are not here: the CNTK model was not tried")
    with np.load(data) as archive:
        x, y = archive["x"][:, None].astype(np.float32), archive["y"]
    # by index, before any result was seen: 30 % calibration, 20 % selection, 50 % claim
    np.savez(work.folder / "c.npz", x=x[:1000], y=y[:1000])
    np.savez(work.folder / "e.npz", x=x[1000:], y=y[1000:])
    options = work.options("ort", "ov", "lite", source=model, calibration=work.folder / "c.npz",
                           evaluation=work.folder / "e.npz", max_drop=0.01)  # fmt: skip
    result = _build(options)
    assert result.verdict == "pass"
    for variant in result.document.variants:
        if variant.chosen:
            assert variant.precision == "int8"
            assert variant.distinct_predictions == 10
            assert variant.relative_rms is not None
            assert variant.relative_rms < 0.05


def test_without_its_converter_a_build_says_how_to_get_it(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))
    with pytest.raises(ConfigError) as refusal:
        _build(work.options("lite", install_toolchains=False))
    assert refusal.value.next_step is not None
    assert "edgeship toolchains install onnx2tf" in refusal.value.next_step
    assert not (work.folder / "out").exists()


def test_a_target_file_that_is_none_and_a_name_that_cannot_be(work: Workspace) -> None:
    with pytest.raises(ConfigError, match="unknown target"):
        _build(structs.replace(work.options("ort"), targets=("raspberry-pi-9",)))
    with pytest.raises(ConfigError, match="plain characters"):
        _build(work.options("ort", name="../evil"))
    with pytest.raises(InputError, match="the evaluation data has no labels"):
        np.savez(work.folder / "plain.npz", x=models.inputs(5, seed=9))
        _build(work.options("ort", evaluation=work.folder / "plain.npz", metric="top1"))


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_an_interrupt_leaves_nothing_half_written(work: Workspace, pause_s: float) -> None:
    before = {path.name for path in work.folder.iterdir()}
    child = subprocess.Popen(work.command(target="ov"), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(work.folder.glob(".out-*")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(pause_s)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert {path.name for path in work.folder.iterdir()} == before


def test_the_converter_is_listed_and_imports() -> None:
    toolchains.install("onnx2tf")
    done = subprocess.run([sys.executable, "-m", "edgeship", "toolchains", "list", "--json"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    found = {each["name"]: each["installed"] for each in json.loads(done.stdout)["toolchains"]}
    assert found["onnx2tf"]
    assert toolchains.check("onnx2tf") == "onnx2tf 2.6.9 imports"


def test_a_target_without_a_way_fails_and_the_others_are_kept(work: Workspace) -> None:
    """The converter lowers no ImageDecoder-like operator, ONNX Runtime runs it: one target's trouble is its own."""
    model = _with_an_operator_beyond_the_converter(work.folder / "det.onnx")
    for name, count, seed in (("c", 40, 3), ("e", 60, 4)):
        np.savez(work.folder / f"{name}.npz", x=models.inputs(count, seed=seed)[:, 0])
    options = work.options("ort", "lite", source=model, calibration=work.folder / "c.npz",
                           evaluation=work.folder / "e.npz", max_drop=0.2)  # fmt: skip
    result = _build(options)
    assert result.verdict == "fail"
    by_target = {each.target: each for each in result.document.targets}
    assert by_target["ort"].verdict == "pass"
    assert by_target["lite"].verdict == "fail"
    assert "there is no way from this model to lite" in by_target["lite"].reason
    lost = next(each for each in result.document.tried if each.target == "lite")
    assert (lost.precision, lost.stage) == ("fp32", "conversion")
    assert "tried next: onnx → fold → onnx2tf" in lost.reason
    assert result.document.next == (f"edgeship bisect {model} --runtime litert --inputs {work.folder / 'c.npz'}",)
    assert result.document.next[0] in (result.folder / "report.md").read_text()
    assert {each.target for each in result.document.variants} == {"ort"}
    assert result.document.bundle is None
    assert (result.folder / "report.html").is_file()


def _with_an_operator_beyond_the_converter(path: Path) -> Path:
    """``x`` [1, 8, 8] to ``y`` [1, 8]: a matrix product, and an operator of ONNX Runtime's own domain."""
    rng = np.random.default_rng(8)
    weights = onnx.numpy_helper.from_array(rng.normal(0, 0.4, (8, 8)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["m"]),
        onnx.helper.make_node("ReduceMean", ["m"], ["r"], axes=[1], keepdims=0),
        onnx.helper.make_node("BiasGelu", ["r", "b"], ["y"], domain="com.microsoft"),
    ]
    bias = onnx.numpy_helper.from_array(rng.normal(0, 0.4, 8).astype(np.float32), "b")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", [1, 8, 8]), ("y", [1, 8]))]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "beyond", ends[:1], ends[1:], [weights, bias])
    imports = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path
