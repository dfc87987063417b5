"""The arena estimate against the arena that TensorFlow Lite Micro itself takes."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from edgeship.build.microcontroller.arena import estimate
from edgeship.build.microcontroller.emit import recommended_bytes
from edgeship.build.microcontroller.lifetimes import Scratch, buffers_of
from edgeship.build.tflite_file import read_tflite
from tests.tflite_files import Ops, TfliteWriter, Types, int8_net

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
#: File → bytes of the planned part, bytes of the persistent part, smallest arena in which it runs (None: not tried).
#: Measured on x86-64 with the interpreter of the package tflite-micro 0.dev20261023182759 (reference kernels, 64-bit
#: pointers): the first two as its RecordingMicroAllocator prints them, the third by bisection in steps of 16 bytes.
MEASURED = {
    "tflite/hello_world_int8.tflite": (32, 1472, 1936),
    "tflite/hello_world_float.tflite": (128, 1408, None),
    "tflite/micro_speech_quantized.tflite": (5968, 1616, 7584),
    "tflite/mnist_lstm_int8.tflite": (1536, 2672, 4208),
    "mlperf_tiny/ic_resnet8/pretrainedResnet_quant.tflite": (49152, 6832, 55984),
    "mlperf_tiny/ic_resnet8/pretrainedResnet.tflite": (196608, 6768, None),
    "mlperf_tiny/kws_dscnn/kws_ref_model.tflite": (16000, 8272, 24272),
    "mlperf_tiny/ad_toycar/ad01_int8.tflite": (768, 3216, 4640),
    "microwakeword/v2_okay_nabu.tflite": (4096, 19328, 24512),
    "dtln/model_1.tflite": (9216, 7296, 16512),
}


@pytest.mark.parametrize("name", MEASURED)
def test_estimate_against_tflm(name: str) -> None:
    if not (TEST_DATA / name).is_file():
        pytest.skip(f"not tried: {TEST_DATA / name} is not there")
    planned, persistent, smallest = MEASURED[name]
    found = estimate(read_tflite(TEST_DATA / name), word_bytes=8, cmsis_nn=False)
    assert found.planned_bytes == planned
    assert found.persistent_bytes == pytest.approx(persistent, rel=0.015)
    if smallest is not None:
        assert found.total_bytes == pytest.approx(smallest, rel=0.02)
        assert recommended_bytes(found) >= smallest
    # a 32-bit device needs less for the same kernels, and CMSIS-NN's may want more
    device = estimate(read_tflite(TEST_DATA / name), cmsis_nn=False)
    assert device.total_bytes < found.total_bytes
    assert estimate(read_tflite(TEST_DATA / name)).total_bytes >= device.total_bytes


def test_tensors_share_their_places(tmp_path: Path) -> None:
    net = TfliteWriter()
    tensors = [net.tensor(f"t{index}", (1, 1000)) for index in range(6)]
    for before, after in pairwise(tensors):
        net.operator(Ops.ABS, [before], [after])
    found = estimate(read_tflite(net.write(tmp_path / "m.tflite", tensors[:1], tensors[-1:])))
    assert found.least_bytes == 2000
    assert found.planned_bytes == 2 * 1008
    assert found.not_measured == ("ABS",)


def test_variables_stay_and_constants_lie_in_flash(tmp_path: Path) -> None:
    import numpy as np

    def arena(*, variable: bool) -> int:
        net = TfliteWriter()
        x, y = net.tensor("x", (1, 16)), net.tensor("y", (1, 16))
        net.tensor("state", (1, 512), variable=True) if variable else net.tensor(
            "weights", (1, 512), data=np.zeros(512, np.int8)
        )
        net.operator(Ops.ABS, [x], [y])
        return estimate(read_tflite(net.write(tmp_path / "m.tflite", [x], [y]))).total_bytes

    assert arena(variable=True) - arena(variable=False) == 512


def test_scratch_lives_as_long_as_its_operator(tmp_path: Path) -> None:
    model = read_tflite(int8_net(tmp_path / "m.tflite", width=64))
    plain = {buffer.name: (buffer.first_use, buffer.last_use) for buffer in buffers_of(model)}
    assert plain == {"x": (0, 1), "hidden": (1, 2), "y": (2, 2)}
    found = buffers_of(model, [Scratch(0, 1, 500)])
    assert [(each.first_use, each.last_use) for each in found if each.name == "scratch"] == [(2, 2)]


def test_convolution_wants_scratch_from_cmsis_nn(tmp_path: Path) -> None:
    import numpy as np

    net = TfliteWriter()
    x = net.tensor("x", (1, 8, 8, 16), scales=[0.1])
    w = net.tensor("w", (4, 5, 5, 16), data=np.zeros((4, 5, 5, 16), np.int8), scales=[0.1] * 4)
    b = net.tensor("b", (4,), Types.INT32, data=np.zeros(4, np.int32))
    y = net.tensor("y", (1, 4, 4, 4), scales=[0.1])
    from ai_edge_litert import schema_py_generated as schema

    net.operator(Ops.CONV_2D, [x, w, b], [y], options=schema.Conv2DOptionsT())
    model = read_tflite(net.write(tmp_path / "m.tflite", [x], [y]))
    plain, fast = estimate(model, cmsis_nn=False), estimate(model)
    # 2 columns of 5·5·16 int16
    assert fast.planned_bytes - plain.planned_bytes == 2 * 5 * 5 * 16 * 2
    assert fast.persistent_bytes - plain.persistent_bytes == 4


def test_graphs_that_call_each_other_in_a_circle(tmp_path: Path) -> None:
    from edgeship.build.tflite_file import TfliteGraph, TfliteModel, TfliteOperator

    loop = TfliteOperator(name="CALL_ONCE", options={"initSubgraphIndex": 0})
    model = TfliteModel(graphs=(TfliteGraph(tensors=(), operators=(loop,), inputs=(), outputs=()),), weight_bytes=0)
    with pytest.raises(ValueError, match="circle"):
        estimate(model)
