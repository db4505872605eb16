"""Residual, dense and multi-branch classifiers, and the mobile ones, a few layers each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import BasicBlock, Bottleneck, DenseNet, InvertedResidual
from tests.nets.case import Case, Net, conv, image
from tests.nets.convs import RepVGG, ShuffleUnit, shuffle
from tests.nets.gates import SEConv, SELinear, WSConv

__all__ = ["CASES"]


def cbr(
    c_in: int, c_out: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options: Any
) -> nn.Sequential:
    return nn.Sequential(conv(c_in, c_out, kernel, bias=False, **options), nn.BatchNorm2d(c_out), act())


def classifier(body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


class Residual(nn.Module):
    """A shortcut around a body, projected where the widths differ."""

    def __init__(
        self, body: nn.Module, project: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body, self.project, self.act = body, project or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.project(x) + self.body(x))


class OptionA(nn.Module):
    """The CIFAR ResNet's block: a shortcut without parameters."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, width, stride=stride, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or c_in != width:
            extra = (width - c_in) // 2
            self.shortcut = Net(
                lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, m.extra, m.extra)), extra=extra
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def option_a() -> nn.Module:
    blocks = [OptionA(8, 8, 1), OptionA(8, 16, 2), OptionA(16, 16, 1), OptionA(16, 32, 2)]
    return classifier(nn.Sequential(cbr(3, 8), *blocks), 32)


def preact(width: int) -> nn.Module:
    layers = (
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width),
    )
    return Residual(nn.Sequential(*layers))


def resnext_block(c_in: int, c_out: int, groups: int, se: bool = False) -> nn.Module:
    middle = [SEConv(c_out)] if se else []
    body = nn.Sequential(cbr(c_in, c_out, 1), cbr(c_out, c_out, groups=groups), *middle, cbr(c_out, c_out, 1))
    return Residual(body, cbr(c_in, c_out, 1), nn.ReLU())


def regnet() -> nn.Module:
    return classifier(
        nn.Sequential(cbr(3, 8), resnext_block(8, 16, 2, True), resnext_block(16, 32, 4, True)), 32
    )


def nf_block(width: int) -> nn.Module:
    body = nn.Sequential(
        nn.GELU(),
        WSConv(width, width, 3, padding=1),
        nn.GELU(),
        WSConv(width, width, 3, padding=1),
        SELinear(width),
    )
    return Residual(body)


