"""Criteria that take samples one by one: which inputs are a sample's own, and refusals where samples meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune as sp
from structprune.importance import Loss

APART = ["taylor", "fisher"]
SAMPLES, CLASSES = 8, 5


class Mixed(nn.Module):
    """Four tokens of each sample, mixed by an input that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        return self.down((mix @ self.up(x)).relu().mean(1))


class Whole(Mixed):
    """The shared input fails where it is given in parts."""

    def forward(self, x: Tensor, mix: Tensor) -> Tensor:
        return super().forward(x, mix.reshape(4, 4))


class Gated(Mixed):
    """A mask that is the sample's own between two inputs that all share, each four long."""

    def forward(self, x: Tensor, table: Tensor, mask: Tensor, mix: Tensor) -> Tensor:
        return super().forward(x * mask[:, None, None], mix * table.sum())


class Last(nn.Module):
    """Time first, as recurrent layers of torch have it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.state, self.down = nn.Linear(6, 8), nn.GRU(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.state(self.up(x))[0][-1])


class EachStep(Last):
    """Logits for every step, time first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.state(self.up(x))[0])


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.hidden(x).relu())

    def hidden(self, x: Tensor) -> Tensor:
        return self.up(x)


class Centred(Plain):
    """What the others are changes what a sample gives."""

    def hidden(self, x: Tensor) -> Tensor:
        return self.up(x) - self.up(x).mean(0)


class Noisy(Plain):
    def hidden(self, x: Tensor) -> Tensor:
        return self.up(x) + torch.randn(len(x), 8, dtype=x.dtype)


class Lost(Plain):
    """Gives its loss alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().mean()


def contrast(output: Tensor, target: Tensor) -> Tensor:
    rows = F.normalize(output, dim=1)
    return F.cross_entropy(rows @ rows.T / 0.1, torch.arange(len(rows)))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().eval()


def rows(*inside: int) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, *inside, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def by_sample(model: Mixed, inputs: list[tuple[Tensor, ...]], y: Tensor) -> dict[str, np.ndarray]:
    """The scores of the hidden channels, from one backward pass for each sample."""
    slopes, squares = [], torch.zeros(8, dtype=torch.float64)
    for one, target in zip(inputs, y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(*one), target[None]).backward()
        up, bias, down = model.up.weight, model.up.bias, model.down.weight
        slopes.append((down * down.grad).sum(0).abs())
        parts = (
            (up * up.grad).square().sum(1),
            (bias * bias.grad).square(),
            (down * down.grad).square().sum(0),
        )
        squares += sum(parts).detach() / 2 / len(y)
    model.zero_grad(set_to_none=True)
    return {"taylor": torch.stack(slopes).mean(0).detach().numpy(), "fisher": squares.numpy()}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("kind", [Mixed, Whole, Gated])
@pytest.mark.parametrize("example", [2, 4])
def test_an_input_that_is_as_long_as_the_batch_may_be_shared(
    kind: type[Mixed], name: str, example: int
) -> None:
    model, (x, y), mix = made(kind), rows(4, 6), torch.rand(4, 4).double()
    own = torch.rand(SAMPLES).double()

    def inputs(start: int, stop: int) -> tuple[Tensor, ...]:
        part = x[start:stop]
        return (part, mix[0], own[start:stop], mix) if kind is Gated else (part, mix)

    expected = by_sample(model, [inputs(n, n + 1) for n in range(SAMPLES)], y)[name]
    graph = sp.trace(model, inputs(0, example))
    for size in (1, 2, 4, SAMPLES):
        cuts = [(n, n + size) for n in range(0, SAMPLES, size)]
        data = [(inputs(*cut), y[slice(*cut)]) for cut in cuts]
        (found,) = sp.score(model, graph, name, data=data).values()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize(
    ("kind", "steps", "batch"), [(Last, 7, 3), (Last, 3, 3), (Last, 6, 3), (EachStep, 7, 3)]
)
def test_steps_are_no_samples(kind: type[nn.Module], steps: int, batch: int, name: str) -> None:
    model, x = made(kind), torch.randn(steps, batch, 6).double()
    graph, y = sp.trace(model, x), torch.arange(batch) % CLASSES
    y = y.expand(steps, -1) if kind is EachStep else y
    with pytest.raises(
        sp.InputError, match=r"batch 0 of data: .*samples one by one, along dim 0.*time.*'snip'.*wrap"
    ):
        sp.score(model, graph, name, data=[(x, y)])
    with pytest.raises(sp.InputError, match="samples one by one"):
        sp.score(model, graph, name, data=[x], loss=lambda output, _: output.square().mean())
    assert sp.score(model, graph, "snip", data=[(x, y)])


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize(
    ("kind", "loss", "said"),
    [
        (Centred, None, "8 samples give something else alone"),
        (Plain, contrast, "losses of 0 on average, each alone"),
        (Plain, lambda o, _: (o - o.mean(0)).square().mean(), "losses of 0 on average, each alone"),
        (Plain, lambda o, _: o.std(0).mean(), r"nan \(one sample\): .*single sample"),
    ],
)
@pytest.mark.filterwarnings("ignore:std")
def test_samples_that_meet_are_refused(
    kind: type[nn.Module], loss: Loss | None, said: str, name: str
) -> None:
    model, (x, y) = made(kind), rows(6)
    graph = sp.trace(model, x)
    with pytest.raises(sp.InputError, match=f"batch 0 of data.*{said}"):
        sp.score(model, graph, name, data=[(x, y)], loss=loss)
    assert sp.score(model, graph, "snip", data=[(x, y)], loss=loss)


@pytest.mark.parametrize("name", APART)
def test_what_only_looks_so_passes(name: str) -> None:
    model, (x, y) = made(Plain), rows(6)
    graph = sp.trace(model, x)
    data = [(x[:3], y[:3]), (x[3:], y[3:])]
    expected = sp.score(model, graph, name, data=data)
    summed = sp.score(model, graph, name, data=data, loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"))
    np.testing.assert_allclose(summed["up"], expected["up"])
    heavy = torch.arange(1, CLASSES + 1).double()
    assert sp.score(model, graph, name, data=data, loss=lambda o, t: F.cross_entropy(o, t, heavy))
    assert sp.score(made(Noisy), graph, name, data=data)
    assert sp.score(made(Lost), graph, name, data=[x], loss=lambda o, _: o)
