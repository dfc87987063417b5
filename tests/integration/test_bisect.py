"""``edgeship bisect`` on real files: what it finds, writes and refuses."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.bisect.child import Task
from edgeship.build.bisect.prober import Prober
from edgeship.build.bisect.session import Found, Question, find
from edgeship.build.progress import Silence
from edgeship.build.toolchains import environment
from edgeship.cli.main import edgeship
from edgeship_agent.contract.errors import EdgeshipError
from tests import models

GRAPHS = 10


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "bisect_quality.py"
    spec = importlib.util.spec_from_file_location("bisect_quality", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    opened = Prober()
    yield opened
    opened.close()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(edgeship, [str(each) for each in arguments])


def _search(model: Path, prober: Prober, **asked: Any) -> Found:
    return find(Question(model=model, **asked), Silence(), prober)


def _changed(source: Path, path: Path, change: Any) -> Path:
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(path))
    return path


def _after(model: Any, tensor: str, nodes: list[Any], before: str) -> None:
    """Put nodes between an operator and its output's readers; the first reads ``before``, the last writes the name."""
    index = next(index for index, node in enumerate(model.graph.node) if node.output[0] == tensor)
    model.graph.node[index].output[0] = before
    for offset, node in enumerate(nodes, start=1):
        model.graph.node.insert(index + offset, node)


@pytest.mark.timeout(120)
def test_a_fault_at_a_random_operator_is_found_exactly(quality: ModuleType, prober: Prober, tmp_path: Path) -> None:
    missed = []
    kinds = set()
    for seed in range(500, 500 + GRAPHS):
        exact, kind, found, truth = quality.trial(seed, prober, tmp_path, hang=False)
        kinds.add(kind)
        if not exact:
            missed.append((seed, kind, truth, found.fault and found.fault.operators))
    assert not missed
    assert len(kinds) > 2


def test_a_fault_that_ends_the_process_is_found_and_the_search_lives(prober: Prober, tmp_path: Path) -> None:
    def hang(model: Any) -> None:
        inside = helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)
        after = helper.make_tensor_value_info("after", TensorProto.FLOAT, None)
        turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
        on, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still"))
        nodes = [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Abs", ["inside"], ["after"])]
        body = helper.make_graph(nodes, "turn", [turn, on, inside], [still, after])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
        _after(model, "p", [helper.make_node("Loop", ["", "always", "before"], ["p"], body=body)], "before")

    source = models.classifier(tmp_path / "source.onnx")
    found = _search(source, prober, artifact=_changed(source, tmp_path / "hangs.onnx", hang), timeout_s=2.0)
    assert found.fault is not None
    assert found.fault.operators == (("p", "MaxPool"),)
    assert (found.fault.outcome.kind, found.fault.label) == ("killed", "runtime")
    assert "in time" in found.fault.outcome.reason


def test_a_probe_that_is_killed_says_by_what(prober: Prober, tmp_path: Path) -> None:
    """The parent of the probes outlives each of them."""
    model = models.classifier(tmp_path / "m.onnx")
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.zeros((200_000, 1, 1, 8, 8), np.float32))
    task = Task(kind="run", model=str(model), inputs=str(inputs), outputs=str(tmp_path / "outputs.npz"))
    late = prober.ask(task, timeout_s=0.05)
    assert (late.killed, late.late) == (signal.SIGKILL, True)
    np.savez(inputs, x=np.zeros((1, 1, 1, 8, 8), np.float32))
    assert prober.ask(task).refused == ""


def test_closing_ends_a_running_probe(tmp_path: Path) -> None:
    from threading import Thread

    model, inputs = models.classifier(tmp_path / "m.onnx"), tmp_path / "inputs.npz"
    np.savez(inputs, x=np.zeros((400_000, 1, 1, 8, 8), np.float32))
    opened = Prober()
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 1, 1, 8, 8), np.float32))
    first = Task(kind="run", model=str(model), inputs=str(tmp_path / "one.npz"), outputs=str(tmp_path / "o.npz"))
    opened.ask(first)  # it is up
    parent = opened._process
    assert parent is not None
    task = Task(kind="run", model=str(model), inputs=str(inputs), outputs=str(tmp_path / "outputs.npz"))
    errors: list[EdgeshipError] = []

    def ask() -> None:
        try:
            opened.ask(task)
        except EdgeshipError as error:
            errors.append(error)

    asking = Thread(target=ask)
    asking.start()
    while not (children := _children(parent.pid)):
        time.sleep(0.01)
    parent.terminate()
    asking.join()
    assert len(errors) == 1
    end = time.monotonic() + 10.0  # a killed process takes a moment to go; this one would run for longer
    while any(_runs(each) for each in children) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(_runs(each) for each in children)


