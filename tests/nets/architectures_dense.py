"""Networks whose output is a map or a signal: detectors, segmenters, generators, sound, video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.architectures_residual import Residual, cbr
from tests.nets.case import Case, Frozen, Net, conv, image, row
from tests.nets.splits import C2f

__all__ = ["CASES"]


class UNet(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = cbr(3, 8), cbr(8, 16), cbr(16, 32)
        if transposed:
            self.u2, self.u1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        else:
            self.u2, self.u1 = (nn.Sequential(nn.Upsample(scale_factor=2), conv(c, c // 2)) for c in (32, 16))
        self.c2, self.c1, self.head = cbr(32, 16), cbr(16, 8), conv(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.mid(F.max_pool2d(b, 2))
        b = self.c2(torch.cat((b, self.u2(c)), 1))
        return self.head(self.c1(torch.cat((a, self.u1(b)), 1)))


class DiffusionBlock(nn.Module):
    """GroupNorm, SiLU, conv, a shift from the time embedding, and again."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.GroupNorm(4, c_in), conv(c_in, c_out)
        self.n2, self.c2 = nn.GroupNorm(4, c_out), conv(c_out, c_out)
        self.time, self.skip = nn.Linear(16, 2 * c_out), conv(c_in, c_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
        y = self.n2(self.c1(F.silu(self.n1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.c2(F.silu(y))


def diffusion(m: Any, x: Tensor, t: Tensor) -> Tensor:
    t = m.t2(F.silu(m.t1(t)))
    a = m.stem(x)
    b = m.down(m.b1(a, t))
    c = F.interpolate(m.b2(b, t), scale_factor=2.0, mode="nearest")
    return m.out(F.silu(m.norm(m.b3(torch.cat((c, a), 1), t))))


def diffusion_net() -> nn.Module:
    return Net(
        diffusion,
        t1=nn.Linear(4, 16),
        t2=nn.Linear(16, 16),
        stem=conv(3, 8),
        b1=DiffusionBlock(8, 8),
        down=conv(8, 16, stride=2),
        b2=DiffusionBlock(16, 16),
        b3=DiffusionBlock(24, 8),
        norm=nn.GroupNorm(4, 8),
        out=conv(8, 3),
    )


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = cbr(width, width // 2, 1, nn.SiLU), cbr(2 * width, width, 1, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(F.max_pool2d(y[-1], 5, 1, 2) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class YoloHead(nn.Module):
    """Boxes as distributions over bins and classes, per level; the projection over bins must stay."""

    def __init__(self, widths: tuple[int, ...], classes: int = 3, bins: int = 4) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = classes, bins, classes + 4 * bins
        self.box = nn.ModuleList(nn.Sequential(cbr(w, 8), conv(8, 4 * bins, 1)) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(cbr(w, 8), conv(8, classes, 1)) for w in widths)
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)

    def forward(self, levels: list[Tensor]) -> Tensor:
        maps = [torch.cat((b(x), c(x)), 1) for b, c, x in zip(self.box, self.cls, levels, strict=True)]
        flat = torch.cat([y.view(y.shape[0], self.no, -1) for y in maps], 2)
        box, cls = flat.split((self.reg_max * 4, self.nc), 1)
        b, _, a = box.shape
        box = self.dfl(box.view(b, 4, self.reg_max, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return torch.cat((box, cls.sigmoid()), 1)


def yolo(m: Any, x: Tensor) -> Tensor:
    a = m.c1(m.stem(x))
    b = m.sppf(m.c2(m.down(a)))
    p = m.c3(torch.cat((F.interpolate(b, scale_factor=2.0), a), 1))
    n = m.c4(torch.cat((m.pan(p), b), 1))
    return m.head([p, n])


def yolo_net() -> nn.Module:
    return Net(
        yolo,
        stem=cbr(3, 8, 3, nn.SiLU),
        c1=C2f(8, 8, 1, True),
        down=cbr(8, 16, 3, nn.SiLU, stride=2),
        c2=C2f(16, 16, 1, True),
        sppf=SPPF(16),
        c3=C2f(24, 8, 1, False),
        pan=cbr(8, 8, 3, nn.SiLU, stride=2),
        c4=C2f(24, 16, 1, False),
        head=YoloHead((8, 16)),
    )


def anchor_head(m: Any, x: Tensor) -> Tensor:
    """YOLOv5's way out: anchors times outputs viewed by literal counts."""
    y = m.head(m.stem(x))
    b, _, h, w = y.shape
    return y.view(b, 3, 7, h, w).permute(0, 1, 3, 4, 2).sigmoid().reshape(b, -1, 7)


def fpn(m: Any, x: Tensor) -> list[Tensor]:
    c1 = m.c1(x)
    c2 = m.c2(c1)
    c3 = m.c3(c2)
    p3 = m.l3(c3)
    p2 = m.l2(c2) + F.interpolate(p3, size=c2.shape[-2:], mode="nearest")
    p1 = m.l1(c1) + F.interpolate(p2, size=c1.shape[-2:], mode="nearest")
    features = [m.smooth(p) for p in (p1, p2, p3)]
    return [m.cls(F.relu(m.tower(p))) for p in features] + [
        m.box(F.relu(m.tower(p))) * m.scale for p in features
    ]


def fpn_net() -> nn.Module:
    return Net(
        fpn,
        c1=cbr(3, 8),
        c2=cbr(8, 16, stride=2),
        c3=cbr(16, 32, stride=2),
        l1=conv(8, 8, 1),
        l2=conv(16, 8, 1),
        l3=conv(32, 8, 1),
        smooth=conv(8, 8),
        tower=nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8)),
        cls=conv(8, 3),
        box=conv(8, 4),
        scale=nn.Parameter(torch.ones(1)),
    )


class BiFPN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        self.top, self.out = self.separable(width), self.separable(width)

    @staticmethod
    def separable(width: int) -> nn.Module:
        return nn.Sequential(
            conv(width, width, groups=width, bias=False), conv(width, width, 1), nn.BatchNorm2d(width)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        a, b = levels
        w1, w2 = F.relu(self.w1), F.relu(self.w2)
        w1, w2 = w1 / (w1.sum(dim=0) + 1e-4), w2 / (w2.sum(dim=0) + 1e-4)
        top = self.top(F.silu(w1[0] * a + w1[1] * F.interpolate(b, scale_factor=2.0)))
        low = self.out(F.silu(w2[0] * b + w2[1] * F.max_pool2d(top, 2) + w2[2] * F.max_pool2d(a, 2)))
        return [top, low]


def efficientdet(m: Any, x: Tensor) -> list[Tensor]:
    a = m.c1(x)
    levels = m.f2(m.f1([m.l1(a), m.l2(m.c2(a))]))
    return [m.head(level).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3) for level in levels]


def aspp(m: Any, x: Tensor) -> Tensor:
    y = m.body(m.low(x))
    pooled = F.interpolate(m.pool(y.mean((2, 3), keepdim=True)), size=y.shape[2:])
    y = m.project(torch.cat([b(y) for b in m.branches] + [pooled], 1))
    y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
    return m.head(torch.cat((y, m.skip(m.low(x))), 1))


def aspp_net() -> nn.Module:
    return Net(
        aspp,
        low=cbr(3, 8),
        body=cbr(8, 16, stride=2),
        skip=cbr(8, 4, 1),
        pool=cbr(16, 8, 1),
        project=cbr(32, 8, 1),
        branches=nn.ModuleList(
            [cbr(16, 8, 1), cbr(16, 8, dilation=2, padding=2), cbr(16, 8, dilation=4, padding=4)]
        ),
        head=conv(12, 3),
    )


def generator() -> nn.Module:
    up = nn.ConvTranspose2d
    return nn.Sequential(
        nn.Unflatten(1, (12, 1, 1)),
        up(12, 16, 4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        up(16, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        up(8, 3, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    leaky = nn.LeakyReLU(0.2)
    return nn.Sequential(
        conv(3, 8, 4, stride=2, padding=1),
        leaky,
        conv(8, 16, 4, stride=2, padding=1),
        nn.InstanceNorm2d(16),
        leaky,
        conv(16, 1, 2, padding=0),
        nn.Flatten(),
    )


def vae(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, log = m.encode(x).chunk(2, 1)
    z = mean + torch.exp(0.5 * log) * 0.1
    return m.decode(z), mean, log


def vae_net() -> nn.Module:
    encode = nn.Sequential(
        conv(3, 8, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 8)
    )
    decode = nn.Sequential(
        nn.Linear(4, 64),
        nn.ReLU(),
        nn.Unflatten(1, (4, 4, 4)),
        nn.ConvTranspose2d(4, 6, 2, 2),
        nn.ReLU(),
        conv(6, 3),
    )
    return Net(vae, encode=encode, decode=decode)


def autoencoder() -> nn.Module:
    up = nn.ConvTranspose2d
    return nn.Sequential(
        conv(3, 8, stride=2),
        nn.ReLU(),
        conv(8, 16, stride=2),
        nn.ReLU(),
        up(16, 8, 2, 2),
        nn.ReLU(),
        up(8, 3, 2, 2),
        nn.Sigmoid(),
    )


def super_resolution(m: Any, x: Tensor) -> Tensor:
    a = m.stem(x)
    y = a + m.merge(m.body(a))
    return m.out(m.up(y)) + F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)


def super_resolution_net() -> nn.Module:
    body = nn.Sequential(*(Residual(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))) for _ in range(2)))
    up = nn.Sequential(conv(8, 32), nn.PixelShuffle(2))
    return Net(super_resolution, stem=conv(3, 8), body=body, merge=conv(8, 8), up=up, out=conv(8, 3))


class WaveBlock(nn.Module):
    def __init__(self, width: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.pad = dilation
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.res, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(F.pad(x, (self.pad, 0))).chunk(2, 1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return x + self.res(y), self.skip(y)


def wavenet(m: Any, x: Tensor) -> Tensor:
    x, total = m.stem(x), 0
    for block in m.blocks:
        x, skip = block(x)
        total = total + skip
    return m.out(F.relu(total))


def tcn_block(c_in: int, c_out: int, dilation: int) -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    layer = norm(nn.Conv1d(c_in, c_out, 3, padding=2 * dilation, dilation=dilation))
    chomp = Net(lambda m, x: x[:, :, : -m.size].contiguous(), size=2 * dilation)
    return Residual(nn.Sequential(layer, chomp, nn.ReLU()), nn.Conv1d(c_in, c_out, 1), nn.ReLU())


def crnn(m: Any, x: Tensor) -> Tensor:
    y = m.features(x)
    b, c, h, w = y.shape
    y, _ = m.rnn(y.permute(0, 3, 1, 2).reshape(b, w, c * h))
    return m.head(y)


def crnn_net() -> nn.Module:
    features = nn.Sequential(cbr(1, 8), nn.MaxPool2d((2, 1)), cbr(8, 8), nn.MaxPool2d((2, 1)))
    return Net(
        crnn,
        features=features,
        rnn=nn.GRU(16, 8, bidirectional=True, batch_first=True),
        head=nn.Linear(16, 5),
    )


def text_cnn(m: Any, ids: Tensor) -> Tensor:
    x = m.embed(ids).transpose(1, 2)
    return m.head(torch.cat([F.relu(c(x)).amax(2) for c in m.convs], 1))


def text_cnn_net() -> nn.Module:
    convs = nn.ModuleList(nn.Conv1d(8, 6, k) for k in (2, 3, 4))
    return Net(text_cnn, embed=nn.Embedding(20, 8), convs=convs, head=nn.Linear(18, 5))


def c3d() -> nn.Module:
    layers = [nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((1, 2, 2))]
    layers += [
        nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)),
        nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


def siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = (F.normalize(m.fc(m.body(z).mean((2, 3))), dim=-1) for z in (x, y))
    return (a * b).sum(-1)


SEGMENT = ("d1.0.weight", "mid.0.weight", "c2.0.weight", "head.weight")

CASES = [
    Case("unet, transposed", 0, lambda: UNet(True), image(), (*SEGMENT, "u2.weight")),
    Case("unet, upsampled", 0, lambda: UNet(False), image(), (*SEGMENT, "u2.1.weight")),
    Case(
        "diffusion unet",
        0,
        diffusion_net,
        lambda: (image()(), row(4, 2)()),
        ("t1.weight", "b1.c1.weight", "b1.time.weight", "b2.n2.weight", "out.weight"),
        frozen=(Frozen("stem.weight", 0, "norm"),),  # groups of 6 channels, cat of 16 and 8
    ),
    Case(
        "yolo",
        0,
        yolo_net,
        image(),
        ("stem.0.weight", "c1.cv1.weight", "c2.m.0.cv1.weight", "sppf.cv2.0.weight", "head.box.0.0.0.weight"),
    ),
    Case(
        "yolo with anchors",
        0,
        lambda: Net(anchor_head, stem=cbr(3, 8), head=conv(8, 21, 1)),
        image(),
        ("stem.0.weight",),
    ),
    Case(
        "fpn with shared heads",
        0,
        fpn_net,
        image(),
        ("c1.0.weight", "l1.weight", "smooth.weight", "tower.1.weight", "cls.weight"),
    ),
    Case(
        "bifpn",
        0,
        lambda: Net(
            efficientdet,
            c1=cbr(3, 8),
            c2=cbr(8, 16, stride=2),
            l1=conv(8, 8, 1),
            l2=conv(16, 8, 1),
            f1=BiFPN(8),
            f2=BiFPN(8),
            head=conv(8, 9),
        ),
        image(),
        ("c1.0.weight", "l1.weight", "f1.top.0.weight", "f2.out.1.weight", "head.weight"),
    ),
    Case(
        "aspp",
        0,
        aspp_net,
        image(),
        ("low.0.weight", "branches.1.0.weight", "project.0.weight", "head.weight"),
    ),
    Case("gan generator", 0, generator, row(12), ("1.weight", "4.weight", "7.weight")),
    Case("gan discriminator", 0, discriminator, image(), ("0.weight", "2.weight", "5.weight")),
    Case(
        "vae",
        0,
        vae_net,
        image(),
        ("encode.0.weight", "encode.3.weight", "decode.0.weight", "decode.5.weight"),
    ),
    Case("autoencoder", 0, autoencoder, image(), ("0.weight", "2.weight", "4.weight", "6.weight")),
    Case(
        "super-resolution",
        0,
        super_resolution_net,
        image(),
        ("stem.weight", "body.0.body.0.weight", "up.0.weight", "out.weight"),
    ),
    Case(
        "wavenet",
        0,
        lambda: Net(
            wavenet,
            stem=nn.Conv1d(3, 8, 1),
            blocks=nn.ModuleList(WaveBlock(8, 6, d) for d in (1, 2, 4)),
            out=nn.Conv1d(6, 4, 1),
        ),
        lambda: torch.randn(2, 3, 16),
        ("stem.weight", "blocks.0.conv.weight", "blocks.2.skip.weight", "out.weight"),
    ),
    Case(
        "tcn",
        0,
        lambda: nn.Sequential(tcn_block(3, 8, 1), tcn_block(8, 12, 2), nn.Conv1d(12, 4, 1)),
        lambda: torch.randn(2, 3, 16),
        ("0.project.weight", "1.body.0.bias", "2.weight"),
    ),
    Case("crnn", 0, crnn_net, image(1), ("features.0.0.weight", "features.2.0.weight", "rnn.weight_ih_l0")),
    Case(
        "text cnn",
        0,
        text_cnn_net,
        lambda: torch.arange(20).reshape(2, 10),
        ("embed.weight", "convs.0.weight", "head.weight"),
    ),
    Case(
        "video", 0, c3d, lambda: torch.randn(1, 3, 4, 8, 8), ("0.weight", "4.weight", "5.weight", "9.weight")
    ),
    Case(
        "siamese",
        0,
        lambda: Net(siamese, body=cbr(3, 8), fc=nn.Linear(8, 6)),
        lambda: (image()(), image()() + 1),
        ("body.0.weight", "fc.weight"),
    ),
]
