"""Patterns 25 and 28 to 31: recurrence, inputs and outputs of any kind, values read, models refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.case import Case, Net, conv, image, row, tokens

__all__ = ["CASES"]


def recurrent(m: Any, x: Tensor) -> Tensor:
    y, _ = m.rnn(F.relu(m.a(x)))
    return m.b(y)


def last_state(m: Any, x: Tensor) -> Tensor:
    _, h = m.rnn(F.relu(m.a(x)))
    h = h[0] if isinstance(h, tuple) else h
    return m.b(h[-1])


def rnn(kind: type[nn.RNNBase], forward: Any = recurrent, **options: Any) -> nn.Module:
    out = 8 * (2 if options.get("bidirectional") and forward is recurrent else 1)
    layer = kind(12, 8, batch_first=True, **options)
    return Net(forward, a=nn.Linear(6, 12), rnn=layer, b=nn.Linear(out, 5))


def cells(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], m.cell.hidden_size, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = m.cell(m.a(x[:, t]), h)
    return m.b(h)


@dataclass
class Found:
    boxes: Tensor
    scores: Tensor
    extra: None = None


def two_heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.relu(m.b(F.relu(m.a(x))))
    return m.c(x), m.d(x)


def as_tuple(m: Any, x: Tensor) -> Any:
    return two_heads(m, x)


def as_dict(m: Any, x: Tensor) -> Any:
    boxes, scores = two_heads(m, x)
    return {"boxes": boxes, "more": [scores, {"n": 3}], "name": "detector"}


def as_dataclass(m: Any, x: Tensor) -> Any:
    return Found(*two_heads(m, x))


def from_two(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.c(F.relu(m.a(x) + m.b(y)))


def from_dict(m: Any, batch: dict[str, Tensor]) -> Tensor:
    return m.c(F.relu(m.a(batch["x"]) + m.b(batch["y"])))


def from_names(m: Any, *, pixels: Tensor, mask: Tensor | None = None, deep: Any = None) -> Tensor:
    y = F.relu(m.a(pixels) + m.b(deep[0]["y"]))
    return m.c(y if mask is None else y * mask)


def heads(forward: Any) -> nn.Module:
    return Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 4), d=conv(8, 2))


def joins(forward: Any) -> nn.Module:
    return Net(forward, a=conv(3, 8), b=conv(3, 8), c=conv(8, 4))


def frozen() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)).requires_grad_(False)


def training() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), conv(8, 4)).train()
    net[1].eval()
    return net


class Experts(nn.Module):
    """Two of four experts per token, gathered by index."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, 8), nn.Linear(8, 4, bias=False), nn.Linear(8, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = torch.topk(torch.softmax(self.gate(flat), -1), 2, -1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            out.index_add_(0, token, expert(flat[token]) * weight[token, place, None])
        return self.head(x + out.view(x.shape))


