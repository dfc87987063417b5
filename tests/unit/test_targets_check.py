"""Checks before building, on facts made by hand and on real ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from edgeship.build import target_files
from edgeship.build.model_facts import facts_of
from edgeship.targets import (
    CheckResult,
    ModelFacts,
    OperatorRule,
    Operators,
    OperatorUse,
    Partitions,
    RuntimeEntry,
    Target,
    blocking,
    check,
)
from edgeship.targets.knowledge import AGENT_PYTHON
from edgeship_agent.contract.errors import InputError

CONV = OperatorUse(op="Conv", dtypes=("float32",), max_rank=4)
FACTS = ModelFacts(
    operators=(CONV,),
    weight_bytes=1_000,
    peak_activation_bytes=1_000,
    io_dtypes=("float32",),
    unsupported={"onnxruntime": ()},
)


@pytest.fixture
def pi() -> Target:
    return target_files.load("raspberry-pi-5")


def failed(target: Target, facts: ModelFacts) -> dict[str, bool | None]:
    return {each.id: each.holds for each in check(target, facts) if each.holds is not True}


def changed(struct: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(struct, **fields)


def test_small_model_fits(pi: Target) -> None:
    assert failed(pi, FACTS) == {}


@pytest.mark.parametrize("operator", [OperatorUse(op="Scan"), OperatorUse(op="Conv", domain="com.example")])
def test_operator_that_the_route_does_not_lower(pi: Target, operator: OperatorUse) -> None:
    facts = changed(FACTS, operators=(CONV, operator))
    assert failed(pi, facts) == {"operators": False}
    assert operator.label in check(pi, facts)[0].sentence


@pytest.mark.parametrize(
    "ops",
    [
        Operators(deny=("Conv",)),
        Operators(allow=(OperatorRule(op="Gemm"),)),
        Operators(allow=(OperatorRule(op="Conv", dtypes=("int8",)),)),
        Operators(allow=(OperatorRule(op="Conv", max_rank=3),)),
    ],
)
def test_targets_own_rules(pi: Target, ops: Operators) -> None:
    assert failed(changed(pi, ops=ops), FACTS) == {"operators": False}
    assert failed(changed(pi, ops=changed(ops, on_unsupported="cpu")), FACTS) == {}


def test_memory_storage_glibc_shapes_and_types(pi: Target) -> None:
    assert failed(pi, changed(FACTS, weight_bytes=300_000_000)) == {"memory": False}
    assert failed(changed(pi, storage_bytes=1_999), FACTS) == {"storage": False}
    assert failed(changed(pi, glibc="2.26"), FACTS) == {"glibc": False}
    assert failed(changed(pi, arch="armv7l"), FACTS) == {"glibc": False}
    assert failed(changed(pi, static_shapes=True), changed(FACTS, dynamic_inputs=("x",))) == {"shapes": False}
    assert failed(pi, changed(FACTS, io_dtypes=("complex64",))) == {"types": False}


def test_storage_of_a_target_that_takes_integers_alone_is_counted_in_int8() -> None:
    board = changed(target_files.load("cortex-m"), storage_bytes=1_000)

    def told(**more: Any) -> list[tuple[bool | None, str]]:
        return [(each.holds, each.sentence) for each in check(board, changed(FACTS, **more)) if each.id == "storage"]

    assert told(weight_bytes=4_000) == [(True, "1.0 kB for the model in int8; cortex-m gives 1.0 kB")]
    assert [holds for holds, _ in told(weight_bytes=4_004)] == [False]
    assert [holds for holds, _ in told(weight_bytes=4_000, quantized=True)] == [False]


def test_fixed_shapes_are_asked_for_where_there_are_free_ones(pi: Target) -> None:
    def steps(**more: Any) -> set[str]:
        facts = changed(FACTS, peak_activation_bytes=None, **more)
        return {each.next_step for target in (pi, target_files.load("cortex-m")) for each in check(target, facts)
                if each.id == "memory"}  # fmt: skip

    assert steps() == {""}
    assert all("fixed shape" in step for step in steps(dynamic_inputs=("x",)))


def test_what_cannot_be_told_is_not_a_pass(pi: Target) -> None:
    assert failed(pi, changed(FACTS, peak_activation_bytes=None)) == {"memory": None}
    server = target_files.load("x86-64-server")
    assert failed(server, changed(FACTS, unsupported={})) == {"operators": None}


def model(path: Path, domain: str = "") -> Path:
    value = helper.make_tensor_value_info
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu" if not domain else "Mystery", ["y"],
             ["z"], domain=domain)]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", 4])], [value("z", TensorProto.FLOAT, ["n", 2])], [weights]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def test_facts_of_a_graph(tmp_path: Path) -> None:
    facts = facts_of(model(tmp_path / "m.onnx"))
    assert [use.label for use in facts.operators] == ["MatMul", "Relu"]
    assert facts.weight_bytes == 32
    # x (16 bytes) and y (8), then y and z (8 each)
    assert facts.peak_activation_bytes == 24
    assert facts.dynamic_inputs == ()
    assert facts.unsupported == {"onnxruntime": (), "openvino": ()}


def test_unknown_operator_domain_is_found_by_every_runtime(tmp_path: Path) -> None:
    facts = facts_of(model(tmp_path / "m.onnx", domain="com.example"))
    assert facts.unsupported["onnxruntime"] == ("com.example::Mystery",)
    assert any("Mystery" in name for name in facts.unsupported["openvino"])
    for target in target_files.list_all():
        assert failed(target, facts)["operators"] is False


def test_truncated_model(tmp_path: Path) -> None:
    whole = model(tmp_path / "m.onnx").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 3):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            facts_of(path)
        assert caught.value.exit_code == 2


def sentences(target: Target, facts: ModelFacts, name: str) -> list[str]:
    return [each.sentence for each in check(target, facts) if each.id == name]


def test_python_of_the_device_decides_which_runtime_it_can_have() -> None:
    jetson = target_files.load("jetson-orin-nano")
    assert failed(jetson, changed(FACTS, opset=23, ir_version=11)) == {}
    assert "1.23.2" in sentences(jetson, FACTS, "python")[0]
    for newer in (changed(FACTS, opset=24, ir_version=10), changed(FACTS, opset=13, ir_version=12)):
        found = [each for each in check(jetson, newer) if each.holds is False]
        assert [(each.id, each.sure) for each in found] == [("format", True)]
        assert "opset 23 and IR version 11 at most" in found[0].sentence
    # a newer Python takes the newest runtime, which reads them
    assert failed(changed(jetson, python="3.11"), changed(FACTS, opset=24, ir_version=12)) == {}


def test_a_python_without_wheels_and_without_the_agent(pi: Target) -> None:
    found = {each.id: each for each in check(changed(pi, python="3.9"), FACTS) if each.holds is False}
    assert set(found) == {"python", "agent"}
    assert found["agent"].sure
    assert "asks for Python 3.10" in found["agent"].sentence
    assert failed(changed(pi, python="3.20"), FACTS) == {"python": False}


def test_agents_python_is_what_the_agent_asks_for() -> None:
    text = (target_files.folder().parent / "device_agent" / "pyproject.toml").read_text()
    assert f'requires-python = ">={".".join(map(str, AGENT_PYTHON))}"' in text


def test_build_only_targets_ask_for_no_system() -> None:
    for name in ("android-arm64", "ios-arm64", "cortex-m"):
        target = target_files.load(name)
        assert failed(target, FACTS) == {}
        assert "build only" in sentences(target, FACTS, "agent")[0]


def test_pieces_of_a_delegate_are_told_and_never_a_failure(pi: Target) -> None:
    split = Partitions(provider="XNNPACK", count=3, inside=40, outside={"GATHER": 2, "SOFTMAX": 1})
    told = sentences(pi, changed(FACTS, partitions={"litert": split}), "partitions")
    assert told == ["XNNPACK takes 40 of 43 operators in 3 pieces; outside: GATHER ×2, SOFTMAX"]
    refused = changed(FACTS, partitions={"litert": Partitions(provider="XNNPACK", refused="no such operator")})
    assert failed(pi, refused) == {"partitions": None}


def test_what_is_sure_and_what_quantizing_may_mend(pi: Target) -> None:
    def sure(weight_bytes: int, **more: Any) -> dict[str, bool]:
        facts = changed(FACTS, weight_bytes=weight_bytes, **more)
        return {each.id: each.sure for each in check(pi, facts) if each.holds is False}

    # in int8 300 MB become 75, and the worker fits
    assert sure(300_000_000) == {"memory": False}
    # 2,000 MB become 500, and with the runtime that is too much; two of them fit on the disk
    assert sure(2_000_000_000) == {"memory": True, "storage": False}
    # already in int8 nothing becomes smaller
    assert sure(550_000_000, quantized=True) == {"memory": True}


def test_a_build_is_stopped_by_a_sure_failure_of_every_runtime_or_of_the_target(pi: Target) -> None:
    def result(runtime: str, *, sure: bool, holds: bool | None = False) -> CheckResult:
        return CheckResult(id="x", runtime=runtime, holds=holds, sentence=runtime or "target", sure=sure)

    assert blocking(pi, [result("litert", sure=True)]) == ()
    assert blocking(pi, [result("litert", sure=True), result("onnxruntime", sure=False)]) == ()
    assert blocking(pi, [result("litert", sure=True), result("onnxruntime", sure=True, holds=None)]) == ()
    both = [result("litert", sure=True), result("onnxruntime", sure=True)]
    assert blocking(pi, both) == tuple(both)
    whole = result("", sure=True)
    assert blocking(pi, [*both, whole]) == (whole,)


def test_full_int8_target_takes_a_float_model_to_be_quantized_and_no_half_quantized_one() -> None:
    cortex = target_files.load("cortex-m")
    assert failed(cortex, FACTS) == {}
    assert "quantized, they are int8" in sentences(cortex, FACTS, "types")[0]
    assert failed(cortex, changed(FACTS, quantized=True)) == {"types": False}
    assert failed(cortex, changed(FACTS, peak_activation_bytes=4 * 262_144)) == {}
    assert failed(cortex, changed(FACTS, peak_activation_bytes=4 * 262_148)) == {"memory": False}
    ready = changed(FACTS, format="tflite", quantized=True, io_dtypes=("int8",), arena_bytes=262_144)
    assert failed(cortex, changed(ready, unsupported={"tflm": ()})) == {}
    assert failed(cortex, changed(ready, unsupported={"tflm": ()}, arena_bytes=262_145)) == {"memory": False}
    assert failed(cortex, changed(ready, unsupported={"tflm": ("TOPK_V2",)})) == {"operators": False}


def test_a_tflite_file_has_no_way_to_onnx_yet_and_that_is_said() -> None:
    server = target_files.load("x86-64-server")
    facts = changed(FACTS, format="tflite", unsupported={})
    assert failed(server, facts) == {"operators": None}
    assert "converted to ONNX" in sentences(server, facts, "operators")[0]


def test_entry_that_is_micro() -> None:
    assert RuntimeEntry(name="litert", provider="TFLM").is_micro
    assert not RuntimeEntry(name="litert", provider="XNNPACK").is_micro
