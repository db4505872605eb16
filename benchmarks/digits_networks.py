"""Networks small enough to be trained on digits within seconds, wide enough that a cut is a choice: a ResNet, a
MobileNetV2, a VGG and a ViT kind for images `[n, 1, height, width]` of ten classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import BasicBlock, InvertedResidual, conv_bn
from structprune.demo import resnet20

__all__ = ["DIGITS_NETWORKS", "SmallMobileNet", "SmallResNet", "SmallVGG", "SmallViT"]


class SmallMobileNet(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with fewer blocks and strides, for small images."""

    SETTINGS = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1))  # expansion, channels, stride
    LAST = 256

    def __init__(self) -> None:
        super().__init__()
        layers, c_in = [*conv_bn(1, 32, 3), nn.ReLU6()], 32
        for expand, c_out, stride in self.SETTINGS:
            for block_stride in (stride, 1):
                layers.append(InvertedResidual(c_in, c_out, block_stride, expand))
                c_in = c_out
        layers += [*conv_bn(c_in, self.LAST, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(self.LAST, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


class SmallResNet(nn.Module):
    """ResNet-14: as He et al. 2016 (arXiv:1512.03385, section 4.2), with projections, two blocks a stage."""

    WIDTHS = (16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        c_in = self.WIDTHS[0]
        for stage, width in enumerate(self.WIDTHS):
            blocks += [BasicBlock(c_in, width, 2 if stage else 1), BasicBlock(width, width, 1)]
            c_in = width
        self.stem = nn.Sequential(*conv_bn(1, self.WIDTHS[0], 3), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(c_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class SmallVGG(nn.Module):
    """VGG (Simonyan and Zisserman 2014, arXiv:1409.1556) with batch norm: six convolutions, two linear layers."""

    WIDTHS = (32, 64, 128)  # two convolutions each, then pooling

    def __init__(self, image_size: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 1
        for width in self.WIDTHS:
            for _ in range(2):
                layers += [*conv_bn(c_in, width, 3), nn.ReLU()]
                c_in = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            image_size = -(-image_size // 2)
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(c_in * image_size**2, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.hidden(self.features(x).flatten(1)).relu())
        return out


class ViTBlock(nn.Module):
    """Attention, then two linear layers, each normalised before and added to what came in: `[n, tokens, width]`."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.heads, self.scale = heads, (width // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class SmallViT(nn.Module):
    """ViT (Dosovitskiy et al. 2020, arXiv:2010.11929): a convolution, patches of 3x3, four blocks, a mean over tokens.

    The convolution before the patches (Xiao et al. 2021, arXiv:2106.14881) lets it learn from a thousand images.
    """

    def __init__(
        self, image_size: int = 12, width: int = 64, depth: int = 4, heads: int = 4, hidden: int = 128
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(1, 32, 3), nn.ReLU())
        self.patches = nn.Conv2d(32, width, 3, 3)
        self.places = nn.Parameter(0.02 * torch.randn(1, (image_size // 3) ** 2, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.stem(x)).flatten(2).transpose(1, 2) + self.places
        out: Tensor = self.classifier(self.norm(self.blocks(x)).mean(1))
        return out


DIGITS_NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet20, "mobilenet": SmallMobileNet}