class DenseExperts(Experts):
    """All experts, weighted: no value is read."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weight = torch.softmax(self.gate(x), -1)
        y = torch.stack([expert(x) for expert in self.experts], -1)
        return self.head(x + (y * weight.unsqueeze(-2)).sum(-1))


def stacked_experts(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    gate = torch.softmax(m.gate(x), -1)
    hidden = F.silu(torch.einsum("bnc,ech->bneh", x, m.up))
    return m.head(torch.einsum("bneh,ehc,bne->bnc", hidden, m.down, gate))


def reads_value(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    if x.mean().item() > -1:
        x = F.relu(m.b(x))
    return m.c(x)


def on_shape(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    if x.shape[1] == 8:
        x = m.b(x)
    return m.c(x)


def on_image_size(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    if x.shape[-1] > 4:
        x = F.interpolate(m.b(x), size=x.shape[-2:])
    return m.c(x)


def branches(forward: Any) -> nn.Module:
    return Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 5))


def data_parallel() -> nn.Module:
    return nn.DataParallel(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)))


def scripted() -> nn.Module:
    return torch.jit.trace(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval(), torch.zeros(1, 3, 8, 8))


def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)), backend="eager")


def quantised() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


RNN = ("a.weight", "rnn.weight_ih_l0", "b.weight")

CASES = [
    Case("lstm", 25, lambda: rnn(nn.LSTM), tokens(6), RNN),
    Case("gru", 25, lambda: rnn(nn.GRU), tokens(6), RNN),
    Case("elman", 25, lambda: rnn(nn.RNN), tokens(6), RNN),
    Case(
        "lstm, two layers, bidirectional",
        25,
        lambda: rnn(nn.LSTM, num_layers=2, bidirectional=True),
        tokens(6),
        (*RNN, "rnn.weight_hh_l1_reverse"),
    ),
    Case("gru, two layers, last state", 25, lambda: rnn(nn.GRU, last_state, num_layers=2), tokens(6), RNN),
    Case(
        "gru cell in a loop",
        25,
        lambda: Net(cells, a=nn.Linear(6, 12), cell=nn.GRUCell(12, 8), b=nn.Linear(8, 5)),
        tokens(6),
        ("a.weight", "cell.weight_ih", "b.weight"),
    ),
    Case("no gradients wanted", 28, frozen, image(), ("0.weight", "1.weight", "3.weight")),
    Case("left in train mode", 28, training, image(), ("0.weight", "1.weight", "4.weight")),
    Case(
        "output: tuple",
        28,
        lambda: heads(as_tuple),
        image(),
        ("a.weight", "b.weight", "c.weight", "d.weight"),
    ),
    Case(
        "output: dict", 28, lambda: heads(as_dict), image(), ("a.weight", "b.weight", "c.weight", "d.weight")
    ),
    Case(
        "output: dataclass",
        28,
        lambda: heads(as_dataclass),
        image(),
        ("a.weight", "b.weight", "c.weight", "d.weight"),
    ),
    Case(
        "input: tuple",
        28,
        lambda: joins(from_two),
        lambda: (image()(), image()() + 1),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "input: one dict",
        28,
        lambda: joins(from_dict),
        lambda: ({"x": image()(), "y": image()() + 1},),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "input: keywords, nested",
        28,
        lambda: joins(from_names),
        lambda: {"pixels": image()(), "deep": [{"y": image()() + 1}]},
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case("one layer", 29, lambda: nn.Linear(6, 4), row(6), whole=("weight",)),
    Case(
        "one layer inside", 29, lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU()), row(6), whole=("0.weight",)
    ),
    Case(
        "mixture of experts by index",
        30,
        Experts,
        tokens(6),
        ("stem.weight", "experts.0.0.weight", "experts.3.2.weight"),
    ),
    Case(
        "mixture of all experts",
        30,
        DenseExperts,
        tokens(6),
        ("stem.weight", "experts.0.0.weight", "experts.3.2.weight"),
    ),
    Case(
        "experts in one tensor",
        30,
        lambda: Net(
            stacked_experts,
            stem=nn.Linear(6, 8),
            gate=nn.Linear(8, 4),
            up=nn.Parameter(torch.randn(4, 8, 16)),
            down=nn.Parameter(torch.randn(4, 16, 8)),
            head=nn.Linear(8, 5),
        ),
        tokens(6),
        ("stem.weight", "up", "down"),
    ),
    Case("reads a value", 30, lambda: branches(reads_value), image(), ("a.weight", "b.weight", "c.weight")),
    Case("branch on the width", 30, lambda: branches(on_shape), image(), whole=("a.weight",)),
    Case(
        "branch on the image size",
        30,
        lambda: branches(on_image_size),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case("data parallel", 31, data_parallel, image()),
    Case("traced by jit", 31, scripted, image()),
    Case("compiled", 31, compiled, image()),
    Case("quantised", 31, quantised, row(6)),
]
