"""Train the detector that the tests and benchmarks quantize, and write it as ONNX.

    pip install torch==2.13.0
    PYTHONPATH=. python tests/factories/detector/train.py tests/factories/detector/detector.onnx

A small backbone of stride 8 and a head in the manner of YOLO: one anchor point for each of 12 × 12 cells, boxes and
scores from branches of their own, decoded inside the graph and joined to one output [1, 4 + 10, 144]: centre, width
and height in pixels of a 640 × 640 camera image, and ten scores after the sigmoid. A few minutes on one core; seed 7.

Source: Li et al., "Generalized Focal Loss", 2020 (scores learn the overlap of their box); Zheng et al.,
"Distance-IoU Loss", 2020; boxes from sigmoids as YOLOv5 decodes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tests.factories.detector.scenes import CAMERA, CLASSES, SIDE, Scene, scenes

SEED: Final = 7
BATCH: Final = 32
EPOCHS: Final = 14
STRIDE: Final = 8
CELLS: Final = SIDE // STRIDE
#: Side of a box where its sigmoids say one half, in pixels of the network's input.
BASE: Final = 20.0
_BOX_WEIGHT: Final = 2.0
OPSET: Final = 17


class Block(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H ÷ stride, W ÷ stride]."""
        return functional.relu(self.norm(self.convolution(x)))


class Detector(nn.Module):
    """[N, 1, 96, 96] in 0–1 to box logits [N, 4, 144] and score logits [N, 10, 144]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([Block(1, 12, 2), Block(12, 24, 2), Block(24, 24), Block(24, 40, 2)])
        self.deep = nn.ModuleList([Block(40, 40), Block(40, 40)])
        self.box_block, self.score_block = Block(40, 32), Block(40, 32)
        self.box, self.score = nn.Conv2d(32, 4, 1), nn.Conv2d(32, CLASSES, 1)
        nn.init.constant_(self.score.bias, -4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of boxes and scores."""
        for block in self.stem:
            x = block(x)
        skipped = x
        for block in self.deep:
            x = block(x)
        x = x + skipped
        return self.box(self.box_block(x)).flatten(2), self.score(self.score_block(x)).flatten(2)


def anchors() -> np.ndarray:
    """Upper left corner of every cell, in cells: float32 [2, 144]."""
    rows, columns = np.mgrid[:CELLS, :CELLS]
    return np.stack([columns.reshape(-1), rows.reshape(-1)]).astype(np.float32)


def decode(logits: Tensor) -> Tensor:
    """Box logits [N, 4, 144] → centre, width and height in pixels of the network's input."""
    shares = logits.sigmoid() * 2.0
    centre = (shares[:, :2] - 0.5 + torch.from_numpy(anchors())) * STRIDE
    return torch.cat([centre, shares[:, 2:].square() * BASE], dim=1)


