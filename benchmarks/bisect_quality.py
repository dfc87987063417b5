"""How often the search for the smallest failing part finds exactly the operator that is at fault.

    python benchmarks/bisect_quality.py --json

Every trial generates a network (chains and branches), puts a fault into one random operator of a copy, and asks the
search with both files; what was changed, it is not told. A fault that does not reach an output fails nothing, so
another one is drawn then. Seeded. Exit code 3 if the goal is missed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.bisect.prober import Prober
from edgeship.build.bisect.session import Found, Question, find
from edgeship.build.progress import Silence
from edgeship.statistics import wilson

SEED: Final = 20_270_203
GRAPHS: Final = 100
#: Of these, one in so many hangs instead of going wrong, until its process is ended.
HANG_EVERY: Final = 25
GOAL: Final = 0.95
TIMEOUT_S: Final = 4.0
#: Relative RMS at an output from which a fault counts as one: twice what the search lets pass.
SHOWS: Final = 0.002

Rng = np.random.Generator
Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclass
class Net:
    """A network that grows: nodes, weights, and the tensors that nothing reads yet."""

    rng: Rng
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    live: dict[str, Shape] = field(default_factory=dict)

    def weight(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> str:
        """A new constant."""
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.normal(0.0, scale, shape) + offset).astype(np.float32)
        return name

    def add(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """A new operator; returns its output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        self.live[f"{name}_out"] = shape
        return f"{name}_out"


