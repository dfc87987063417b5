"""Writes one file of every PyTorch form into a folder. Run by the toolchain's Python: write_models.py FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from small_net import Branching, Counting, trained


class Shifted(nn.Module):
    """A constant that is made inside of forward, and one number a sample without an axis of its own."""

    def forward(self, x):
        return (x * torch.tensor([1.0, -1.0, 2.0, 0.5])).sum(dim=1)


class Bag(nn.Module):
    """The mean of the rows that numbers stand for, those without a number left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.rows = nn.EmbeddingBag(10, 3, mode="mean", padding_idx=0)

    def forward(self, x):
        return self.rows((2 * x.abs()).to(torch.int64).clamp(0, 9))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch '{self.mark}'",))


def main(folder: Path) -> None:
    net = trained()
    weights = net.state_dict()
    parallel = nn.DataParallel(net).state_dict()
    torch.save(weights, folder / "plain.pth")
    checkpoint = {"state_dict": parallel, "best_prec1": np.float64(91.5), "epoch": 3}
    torch.save(checkpoint, folder / "checkpoint.th")
    torch.save(parallel, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({**weights, "head.weight": torch.zeros(2, 4)}, folder / "other.pth")
    lightning = {"state_dict": {f"model.net.{name}": value for name, value in weights.items()}, "epoch": 3}
    torch.save(lightning, folder / "lightning.ckpt")
    lightning["state_dict"]["model.loss.weight"] = torch.ones(6)
    torch.save(lightning, folder / "with_loss.ckpt")
    torch.save(net, folder / "whole.pth")
    torch.save(Shifted(), folder / "of_a_script.pth")
    mark = str(folder / "exploded")
    torch.save({"weights": weights, "more": Bomb(mark)}, folder / "bomb.pth")
    torch.save(Bomb(mark), folder / "bomb_legacy.pth", _use_new_zipfile_serialization=False)

    sample = torch.randn(2, 1, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (sample,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder / "program.pt2")
    free = torch.export.export(net, (sample,), dynamic_shapes={"x": {0: batch, 2: torch.export.Dim("height")}})
    torch.export.save(free, folder / "free.pt2")
    torch.export.save(torch.export.export(net, (sample,)), folder / "two.pt2")
    torch.export.save(torch.export.export(Shifted().eval(), (torch.randn(1, 4),)), folder / "shifted.pt2")
    torch.export.save(torch.export.export(Bag().eval(), (torch.randn(1, 5),)), folder / "bag.pt2")

    torch.jit.trace(net, sample[:1], strict=False).save(str(folder / "traced.pt"))
    torch.manual_seed(3)
    torch.jit.script(Counting()).save(str(folder / "counting.jit"))
    torch.jit.script(Branching()).save(str(folder / "branching.pt"))


main(Path(sys.argv[1]))
