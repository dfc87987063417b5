"""A small network of the user's own, and factories that do not work."""

from __future__ import annotations

import torch
from torch import nn


class SmallNet(nn.Module):
    """[N, 1, 8, 8] → logits [N, 6], and the pooled maps [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))
        return {"logits": self.head(self.dropout(pooled)), "pooled": pooled}


class Counting(nn.Module):
    """Keeps a running sum in its state: what it says depends on the calls before; ``gain`` is a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self._state: torch.Tensor = torch.zeros(2, 3)

    def forward(self, x: torch.Tensor, gain: int) -> torch.Tensor:
        self._state = self._state + self.lin(x) * gain
        return self._state.sum(dim=0, keepdim=True)


class Restless(nn.Module):
    """Another answer at every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Branching(nn.Module):
    """What it computes depends on a value: no graph without a branch can hold it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2.0
        if bool(x.sum() > 0):
            y = x * 3.0
        return y


def trained() -> SmallNet:
    """The same weights and statistics every time."""
    torch.manual_seed(5)
    net = SmallNet()
    net.train()
    for _ in range(3):
        net(torch.randn(16, 1, 8, 8) * 2.0 + 0.5)
    return net.eval()


def broken() -> SmallNet:
    raise ValueError("no such dataset")


def number() -> int:
    return 7
