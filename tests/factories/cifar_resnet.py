"""Residual networks for 32 × 32 images, 6n + 2 layers, without weights of their own.

Source: He et al., Deep Residual Learning for Image Recognition (2015), section 4.2: a 3 × 3 convolution, three stages
of n blocks with 16, 32 and 64 maps, global average pooling and one fully connected layer; shortcuts are identities
(option A): where the size halves, every second pixel is taken and the new maps are zero, half of them on each side.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut without weights."""

    def __init__(self, maps_in: int, maps: int) -> None:
        super().__init__()
        self.stride = 1 if maps_in == maps else 2
        self.padding = (maps - maps_in) // 2
        self.conv1 = nn.Conv2d(maps_in, maps, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(inner + x)


class CifarResNet(nn.Module):
    """n blocks a stage."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, 32, 32] → logits [N, 10]."""
        maps = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(image))))))
        return self.linear(maps.mean(dim=(2, 3)))


def _stage(maps_in: int, maps: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(maps_in, maps), *(Block(maps, maps) for _ in range(blocks - 1)))


def resnet20() -> CifarResNet:
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    return CifarResNet(5)
