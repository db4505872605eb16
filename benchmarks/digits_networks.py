"""Two networks small enough to be trained on digits within seconds, wide enough that a cut is a choice: a ResNet and
a MobileNetV2 kind for images `[n, 1, height, width]` of ten classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.networks import InvertedResidual, conv_bn
from structprune.demo import resnet20

__all__ = ["DIGITS_NETWORKS", "SmallMobileNet"]


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


DIGITS_NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet20, "mobilenet": SmallMobileNet}
