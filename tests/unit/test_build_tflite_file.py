"""TFLite files as data: what is in them, and what a damaged one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeship.build.model_facts import facts_of
from edgeship.build.tflite_file import parse_tflite, read_tflite
from edgeship_agent.contract.errors import InputError
from tests.tflite_files import Ops, TfliteWriter, Types, int8_net


def test_tensors_operators_and_ends(tmp_path: Path) -> None:
    model = read_tflite(int8_net(tmp_path / "m.tflite"))
    main = model.main
    x, y = main.tensors[main.inputs[0]], main.tensors[main.outputs[0]]
    assert (x.name, x.dtype, x.shape, x.scales, x.zero_points, x.size_bytes) == (
        "x", "int8", (1, 4), (pytest.approx(0.05),), (-3,), 4,
    )  # fmt: skip
    assert (y.name, y.constant, y.variable) == ("y", False, False)
    assert [each.name for each in model.operators] == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert model.operators[0].options["fusedActivationFunction"] == 0
    assert [tensor.name for tensor in main.tensors if tensor.constant] == ["w1", "b1", "w2", "b2"]
    assert model.weight_bytes == 4 * 4 + 4 * 4 + 3 * 4 + 3 * 4


def test_free_axes_variables_and_buffer_zero(tmp_path: Path) -> None:
    net = TfliteWriter()
    x = net.tensor("x", (-1, 2), Types.FLOAT32)
    state = net.tensor("state", (3,), Types.FLOAT32, variable=True)
    net.operator(Ops.ABS, [x], [x])
    model = read_tflite(net.write(tmp_path / "m.tflite", [x], [x]))
    assert model.main.tensors[x].free_axes == (0,)
    assert model.main.tensors[x].size_bytes == 8
    assert model.main.tensors[state].variable


def test_facts_of_a_quantized_file(tmp_path: Path) -> None:
    facts = facts_of(int8_net(tmp_path / "m.tflite"))
    assert (facts.format, facts.quantized, facts.io_dtypes) == ("tflite", True, ("int8",))
    assert [(use.op, use.count, use.max_rank) for use in facts.operators] == [("FULLY_CONNECTED", 2, 2)]
    # x and hidden, then hidden and y: 8 and 7 bytes
    assert facts.peak_activation_bytes == 8
    assert facts.unsupported == {"tflm": (), "litert": (), "openvino": ()}
    pieces = facts.partitions["litert"]
    assert (pieces.provider, pieces.count, pieces.inside, pieces.outside) == ("XNNPACK", 1, 2, {})


def test_custom_operator_is_named_by_every_runtime(tmp_path: Path) -> None:
    facts = facts_of(int8_net(tmp_path / "m.tflite", custom="Mystery"))
    assert facts.unsupported["litert"] == ("CUSTOM::Mystery",)
    assert facts.unsupported["tflm"] == ("CUSTOM::Mystery",)
    assert facts.unsupported["openvino"]
    assert "Mystery" in facts.partitions["litert"].refused


def test_free_axis_besides_the_batch(tmp_path: Path) -> None:
    for shape, expected in (((-1, 2), ()), ((1, -1), ("x",))):
        net = TfliteWriter()
        x = net.tensor("x", shape, Types.FLOAT32)
        y = net.tensor("y", shape, Types.FLOAT32)
        net.operator(Ops.ABS, [x], [y])
        path = net.write(tmp_path / "m.tflite", [x], [y])
        assert facts_of(path, ()).dynamic_inputs == expected


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = int8_net(tmp_path / "m.tflite").read_bytes()
    with pytest.raises(InputError, match="not a TFLite model"):
        parse_tflite(b"PK\x03\x04" + whole)
    for length in (8, 60, len(whole) // 3):
        with pytest.raises(InputError) as caught:
            parse_tflite(whole[:length])
        assert caught.value.exit_code == 2
    rng = np.random.default_rng(1)
    for _ in range(200):
        broken = bytearray(whole)
        for position in rng.integers(8, len(whole), 4):
            broken[position] = int(rng.integers(0, 256))
        try:
            parse_tflite(bytes(broken))
        except InputError as error:
            assert error.next_step


def test_tensor_that_does_not_exist(tmp_path: Path) -> None:
    net = TfliteWriter()
    x = net.tensor("x", (1,), Types.FLOAT32)
    net.operator(Ops.ABS, [x], [7])
    with pytest.raises(InputError, match="damaged"):
        read_tflite(net.write(tmp_path / "m.tflite", [x], [x]))
    with pytest.raises(InputError, match="cannot be read"):
        read_tflite(tmp_path / "missing.tflite")
