"""Patterns 8, 12, 13, 14, 16 and 17: grouped convolutions, flattening, sharing, BatchNorm in its variants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Frozen, Net, conv, image, row

__all__ = ["CASES"]


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def shuffle_guessing(x: Tensor, groups: int) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b, groups, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)


def shuffled(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(m.bn(m.shuffle(m.a(F.relu(m.stem(x))), m.groups))))


def shuffle_net(shuffle_with: Any) -> nn.Module:
    return nn.Sequential(
        Net(
            shuffled,
            stem=conv(3, 16),
            a=conv(16, 16, 1, groups=4),
            shuffle=shuffle_with,
            groups=4,
            bn=nn.BatchNorm2d(16),
            b=conv(16, 16, groups=4),
        ),
        nn.ReLU(),
        conv(16, 5),
    )


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            conv(half, half, groups=half),
            nn.BatchNorm2d(half),
            conv(half, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return shuffle(torch.cat((a, self.branch(b)), 1), 2)


def shuffle_v2() -> nn.Module:
    return nn.Sequential(conv(3, 16), nn.ReLU(), ShuffleUnit(16), ShuffleUnit(16), conv(16, 5))


def flat_by_literal(m: Any, x: Tensor) -> Tensor:
    return m.fc2(F.relu(m.fc1(F.max_pool2d(F.relu(m.conv(x)), 2).view(-1, 8 * 4 * 4))))


def flat_by_flatten(m: Any, x: Tensor) -> Tensor:
    return m.fc2(F.relu(m.fc1(F.max_pool2d(F.relu(m.conv(x)), 2).flatten(1))))


def flat_by_batch(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m.conv(x)), 2)
    return m.fc2(F.relu(m.fc1(x.view(x.size(0), -1))))


def flat_by_features(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m.conv(x)), 2)
    features = 1
    for size in x.size()[1:]:
        features *= size
    return m.fc2(F.relu(m.fc1(x.view(-1, features))))


def flat_nhwc(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(m.conv(x)), 2).permute(0, 2, 3, 1)
    return m.fc2(F.relu(m.fc1(x.flatten(1))))


def flat_by_attribute(m: Any, x: Tensor) -> Tensor:
    return m.fc2(F.relu(m.fc1(F.max_pool2d(F.relu(m.conv(x)), 2).view(-1, m.fc1.in_features))))


def flat_pool(m: Any, x: Tensor) -> Tensor:
    return m.fc2(F.relu(m.fc1(F.adaptive_avg_pool2d(F.relu(m.conv(x)), (4, 4)).reshape(x.shape[0], -1))))


def flat(forward: Any) -> nn.Module:
    return Net(forward, conv=conv(3, 8), fc1=nn.Linear(128, 16), fc2=nn.Linear(16, 5))


class TwoConvNet(nn.Module):
    """The net with a literal that is often taught, on smaller images: 1x22x22 gives 64 maps of 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(64 * 4 * 4, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).view(-1, 64 * 4 * 4)
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


def gan_literal(m: Any, z: Tensor) -> Tensor:
    return m.up2(F.relu(m.up1(F.relu(m.bn(m.fc(z).view(-1, 8, 4, 4))))))


def gan_guess(m: Any, z: Tensor) -> Tensor:
    return m.up2(F.relu(m.up1(F.relu(m.bn(m.fc(z).view(z.size(0), -1, 4, 4))))))


def gan_attribute(m: Any, z: Tensor) -> Tensor:
    return m.up2(F.relu(m.up1(F.relu(m.bn(m.fc(z).view(-1, m.width, m.start, m.start))))))


