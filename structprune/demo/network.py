"""The demo's network: the ResNet-20 of He et al. 2016 (arXiv:1512.03385, section 4.2), with projection
shortcuts.

The paper's own shortcut pads with zero channels; a 1x1 convolution does the same job and leaves every stage
free to be cut.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ResNet20", "ResidualBlock", "resnet20"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input: [n, c_in, h, w] -> [n, c_out, h/s, w/s]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet20(nn.Module):
    """A 3x3 stem, three stages of three residual blocks at widths w, 2w and 4w, a linear classifier."""

    def __init__(self, width: int = 16, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = _stage(width, width, stride=1)
        self.stage2 = _stage(width, 2 * width, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(c_in, c_out, stride)
    return nn.Sequential(first, ResidualBlock(c_out, c_out, 1), ResidualBlock(c_out, c_out, 1))


def resnet20() -> ResNet20:
    """The network that `structprune demo` trains: 1 input channel, 10 classes, widths 32, 64 and 128."""
    return ResNet20(width=32)