def targets(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What every cell is to say: its object's box [4, 144] (corners), and class [144] or −1.

    Up to four cells around an object's centre are its own; where two objects want a cell, the nearer one has it.
    """
    boxes, classes = np.zeros((4, CELLS * CELLS), np.float32), np.full(CELLS * CELLS, -1, np.int64)
    nearest = np.full(CELLS * CELLS, np.inf)
    middles = (anchors() + 0.5) * STRIDE
    for box, index in zip(scene.boxes, scene.classes, strict=True):
        centre = np.asarray([box[0] + box[2], box[1] + box[3]]) / 2.0
        away = np.abs(middles - centre[:, None]).max(axis=0)
        mine = (away < STRIDE) & (away < nearest)
        nearest[mine], classes[mine] = away[mine], index
        boxes[:, mine] = box[:, None]
    return boxes, classes


def loss_of(model: Detector, images: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Of a batch: overlap and distance of boxes, quality focal loss of scores."""
    box_logits, score_logits = model(images)
    found = decode(box_logits)
    low, high = found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2
    shared = (torch.minimum(high, boxes[:, 2:]) - torch.maximum(low, boxes[:, :2])).clamp(min=0).prod(1)
    union = found[:, 2:].prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    overlap = shared / union.clamp(min=1e-6)
    hull = torch.maximum(high, boxes[:, 2:]) - torch.minimum(low, boxes[:, :2])
    apart = ((found[:, :2] - (boxes[:, :2] + boxes[:, 2:]) / 2).square().sum(1)) / hull.square().sum(1).clamp(min=1e-6)
    mine = classes >= 0
    quality = functional.one_hot(classes.clamp(min=0), CLASSES).transpose(1, 2) * (overlap.detach() * mine)[:, None]
    weight = (quality - score_logits.sigmoid().detach()).square()
    scores = functional.binary_cross_entropy_with_logits(score_logits, quality, weight, reduction="sum")
    places = ((1.0 - overlap + apart) * mine).sum()
    total: Tensor = (_BOX_WEIGHT * places + 2.0 * scores) / mine.sum().clamp(min=1)
    return total


def train() -> Detector:
    """Train on the training scenes alone."""
    torch.manual_seed(SEED)
    found = scenes("train")
    images = torch.from_numpy(np.stack([each.image for each in found]).astype(np.float32)[:, None] / 255.0)
    wanted = [targets(each) for each in found]
    boxes, classes = (torch.from_numpy(np.stack([each[part] for each in wanted])) for part in (0, 1))
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(found) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(found)).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(model, images[batch], boxes[batch], classes[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        print(f"epoch {epoch + 1}: loss {total / len(found):.3f}", flush=True)
    return model.eval()


class Graph:
    """An ONNX graph that is put together node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        """A named constant."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node with one output of its own name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"/{name}", **attributes))
        return name

    def block(self, module: Block, x: str, name: str) -> str:
        """Convolution with the normalisation folded in, and ReLU."""
        norm = module.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = module.convolution.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        said = self.convolution(weight, bias, x, f"{name}_conv", module.convolution.stride[0])
        return self.add("Relu", [said], name)

    def convolution(self, weight: Tensor, bias: Tensor, x: str, name: str, stride: int = 1) -> str:
        """A convolution that keeps the size before the stride."""
        inputs = [x, self.constant(f"{name}.weight", weight.detach().numpy()),
                  self.constant(f"{name}.bias", bias.detach().numpy())]  # fmt: skip
        side = int(weight.shape[2])
        return self.add("Conv", inputs, name, kernel_shape=[side, side], strides=[stride, stride],
                        pads=[side // 2] * 4)  # fmt: skip


def export(model: Detector, path: Path) -> None:
    """Write the detector with its decoding, input ``image`` and output ``detections``."""
    graph = Graph()
    x = "image"
    for index, block in enumerate(model.stem):
        x = graph.block(block, x, f"stem{index}")  # type: ignore[arg-type]
    skipped = x
    for index, block in enumerate(model.deep):
        x = graph.block(block, x, f"deep{index}")  # type: ignore[arg-type]
    x = graph.add("Add", [x, skipped], "joined")
    scores = _branch(graph, (model.score_block, model.score), x, "score", CLASSES)
    shares = _branch(graph, (model.box_block, model.box), x, "box", 4)
    doubled = graph.add("Mul", [shares, graph.constant("two", np.float32(2.0))], "doubled")
    graph.nodes.append(helper.make_node("Split", [doubled, graph.constant("halves", np.asarray([2, 2]))],
                                        ["places", "sizes"], name="/split", axis=1))  # fmt: skip
    scale = CAMERA / SIDE
    corner = graph.constant("cells", (anchors() - 0.5)[None])
    offset = graph.add("Add", ["places", corner], "offset")
    centre = graph.add("Mul", [offset, graph.constant("stride", np.float32(STRIDE * scale))], "centre")
    squared = graph.add("Mul", ["sizes", "sizes"], "squared")
    extent = graph.add("Mul", [squared, graph.constant("base", np.float32(BASE * scale))], "extent")
    boxes = graph.add("Concat", [centre, extent], "boxes", axis=1)
    graph.add("Concat", [boxes, scores], "detections", axis=1)
    shapes = {"image": [1, 1, SIDE, SIDE], "detections": [1, 4 + CLASSES, CELLS * CELLS]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    document = helper.make_model(
        helper.make_graph(graph.nodes, "detector", values[:1], values[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(document, full_check=True)
    path.write_bytes(document.SerializeToString(deterministic=True))


def _branch(graph: Graph, modules: tuple[Block, nn.Conv2d], x: str, name: str, channels: int) -> str:
    """One branch of the head to its sigmoid: [1, channels, 144]."""
    block, last = modules
    assert last.bias is not None
    x = graph.block(block, x, f"{name}_block")
    x = graph.convolution(last.weight, last.bias, x, f"{name}_conv")
    flat = graph.constant(f"{name}_shape", np.asarray([1, channels, CELLS * CELLS]))
    return graph.add("Sigmoid", [graph.add("Reshape", [x, flat], f"{name}_flat")], f"{name}_sigmoid")


def main() -> None:
    """Train and write the file that is named."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    export(train(), path)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