def gan(forward: Any, **parts: Any) -> nn.Module:
    return Net(
        forward,
        fc=nn.Linear(12, 128),
        bn=nn.BatchNorm2d(8),
        up1=nn.ConvTranspose2d(8, 6, 4, 2, 1),
        up2=nn.ConvTranspose2d(6, 3, 4, 2, 1),
        **parts,
    )


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def grouped_residual(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.head(F.relu(x + m.b(F.relu(m.a(x)))))


def pyramid(m: Any, x: Tensor) -> list[Tensor]:
    a = F.relu(m.stem(x))
    b = F.relu(m.down(a))
    return [m.box(F.relu(m.tower(level))) for level in (m.la(a), m.lb(b))]


def twice(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.head(F.relu(m.conv(F.relu(m.conv(x)))))


def tied(m: Any, ids: Tensor) -> Tensor:
    x = m.embed(ids)
    return m.out(x + m.b(F.gelu(m.a(x))))


def tied_net() -> nn.Module:
    net = Net(
        tied,
        embed=nn.Embedding(11, 8),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 8),
        out=nn.Linear(8, 11, bias=False),
    )
    net.out.weight = net.embed.weight
    return net


def tied_by_call(m: Any, ids: Tensor) -> Tensor:
    return F.linear(m.b(F.gelu(m.a(m.embed(ids)))), m.embed.weight)


class FrozenBN(nn.Module):
    """Statistics and affine as buffers; the shape comes from the buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def cat_norm(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.bn(torch.cat((m.a(x), m.b(x)), 1))))


class RepVGG(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c3, self.b3 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.c1, self.b1 = conv(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.b0 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b3(self.c3(x)) + self.b1(self.c1(x)) + self.b0(x))


def ids(top: int = 11) -> Tensor:
    return torch.arange(12).reshape(2, 6) % top


CASES = [
    Case(
        "shuffle between group convs",
        8,
        lambda: shuffle_net(shuffle),
        image(),
        ("0.stem.weight", "0.a.weight", "0.b.weight"),
    ),
    Case(
        "shuffle with -1 in the view",
        8,
        lambda: shuffle_net(shuffle_guessing),
        image(),
        ("0.stem.weight", "0.a.weight", "0.b.weight"),
    ),
    Case(
        "shufflenet v2 units",
        8,
        shuffle_v2,
        image(),
        ("0.weight", "2.branch.0.weight", "2.branch.3.weight", "3.branch.0.weight"),
    ),
    Case(
        "flatten by literal view",
        12,
        lambda: flat(flat_by_literal),
        image(),
        ("fc1.weight", "fc2.weight"),
        whole=("conv.weight",),
        frozen=(Frozen("conv.weight", 0, "128"),),
    ),
    Case(
        "flatten by flatten",
        12,
        lambda: flat(flat_by_flatten),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "flatten by batch size",
        12,
        lambda: flat(flat_by_batch),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "flatten by product of sizes",
        12,
        lambda: flat(flat_by_features),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "flatten after permute to NHWC",
        12,
        lambda: flat(flat_nhwc),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "flatten by the layer's in_features",
        12,
        lambda: flat(flat_by_attribute),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "flatten after adaptive pooling",
        12,
        lambda: flat(flat_pool),
        image(),
        ("conv.weight", "fc1.weight", "fc2.weight"),
    ),
    Case(
        "two convs, literal view",
        12,
        TwoConvNet,
        image(1, 22),
        ("conv1.weight", "fc1.weight", "fc2.weight"),
        frozen=(Frozen("conv2.weight", 0, "1024"),),
    ),
    Case(
        "gan, literal view",
        13,
        lambda: gan(gan_literal),
        row(12),
        ("up1.weight", "up2.weight"),
        frozen=(Frozen("bn.weight", 0, "8"),),
    ),
    Case(
        "gan, channels guessed",
        13,
        lambda: gan(gan_guess),
        row(12),
        ("fc.weight", "bn.weight", "up1.weight", "up2.weight"),
    ),
    Case(
        "gan, channels by attribute",
        13,
        lambda: gan(gan_attribute, width=8, start=4),
        row(12),
        ("fc.weight", "bn.weight", "up1.weight", "up2.weight"),
    ),
    Case(
        "groups 4",
        14,
        lambda: chain(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(), conv(16, 5)),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "groups 2 then 4",
        14,
        lambda: chain(
            conv(3, 16),
            conv(16, 16, groups=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            conv(16, 16, groups=4),
            conv(16, 5),
        ),
        image(),
        ("0.weight", "1.weight", "4.weight", "5.weight"),
    ),
    Case(
        "groups, in is not out",
        14,
        lambda: chain(conv(3, 16), nn.ReLU(), conv(16, 32, groups=4), nn.ReLU(), conv(32, 5)),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "groups in a residual",
        14,
        lambda: Net(
            grouped_residual, stem=conv(3, 16), a=conv(16, 16, groups=4), b=conv(16, 16), head=conv(16, 5)
        ),
        image(),
        ("stem.weight", "a.weight", "b.weight"),
    ),
    Case(
        "groups equal to the outputs",
        14,
        lambda: chain(conv(3, 16), nn.ReLU(), conv(16, 4, groups=4), nn.ReLU(), conv(4, 5)),
        image(),
        ("0.weight",),
    ),
    Case(
        "depthwise",
        14,
        lambda: chain(
            conv(3, 16), nn.ReLU6(), conv(16, 16, groups=16), nn.ReLU6(), conv(16, 8, 1), conv(8, 5)
        ),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "depthwise with multiplier 2",
        14,
        lambda: chain(conv(3, 8), nn.ReLU(), conv(8, 16, groups=8), nn.ReLU(), conv(16, 5)),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "depthwise transposed",
        14,
        lambda: chain(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8), conv(8, 5)),
        image(),
        ("0.weight", "2.weight", "3.weight"),
    ),
    Case(
        "grouped transposed",
        14,
        lambda: chain(
            conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=4), nn.ReLU(), conv(16, 5)
        ),
        image(),
        ("0.weight", "2.weight", "4.weight"),
    ),
    Case(
        "last conv with one output",
        14,
        lambda: chain(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 1)),
        image(),
        ("0.weight", "2.weight", "3.weight"),
    ),
    Case(
        "convs of one and three dimensions",
        14,
        lambda: chain(
            nn.Conv3d(2, 8, 3, padding=1),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.ConvTranspose3d(8, 4, 2, 2),
            nn.Flatten(2),
            nn.Conv1d(4, 6, 3),
            nn.ReLU(),
            nn.Conv1d(6, 3, 1),
        ),
        lambda: torch.randn(2, 2, 4, 4, 4),
        ("0.weight", "1.weight", "3.weight", "5.weight", "7.weight"),
    ),
    Case(
        "heads shared over a pyramid",
        16,
        lambda: Net(
            pyramid,
            stem=conv(3, 8),
            down=conv(8, 12, stride=2),
            la=conv(8, 8, 1),
            lb=conv(12, 8, 1),
            tower=conv(8, 8),
            box=conv(8, 4),
        ),
        image(),
        ("stem.weight", "down.weight", "la.weight", "tower.weight", "box.weight"),
    ),
    Case(
        "a conv called twice",
        16,
        lambda: Net(twice, stem=conv(3, 8), conv=conv(8, 8), head=conv(8, 5)),
        image(),
        ("stem.weight", "conv.weight", "head.weight"),
    ),
    Case("tied embedding and output", 16, tied_net, ids, ("embed.weight", "a.weight", "b.weight")),
    Case(
        "embedding weight used in a call",
        16,
        lambda: Net(tied_by_call, embed=nn.Embedding(11, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 8)),
        ids,
        ("embed.weight", "a.weight", "b.weight"),
    ),
    Case(
        "frozen batch norm as buffers",
        17,
        lambda: chain(conv(3, 8, bias=False), FrozenBN(8), nn.ReLU(), conv(8, 5)),
        image(),
        ("0.weight", "1.running_var", "3.weight"),
    ),
    Case(
        "batch norm without affine",
        17,
        lambda: chain(conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.Sigmoid(), conv(8, 5)),
        image(),
        ("0.weight", "1.running_mean", "3.weight"),
    ),
    Case(
        "batch norm without statistics",
        17,
        lambda: chain(conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), conv(8, 5)),
        image(),
        ("0.weight", "1.weight", "3.weight"),
    ),
    Case(
        "batch norm on a cat",
        17,
        lambda: Net(cat_norm, a=conv(3, 8), b=conv(3, 4), bn=nn.BatchNorm2d(12), head=conv(12, 5)),
        image(),
        ("a.weight", "b.weight", "bn.running_var", "head.weight"),
    ),
    Case(
        "repvgg",
        17,
        lambda: chain(conv(3, 8), nn.ReLU(), RepVGG(8), RepVGG(8), conv(8, 5)),
        image(),
        ("0.weight", "2.c3.weight", "2.b0.weight", "3.c1.weight", "4.weight"),
    ),
]
