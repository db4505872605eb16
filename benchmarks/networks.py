"""Well-known image classifiers in plain torch, random weights: what the benchmarks prune.

They follow torchvision's definitions layer by layer (same layers, same order, same parameter counts), so that
figures compare with those published for torchvision, yet nothing but torch is needed.
Input `[n, 3, 224, 224]`, output `[n, classes]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "densenet201", "mobilenet_v2", "resnet18", "resnet50", "vgg16", "vgg16_bn"]


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the image size at stride 1, and its BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        project = stride != 1 or c_in != width
        self.downsample = nn.Sequential(*conv_bn(c_in, width, 1, stride)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the stride in the middle, and a shortcut."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.conv1, self.bn1 = conv_bn(c_in, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, c_out, 1)
        project = stride != 1 or c_in != c_out
        self.downsample = nn.Sequential(*conv_bn(c_in, c_out, 1, stride)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, pooling, classifier."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, c_in = [], 64
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(c_in, 64 << i, 2 if i and not j else 1))
                c_in = (64 << i) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


class DenseLayer(nn.Module):
    """BatchNorm, 1x1, BatchNorm, 3x3; `growth` new channels from all earlier ones."""

    def __init__(self, c_in: int, growth: int, bottleneck: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        out: Tensor = self.conv2(F.relu(self.norm2(x)))
        return out


class DenseBlock(nn.ModuleList):
    """Layers that each read the concatenation of everything before them."""

    def __init__(self, depth: int, c_in: int, growth: int) -> None:
        super().__init__(DenseLayer(c_in + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Dense blocks with halving transitions between them."""

    def __init__(
        self, depths: Sequence[int], growth: int = 32, stem: int = 64, num_classes: int = 1000
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        layers = [conv, nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        width = stem
        for i, depth in enumerate(depths):
            layers.append(DenseBlock(depth, width, growth))
            width += depth * growth
            layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            if i < len(depths) - 1:
                layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out


class InvertedResidual(nn.Module):
    """Widen by 1x1, depthwise 3x3, narrow by 1x1; a shortcut where the shapes allow."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        width = c_in * expand
        widen = [*conv_bn(c_in, width, 1), nn.ReLU6()] if expand != 1 else []
        depthwise = [*conv_bn(width, width, 3, stride, groups=width), nn.ReLU6()]
        self.conv = nn.Sequential(*widen, *depthwise, *conv_bn(width, c_out, 1))
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Inverted residual blocks between two convolutions, then the classifier."""

    # expansion, channels, blocks, stride of the first block
    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers, c_in = [*conv_bn(3, 32, 3, 2), nn.ReLU6()], 32
        for expand, c_out, depth, stride in self.SETTINGS:
            for j in range(depth):
                layers.append(InvertedResidual(c_in, c_out, stride if j == 0 else 1, expand))
                c_in = c_out
        layers += [*conv_bn(c_in, 1280, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out


class VGG(nn.Module):
    """Plain 3x3 convolutions with pooling, then three linear layers."""

    WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __init__(self, batch_norm: bool, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for width, depth in self.WIDTHS:
            for _ in range(depth):
                layers.append(nn.Conv2d(c_in, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                c_in = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        head = [nn.Linear(c_in * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
        self.classifier = nn.Sequential(*head, nn.Dropout(), nn.Linear(4096, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return out


def resnet18(num_classes: int = 1000) -> nn.Module:
    """ResNet-18: 11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 1000) -> nn.Module:
    """ResNet-50: 25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def densenet201(num_classes: int = 1000) -> nn.Module:
    """DenseNet-201: 20,013,928 parameters."""
    return DenseNet((6, 12, 48, 32), num_classes=num_classes)


def mobilenet_v2(num_classes: int = 1000) -> nn.Module:
    """MobileNetV2: 3,504,872 parameters."""
    return MobileNetV2(num_classes)


def vgg16(num_classes: int = 1000) -> nn.Module:
    """VGG-16: 138,357,544 parameters."""
    return VGG(batch_norm=False, num_classes=num_classes)


def vgg16_bn(num_classes: int = 1000) -> nn.Module:
    """VGG-16 with BatchNorm: 138,365,992 parameters."""
    return VGG(batch_norm=True, num_classes=num_classes)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (resnet18, 11_689_512),
    "resnet50": (resnet50, 25_557_032),
    "densenet201": (densenet201, 20_013_928),
    "mobilenet_v2": (mobilenet_v2, 3_504_872),
    "vgg16": (vgg16, 138_357_544),
    "vgg16_bn": (vgg16_bn, 138_365_992),
}
