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
from edgeship.targets import ModelFacts, OperatorRule, Operators, OperatorUse, Target, check
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