def convolution(net: Net, x: str, shape: Shape) -> None:
    """A convolution that keeps height and width."""
    size, channels = int(net.rng.choice([1, 3])), shape[1]
    groups = channels if net.rng.random() < 0.25 else 1
    outputs = channels if groups > 1 else int(net.rng.integers(3, 9))
    fan_in = channels // groups * size * size
    w, b = net.weight(outputs, channels // groups, size, size, scale=fan_in**-0.5), net.weight(outputs, scale=0.2)
    net.add("Conv", [x, w, b], (1, outputs, *shape[2:]), kernel_shape=[size] * 2, pads=[size // 2] * 4, group=groups)


def pointwise(net: Net, x: str, shape: Shape) -> None:
    """A function of every number."""
    kind = str(net.rng.choice(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Elu"]))
    net.add(kind, [x], shape, **({"alpha": 0.1} if kind in {"LeakyRelu", "Elu"} else {}))


def normalisation(net: Net, x: str, shape: Shape) -> None:
    """A batch normalisation with statistics of its own."""
    count = shape[1]
    scale, bias, mean = net.weight(count, scale=0.2, offset=1.0), net.weight(count, scale=0.2), net.weight(count)
    variance = net.weight(count, scale=0.05, offset=1.0)
    net.add("BatchNormalization", [x, scale, bias, mean, variance], shape)


def pooling(net: Net, x: str, shape: Shape) -> None:
    """A pooling that keeps height and width."""
    kind = str(net.rng.choice(["MaxPool", "AveragePool"]))
    net.add(kind, [x], shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def constant(net: Net, x: str, shape: Shape) -> None:
    """A sum or product with a weight of each channel."""
    kind = str(net.rng.choice(["Add", "Mul"]))
    net.add(kind, [x, net.weight(1, shape[1], 1, 1, scale=0.3, offset=1.0)], shape)


def joined(net: Net, x: str, shape: Shape) -> None:
    """Two branches into one."""
    y = str(net.rng.choice(sorted(net.live)))
    if net.live[y] == shape and net.rng.random() < 0.6:
        net.add(str(net.rng.choice(["Add", "Sub", "Mul", "Max"])), [x, y], shape)
    else:
        net.add("Concat", [x, y], (1, shape[1] + net.live[y][1], *shape[2:]), axis=1)


STEPS: Final[list[tuple[Callable[[Net, str, Shape], None], float]]] = [
    (convolution, 0.3), (pointwise, 0.22), (normalisation, 0.1), (pooling, 0.1), (constant, 0.08), (joined, 0.2),
]  # fmt: skip


def generate(rng: Rng) -> Any:
    """A network of 12 to 45 operators; every operator leads to the output."""
    net = Net(rng)
    net.live["x"] = (1, 3, 8, 8)
    read: set[str] = set()
    for _ in range(int(rng.integers(8, 36))):
        names = list(net.live)
        # mostly on from the newest tensor, now and then a branch from an older one
        x = names[-1] if rng.random() < 0.75 else str(rng.choice(names))
        step = STEPS[int(rng.choice(len(STEPS), p=[share for _, share in STEPS]))][0]
        step(net, x, net.live[x])
        read.update(net.nodes[-1].input)
    ends = [name for name in net.live if name not in read]
    rows = []
    for end in ends:
        pooled = net.add("GlobalAveragePool", [end], (1, net.live[end][1], 1, 1))
        rows.append(net.add("Flatten", [pooled], (1, net.live[end][1])))
    width = sum(net.live[row][1] for row in rows)
    last = net.add("Concat", rows, (1, width), axis=1) if len(rows) > 1 else rows[0]
    hidden = net.add("Gemm", [last, net.weight(width, 12, scale=width**-0.5), net.weight(12)], (1, 12))
    net.add("Softmax" if rng.random() < 0.3 else "Tanh", [hidden], (1, 12))
    return _model(net.nodes, net.weights, net.nodes[-1].output[0])


def _model(nodes: list[Any], weights: dict[str, Array], output: str) -> Any:
    graph = helper.make_graph(
        nodes, "generated", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 12])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


#: Operator → another of the same shape.
OTHERS: Final = {
    "Relu": "Abs", "LeakyRelu": "Relu", "Sigmoid": "Tanh", "Tanh": "Softsign", "HardSwish": "Relu", "Elu": "Relu",
    "MaxPool": "AveragePool", "AveragePool": "MaxPool", "Add": "Sub", "Sub": "Add", "Mul": "Add", "Max": "Min",
    "GlobalAveragePool": "GlobalMaxPool", "Softmax": "Tanh",
}  # fmt: skip


def wrong_operator(model: Any, node: Any, _rng: Rng) -> bool:
    """Another function."""
    if node.op_type not in OTHERS:
        return False
    node.op_type = OTHERS[node.op_type]
    if node.op_type in {"Relu", "AveragePool", "MaxPool"}:
        kept = [each for each in node.attribute if each.name in {"kernel_shape", "pads"}]
        del node.attribute[:]
        node.attribute.extend(kept)
    del model
    return True


def wrong_weight(model: Any, node: Any, rng: Rng) -> bool:
    """A tenth of a weight's or a bias's numbers replaced, at least one."""
    own = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [name for name in node.input if name in own]
    if not names:
        return False
    tensor = own[str(rng.choice(names))]
    values = numpy_helper.to_array(tensor).copy()
    hit = rng.choice(values.size, max(1, values.size // 10), replace=False)
    values.reshape(-1)[hit] = np.abs(values.reshape(-1)[hit]) + 1.0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return True


def wrong_attribute(_model: Any, node: Any, _rng: Rng) -> bool:
    """Padding on the wrong side, another slope, inputs in another order, another scale."""
    for each in node.attribute:
        if each.name == "pads" and sum(each.ints):
            each.ints[:] = [2 * each.ints[0], 2 * each.ints[1], 0, 0]
            return True
        if each.name == "alpha":
            each.f = -0.5 - each.f
            return True
    if node.op_type in {"Concat", "Sub"} and node.input[0] != node.input[1]:
        names = list(node.input)
        node.input[:] = names[::-1]
        return True
    if node.op_type == "Gemm":
        node.attribute.append(helper.make_attribute("alpha", 0.5))
        return True
    return False


def refused(model: Any, node: Any, _rng: Rng) -> bool:
    """A reshape that does not fit, which is seen when it runs."""
    output = node.output[0]
    before, size = f"{output}_before", f"{output}_size"
    node.output[0] = before
    # the size depends on the data, so that loading the file does not show it
    tail = [
        helper.make_node("ReduceMax", [before], [f"{output}_most"], keepdims=0),
        helper.make_node("Mul", [f"{output}_most", "zero"], [f"{output}_none"]),
        helper.make_node("Cast", [f"{output}_none"], [f"{output}_integer"], to=TensorProto.INT64),
        helper.make_node("Add", [f"{output}_integer", "seven"], [size]),
        helper.make_node("Reshape", [before, size], [output]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7], np.int64), "seven"))
    _insert(model, node, tail)
    return True


def hangs(model: Any, node: Any, _rng: Rng) -> bool:
    """A loop that does not end, until its process is ended."""
    output = node.output[0]
    before = f"{output}_before"
    node.output[0] = before
    turn, go_on, inside = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("turn", TensorProto.INT64, []), ("on", TensorProto.BOOL, []),
                                  ("inside", TensorProto.FLOAT, None))
    )  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Abs", ["inside"], ["next"])], "turn",
        [turn, go_on, inside],
        [helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    _insert(model, node, [helper.make_node("Loop", ["", "always", before], [output], body=body)])
    return True


def _insert(model: Any, node: Any, nodes: list[Any]) -> None:
    position = [each.name for each in model.graph.node].index(node.name) + 1
    for offset, each in enumerate(nodes):
        model.graph.node.insert(position + offset, each)


WRONG: Final = (wrong_weight, wrong_attribute, wrong_operator, refused)


def outputs(model: Any) -> Array | None:
    """What a model says to seeded samples; None where it is refused."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    samples = np.random.default_rng(1).standard_normal((4, 1, 3, 8, 8)).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.stack([session.run(None, {"x": sample})[0] for sample in samples])
    except Exception:  # noqa: BLE001 (whatever ONNX Runtime raises is a refusal)
        return None


def inject(source: Any, rng: Rng, *, hang: bool) -> tuple[Any, str, str]:
    """A copy with one fault that shows at the output, the operator's name, and the kind of fault."""
    right = outputs(source)
    assert right is not None, "a generated network runs"
    while True:
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        node = copy.graph.node[int(rng.integers(len(copy.graph.node)))]
        name = node.name
        fault = hangs if hang else WRONG[int(rng.integers(len(WRONG)))]
        if not fault(copy, node, rng):
            continue
        if hang:
            return copy, name, fault.__name__
        wrong = outputs(copy)
        if (wrong is None) != (fault is refused):
            continue
        if wrong is None or np.linalg.norm(wrong - right) > SHOWS * np.linalg.norm(right):
            return copy, name, fault.__name__


def trial(seed: int, prober: Prober, folder: Path, *, hang: bool) -> tuple[bool, str, Found, str]:
    """One network, one fault, one search: whether it was found exactly, what it was, what was found, where it was."""
    rng = np.random.default_rng(seed)
    source = generate(rng)
    artifact, truth, kind = inject(source, rng, hang=hang)
    model, other = folder / f"source{seed}.onnx", folder / f"other{seed}.onnx"
    model.write_bytes(source.SerializeToString())
    other.write_bytes(artifact.SerializeToString())
    found = find(Question(model=model, artifact=other, timeout_s=TIMEOUT_S), Silence(), prober)
    names = [] if found.fault is None else [name for name, _ in found.fault.operators]
    return names == [truth], kind, found, truth


def figures(graphs: int) -> list[dict[str, Any]]:
    """Every figure of this many networks."""
    hits, probes, seconds, operators = 0, [], [], []
    prober = Prober()
    try:
        with tempfile.TemporaryDirectory() as name:
            for index in range(graphs):
                start = time.perf_counter()
                hang = index % HANG_EVERY == HANG_EVERY - 1
                exact, kind, found, truth = trial(SEED + index, prober, Path(name), hang=hang)
                hits += exact
                probes.append(found.probes)
                operators.append(found.operators)
                seconds.append(time.perf_counter() - start)
                if not exact:
                    named = found.fault.operators if found.fault else "nothing"
                    print(f"missed: seed {SEED + index}, {kind} at {truth}: {named}", file=sys.stderr)
    finally:
        prober.close()
    interval = wilson(hits, graphs)
    share = {
        "name": "bisect/fault found exactly", "value": hits / graphs, "unit": "share", "low": round(interval.low, 4),
        "high": round(interval.high, 4), "n": graphs, "goal": f"≥ {GOAL}", "met": hits / graphs >= GOAL,
        "against": None,
    }  # fmt: skip
    median = {"low": None, "high": None, "n": graphs, "goal": None, "met": None, "against": None}
    return [
        share,
        {"name": "bisect/operators, median", "value": float(np.median(operators)), "unit": "operators", **median},
        {"name": "bisect/probes, median", "value": float(np.median(probes)), "unit": "processes", **median},
        {"name": "bisect/time, median", "value": round(float(np.median(seconds)), 2), "unit": "s", **median},
    ]


def main() -> None:
    """Print every figure: as JSON lines with ``--json``, else as text."""
    found = figures(GRAPHS)
    for one in found:
        if "--json" in sys.argv[1:]:
            print(json.dumps(one, ensure_ascii=False), flush=True)
        else:
            print(f"{one['name']}: {one['value']} {one['unit']} [{one['low']}, {one['high']}], n={one['n']}")
    sys.exit(3 if any(one["met"] is False for one in found) else 0)


if __name__ == "__main__":
    main()