def _children(identity: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{identity}/task/{identity}/children").read_text().split()]


def _runs(identity: int) -> bool:
    """Whether a process runs; a dead one may wait for its new parent to notice."""
    try:
        return Path(f"/proc/{identity}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_command_writes_the_part_and_a_line_that_shows_it_again(tmp_path: Path) -> None:
    def average(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "MaxPool").op_type = "AveragePool"

    source = models.classifier(tmp_path / "größe é.onnx")
    before = source.read_bytes()
    other = _changed(source, tmp_path / "other.onnx", average)
    folder = tmp_path / "found"
    outcome = _run("bisect", source, "--artifact", other, "-o", folder, "--json")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert document == json.loads((folder / "bisect.json").read_text())
    fault = document["fault"]
    assert (document["schema_version"], document["verdict"], fault["label"]) == (1, "diverges", "conversion")
    assert fault["operators"] == [{"name": "p", "type": "MaxPool"}]
    assert {path.name for path in folder.iterdir()} == {
        "bisect.json", "subgraph.onnx", "candidate.onnx", "inputs.npz", "expected.npz",
    }  # fmt: skip
    assert [node.op_type for node in onnx.load(fault["subgraph"]).graph.node] == ["MaxPool"]
    assert [node.op_type for node in onnx.load(fault["candidate"]).graph.node] == ["AveragePool"]
    assert outcome.stderr.splitlines()[-1] == f"next: {fault['repro']}"
    again = _run(*shlex.split(fault["repro"])[1:], "--json")
    assert again.exit_code == 0, again.output
    repeated = json.loads(again.stdout)
    assert (repeated["operators"], repeated["verdict"]) == (1, "diverges")
    assert repeated["relative_rms"] == pytest.approx(fault["relative_rms"], rel=1e-6)
    assert source.read_bytes() == before
    assert _run("bisect", source, "--artifact", other, "-o", folder).exit_code == 0, "a former search may be replaced"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_nothing_fails_where_nothing_is_wrong(runtime: str, tmp_path: Path) -> None:
    if runtime == "litert" and not environment.status("onnx2tf").installed:
        pytest.skip("onnx2tf is not installed")
    outcome = _run(
        "bisect", models.classifier(tmp_path / "m.onnx"), "--runtime", runtime, "-o", tmp_path / "o", "--json"
    )
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert (document["verdict"], document["fault"], document["probes"]) == ("agrees", None, 1)


def test_an_operator_that_a_runtime_cannot_read_is_a_conversion_error(prober: Prober, tmp_path: Path) -> None:
    def invert(model: Any) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        _after(model, "r1", [helper.make_node("Inverse", ["before"], ["r1"], domain="com.microsoft")], "before")

    plain = models.classifier(tmp_path / "plain.onnx")
    found = _search(_changed(plain, tmp_path / "inverse.onnx", invert), prober, runtime="openvino")
    assert found.fault is not None
    assert (found.fault.label, found.fault.operators) == ("conversion", (("r1", "Inverse"),))


def test_rounding_to_too_few_steps_is_a_quantization_error(prober: Prober, tmp_path: Path) -> None:
    def clip(model: Any) -> None:
        pair = [helper.make_node("QuantizeLinear", ["before", "scale", "zero"], ["rounded"]),
                helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["r2"])]  # fmt: skip
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.001), "scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
        _after(model, "r2", pair, "before")

    source = models.classifier(tmp_path / "source.onnx")
    found = _search(source, prober, artifact=_changed(source, tmp_path / "int8.onnx", clip))
    assert found.tolerance == 0.1
    assert found.fault is not None
    assert (found.fault.label, found.fault.operators) == ("quantization", (("r2", "Relu"),))