class MobileV3(nn.Module):
    def __init__(self, c_in: int, width: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.up, self.dw = (
            cbr(c_in, width, 1, nn.Hardswish),
            cbr(width, width, kernel, nn.Hardswish, stride=stride, groups=width),
        )
        self.se, self.down = (
            SEConv(width),
            nn.Sequential(conv(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)),
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.se(self.dw(self.up(x))))
        return x + y if self.shortcut else y


def mobile_v3() -> nn.Module:
    blocks = (MobileV3(8, 16, 8, 3, 1), MobileV3(8, 24, 16, 5, 2), MobileV3(16, 32, 16, 5, 1))
    return nn.Sequential(
        cbr(3, 8, 3, nn.Hardswish),
        *blocks,
        cbr(16, 32, 1, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 40),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(40, 5),
    )


class MBConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, expand: int) -> None:
        super().__init__()
        width = c_in * expand
        self.body = nn.Sequential(
            cbr(c_in, width, 1, nn.SiLU),
            cbr(width, width, 3, nn.SiLU, groups=width),
            SEConv(width),
            conv(width, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class ShuffleDown(nn.Module):
    """ShuffleNetV2's unit of stride 2: two branches, joined and shuffled."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.left = nn.Sequential(conv(c_in, c_in, stride=2, groups=c_in), cbr(c_in, half, 1))
        self.right = nn.Sequential(
            cbr(c_in, half, 1), conv(half, half, stride=2, groups=half), cbr(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat((self.left(x), self.right(x)), 1), 2)


class Ghost(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.oup = c_out
        half = c_out // 2
        self.primary, self.cheap = cbr(c_in, half, 1), cbr(half, half, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], dim=1)[:, : self.oup, :, :]


class Fire(nn.Module):
    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.e1, self.e3 = (
            conv(c_in, squeeze, 1),
            conv(squeeze, expand, 1),
            conv(squeeze, expand),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.e1(x)), F.relu(self.e3(x))], 1)


def line(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, (1, 5), padding=(0, 2)), nn.Conv2d(c_out, c_out, (5, 1), padding=(2, 0))
    )


class Inception(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.b1, self.b2 = cbr(c_in, 8, 1), nn.Sequential(cbr(c_in, 4, 1), cbr(4, 8))
        self.b3 = nn.Sequential(cbr(c_in, 4, 1), line(4, 8), nn.ReLU())
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(c_in, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in (self.b1, self.b2, self.b3, self.b4)], 1)


def aux_heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = m.stem(x)
    return m.head(m.body(x)), m.aux(x)


class Selective(nn.Module):
    """SKNet: two kernels, a softmax over the branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([cbr(width, width), cbr(width, width, dilation=2, padding=2)])
        self.squeeze, self.excite = conv(width, 4, 1), conv(4, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([b(x) for b in self.branches], 1)
        s = self.excite(F.relu(self.squeeze(y.sum(1).mean((2, 3), keepdim=True))))
        return (y * torch.softmax(s.view(s.shape[0], 2, -1, 1, 1), 1)).sum(1)


class HighResolution(nn.Module):
    """HRNet: two resolutions that exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = cbr(8, 8), cbr(16, 16)
        self.up, self.down = conv(16, 8, 1), conv(8, 16, stride=2)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = self.high(x[0]), self.low(x[1])
        return F.relu(a + F.interpolate(self.up(b), scale_factor=2, mode="nearest")), F.relu(b + self.down(a))


def hrnet(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    a, b = m.s2(m.s1((x, m.first(x))))
    up = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
    return m.head(torch.cat((a, up), 1))


def dual_path(m: Any, x: Tensor) -> Tensor:
    """A residual part and a dense part in one tensor, cut by the residual width."""
    x = m.stem(x)
    for block in m.blocks:
        y = block(x)
        x = torch.cat((x[:, : m.width] + y[:, : m.width], x[:, m.width :], y[:, m.width :]), 1)
    return m.head(x.mean((2, 3)))


CASES = [
    Case(
        "resnet basic",
        0,
        lambda: classifier(nn.Sequential(cbr(3, 8), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2)), 16),
        image(),
        ("0.0.0.weight", "0.1.conv1.weight", "0.2.downsample.0.weight", "3.weight"),
    ),
    Case(
        "resnet bottleneck",
        0,
        lambda: classifier(
            nn.Sequential(cbr(3, 16), Bottleneck(16, 8, 1), Bottleneck(32, 8, 1), Bottleneck(32, 16, 2)), 64
        ),
        image(),
        ("0.0.0.weight", "0.1.conv2.weight", "3.weight"),
    ),
    Case("resnet option a", 0, option_a, image(), ("0.1.conv1.weight", "0.4.conv1.weight")),
    Case(
        "resnet pre-activation",
        0,
        lambda: classifier(nn.Sequential(conv(3, 8), preact(8), preact(8), nn.BatchNorm2d(8), nn.ReLU()), 8),
        image(),
        ("0.0.weight", "0.1.body.2.weight", "3.weight"),
    ),
    Case(
        "resnext",
        0,
        lambda: classifier(nn.Sequential(cbr(3, 8), resnext_block(8, 16, 4), resnext_block(16, 16, 8)), 16),
        image(),
        ("0.0.0.weight", "0.1.body.1.0.weight", "3.weight"),
    ),
    Case(
        "regnet y",
        0,
        regnet,
        image(),
        ("0.0.0.weight", "0.1.body.1.0.weight", "0.1.body.2.fc1.weight", "3.weight"),
    ),
    Case(
        "nfnet",
        0,
        lambda: classifier(nn.Sequential(WSConv(3, 8, 3, padding=1), nf_block(8), nf_block(8)), 8),
        image(),
        ("0.0.weight", "0.1.body.1.weight", "3.weight"),
    ),
    Case(
        "densenet",
        0,
        lambda: DenseNet((2, 3), growth=8, stem=16, num_classes=5),
        image(3, 16),
        ("features.0.weight", "features.4.1.conv1.weight", "classifier.weight"),
    ),
    Case(
        "mobilenet v2",
        0,
        lambda: classifier(
            nn.Sequential(
                cbr(3, 8),
                InvertedResidual(8, 8, 1, 1),
                InvertedResidual(8, 16, 2, 6),
                InvertedResidual(16, 16, 1, 6),
            ),
            16,
        ),
        image(),
        ("0.0.0.weight", "0.2.conv.0.weight", "0.2.conv.3.weight", "3.weight"),
    ),
    Case(
        "mobilenet v3",
        0,
        mobile_v3,
        image(),
        ("0.0.weight", "1.up.0.weight", "1.dw.0.weight", "1.se.fc1.weight", "10.weight"),
    ),
    Case(
        "efficientnet",
        0,
        lambda: classifier(
            nn.Sequential(cbr(3, 8, 3, nn.SiLU), MBConv(8, 8, 1), MBConv(8, 16, 4), MBConv(16, 16, 4)), 16
        ),
        image(),
        ("0.0.0.weight", "0.2.body.0.0.weight", "0.2.body.2.fc2.weight", "3.weight"),
    ),
    Case(
        "shufflenet v2",
        0,
        lambda: classifier(
            nn.Sequential(cbr(3, 8), ShuffleDown(8, 16), ShuffleUnit(16), ShuffleUnit(16), cbr(16, 16, 1)), 16
        ),
        image(),
        ("0.0.0.weight", "0.1.left.0.weight", "0.2.branch.0.weight", "3.weight"),
    ),
    Case(
        "ghostnet",
        0,
        lambda: classifier(
            nn.Sequential(
                cbr(3, 8), Ghost(8, 16), Residual(nn.Sequential(Ghost(16, 32), SEConv(32), Ghost(32, 16)))
            ),
            16,
        ),
        image(),
        ("0.0.0.weight",),
    ),
    Case(
        "squeezenet",
        0,
        lambda: nn.Sequential(
            conv(3, 8),
            nn.ReLU(),
            Fire(8, 4, 8),
            nn.MaxPool2d(2),
            Fire(16, 4, 8),
            conv(16, 5, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        image(),
        ("0.weight", "2.squeeze.weight", "4.e3.weight", "5.weight"),
    ),
    Case(
        "inception with an auxiliary head",
        0,
        lambda: Net(
            aux_heads,
            stem=nn.Sequential(cbr(3, 8), Inception(8)),
            body=Inception(28),
            head=classifier(nn.Identity(), 28),
            aux=classifier(cbr(28, 8), 8),
        ),
        image(),
        (
            "stem.0.0.weight",
            "stem.1.b3.1.0.weight",
            "stem.1.b3.1.1.weight",
            "body.b4.1.0.weight",
            "head.3.weight",
        ),
    ),
    Case(
        "repvgg net",
        0,
        lambda: classifier(nn.Sequential(cbr(3, 8), RepVGG(8), RepVGG(8), cbr(8, 16), RepVGG(16)), 16),
        image(),
        ("0.0.0.weight", "0.1.c1.weight", "3.weight"),
    ),
    Case(
        "vgg",
        0,
        lambda: nn.Sequential(
            conv(3, 8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            conv(8, 16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((2, 2)),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(32, 5),
        ),
        image(),
        ("0.weight", "3.weight", "7.weight", "10.weight"),
    ),
    Case(
        "sknet",
        0,
        lambda: classifier(nn.Sequential(cbr(3, 8), Selective(8), Selective(8)), 8),
        image(),
        ("0.0.0.weight", "0.1.branches.0.0.weight", "0.1.squeeze.weight", "3.weight"),
    ),
    Case(
        "hrnet",
        0,
        lambda: Net(
            hrnet,
            stem=cbr(3, 8),
            first=cbr(8, 16, stride=2),
            s1=HighResolution(),
            s2=HighResolution(),
            head=conv(24, 5, 1),
        ),
        image(),
        ("stem.0.weight", "first.0.weight", "s1.up.weight", "head.weight"),
    ),
    Case(
        "dual path",
        0,
        lambda: Net(
            dual_path,
            stem=cbr(3, 12),
            blocks=nn.ModuleList([cbr(12, 12), cbr(16, 12)]),
            width=8,
            head=nn.Linear(20, 5),
        ),
        image(),
    ),
]
