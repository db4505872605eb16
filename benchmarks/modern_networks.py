"""EfficientNet, ConvNeXt and Vision Transformer in plain torch, random weights, as torchvision and timm define them.

Input `[n, 3, 224, 224]`, output `[n, classes]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import conv_bn

__all__ = [
    "MODERN",
    "ConvNeXt",
    "EfficientNet",
    "VisionTransformer",
    "convnext_tiny",
    "efficientnet_b0",
    "vit_base",
    "vit_small",
]


class SqueezeExcite(nn.Module):
    """Channels weighed by what the mean over the image says of them."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.fc2(scale))


class MBConv(nn.Module):
    """Widen by 1x1, depthwise, squeeze and excite, narrow by 1x1; a shortcut where the shapes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = c_in * expand
        widen = [*conv_bn(c_in, width, 1), nn.SiLU()] if expand != 1 else []
        depthwise = [*conv_bn(width, width, kernel, stride, groups=width), nn.SiLU()]
        self.block = nn.Sequential(
            *widen, *depthwise, SqueezeExcite(width, c_in // 4), *conv_bn(width, c_out, 1)
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.shortcut else out


class EfficientNet(nn.Module):
    """EfficientNet-B0: Tan and Le, ICML 2019."""

    # expansion, channels, blocks, stride of the first block, kernel
    SETTINGS = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers, c_in = [*conv_bn(3, 32, 3, 2), nn.SiLU()], 32
        for expand, c_out, depth, stride, kernel in self.SETTINGS:
            for j in range(depth):
                layers.append(MBConv(c_in, c_out, kernel, stride if j == 0 else 1, expand))
                c_in = c_out
        layers += [*conv_bn(c_in, 1280, 1), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
        return out


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, an MLP over channels, layer scale and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.narrow(F.gelu(self.widen(out))).permute(0, 3, 1, 2)
        return x + self.scale * out


class ConvNeXt(nn.Module):
    """ConvNeXt-T: Liu et al., CVPR 2022."""

    WIDTHS, DEPTHS = (96, 192, 384, 768), (3, 3, 9, 3)

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, self.WIDTHS[0], 4, 4), LayerNorm2d(self.WIDTHS[0], eps=1e-6)]
        for stage, (width, depth) in enumerate(zip(self.WIDTHS, self.DEPTHS, strict=True)):
            if stage:
                before = self.WIDTHS[stage - 1]
                layers += [LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)]
            layers += [ConvNeXtBlock(width) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm = LayerNorm2d(self.WIDTHS[-1], eps=1e-6)
        self.classifier = nn.Linear(self.WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(F.adaptive_avg_pool2d(self.features(x), 1))
        out: Tensor = self.classifier(torch.flatten(pooled, 1))
        return out


class Attention(nn.Module):
    """Self-attention over tokens, queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class EncoderBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """ViT with patches of 16 (Dosovitskiy et al., ICLR 2021); ViT-S is 384 wide with 6 heads (Touvron et al., 2021)."""

    def __init__(self, width: int, heads: int, depth: int = 12, num_classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


def efficientnet_b0(num_classes: int = 1000) -> nn.Module:
    """EfficientNet-B0: 5,288,548 parameters."""
    return EfficientNet(num_classes)


def convnext_tiny(num_classes: int = 1000) -> nn.Module:
    """ConvNeXt-T: 28,589,128 parameters."""
    return ConvNeXt(num_classes)


def vit_small(num_classes: int = 1000) -> nn.Module:
    """ViT-S/16: 22,050,664 parameters."""
    return VisionTransformer(384, 6, num_classes=num_classes)


def vit_base(num_classes: int = 1000) -> nn.Module:
    """ViT-B/16: 86,567,656 parameters."""
    return VisionTransformer(768, 12, num_classes=num_classes)


MODERN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "efficientnet_b0": (efficientnet_b0, 5_288_548),
    "convnext_tiny": (convnext_tiny, 28_589_128),
    "vit_small": (vit_small, 22_050_664),
    "vit_base": (vit_base, 86_567_656),
}