def test_numbers_at_other_places_are_a_layout_error(prober: Prober, tmp_path: Path) -> None:
    def turn(model: Any) -> None:
        _after(model, "p", [helper.make_node("Transpose", ["before"], ["p"], perm=[0, 1, 3, 2])], "before")

    source = models.classifier(tmp_path / "source.onnx")
    found = _search(source, prober, artifact=_changed(source, tmp_path / "turned.onnx", turn))
    assert found.fault is not None
    assert (found.fault.label, found.fault.operators) == ("layout", (("p", "MaxPool"),))


def test_tensors_that_the_other_file_lacks_make_the_part_larger(prober: Prober, tmp_path: Path) -> None:
    """An optimiser that joined Conv and Relu left no tensor between them."""

    def join(model: Any) -> None:
        model.graph.node[3].input[0] = "hidden"
        model.graph.node[2].output[0] = "hidden"
        model.graph.node[2].attribute.append(helper.make_attribute("strides", [1, 1]))
        next(each for each in model.graph.node[2].attribute if each.name == "pads").ints[:] = [2, 2, 0, 0]

    source = models.classifier(tmp_path / "source.onnx")
    found = _search(source, prober, artifact=_changed(source, tmp_path / "joined.onnx", join))
    assert found.fault is not None
    assert [kind for _, kind in found.fault.operators] == ["Conv", "Relu"]


def test_a_model_that_onnx_runtime_itself_refuses(prober: Prober, tmp_path: Path) -> None:
    """ONNX's reference implementation says what it should compute."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 4])
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Cast", ["r"], ["d"], to=TensorProto.DOUBLE),
             helper.make_node("Softplus", ["d"], ["s"]), helper.make_node("Selu", ["s"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    found = _search(path, prober)
    assert found.notes
    assert found.fault is not None
    assert found.fault.label == "runtime"
    assert [kind for _, kind in found.fault.operators] in (["Softplus"], ["Selu"])


def test_an_old_file_lists_its_weights_as_inputs_and_its_parts_do_not(prober: Prober, tmp_path: Path) -> None:
    """Before version 4 of the representation every weight was an input; a part cut out of such a file was refused."""

    def age(model: Any) -> None:
        model.ir_version = 3
        model.graph.input.extend(
            helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
            for each in model.graph.initializer
        )

    old = _changed(models.classifier(tmp_path / "m.onnx"), tmp_path / "old.onnx", age)
    found = _search(old, prober, runtime="openvino")
    assert found.fault is None, found.whole.sentence


def test_what_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    source = models.classifier(tmp_path / "m.onnx")
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 5), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.full((3, 1, 8, 8), np.nan, np.float32))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 1, 8, 8), np.float32))
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:100])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years")
    other = models.two_outputs(tmp_path / "two.onnx")
    cases: list[list[object]] = [
        ["--inputs", tmp_path / "wrong.npz"], ["--inputs", tmp_path / "nan.npz"], ["--inputs", tmp_path / "none.npz"],
        ["--inputs", tmp_path / "nowhere.npz"], ["--inputs", source], ["--artifact", tmp_path / "cut.onnx"],
        ["--artifact", tmp_path / "nowhere.onnx"], ["--artifact", other],
        ["--artifact", source, "--runtime", "openvino"], ["-o", tmp_path / "taken"], ["-o", tmp_path],
    ]  # fmt: skip
    for case in cases:
        where = [] if "-o" in case else ["-o", tmp_path / "out"]
        outcome = _run("bisect", source, *case, *where)
        assert isinstance(outcome.exception, EdgeshipError), (case, outcome.exception, outcome.output)
        assert outcome.exception.exit_code == 2, case
        assert outcome.exception.next_step, case
    shape = _run("bisect", source, "--inputs", tmp_path / "wrong.npz", "-o", tmp_path / "out").exception
    assert getattr(shape, "expected", None) == "float32 [N, 1, 8, 8]"
    assert not (tmp_path / "out").exists()
    assert [each.name for each in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
