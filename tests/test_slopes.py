"""Taylor's slopes of all samples from one pass: the same as one by one, and one by one wherever samples meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune as sp
from structprune.importance import slopes
from structprune.importance.calibration import cross_entropies, cross_entropy

SAMPLES, TOKENS, CLASSES = 6, 5, 3


class Tokens(nn.Module):
    """`[n, tokens, 4]` through two linear layers and a rule in between; the mean over tokens."""

    def __init__(self, between: object = torch.relu) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(4, 8), nn.Linear(8, CLASSES), between

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x))).mean(1)


class TokensFirst(Tokens):
    """The same with the tokens in front, as recurrent networks have it: rows of a sample do not lie together."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x.transpose(0, 1)))).mean(0)


class Written(Tokens):
    """What the first layer gives is written over in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).mul_(0.5).relu_()).mean(1)


class Attention(nn.Module):
    """Queries and keys, which no weight reads: their slopes are those of the weights and biases that make them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = ((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.out(attended).mean(1)


class Doubled(Tokens):
    """The product counts twice, which its operands do not show."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x)).flatten(0, 1)
        found = torch.addmm(self.down.bias, hidden, self.down.weight.t(), alpha=2.0)
        return found.unflatten(0, (-1, TOKENS)).mean(1)


class ReadTwice(Tokens):
    """The weight that reads the channels is part of something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.down.weight.sum(0))
        return self.down(torch.relu(self.up(x)) * gate).mean(1)


class Images(nn.Module):
    """Convolutions: grouped, strided, transposed, with a normalisation that is written over in place."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(6 * 25, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.reshape(-1, 1, 7, 7)))


def scores(
    model: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, np.ndarray], list[int], dict[str, np.ndarray]]:
    """What `score` gives, the sizes of batches that went one by one for it, and what all of them give so."""
    graph, single, batches = sp.trace(model, x[:1]), slopes._one_by_one, [(x[:4], y[:4]), (x[4:], y[4:])]
    alone: list[int] = []

    def counted(calibration: object, twin: object, batch: object) -> object:
        alone.append(batch.size)
        return single(calibration, twin, batch)

    monkeypatch.setattr(slopes, "_one_by_one", counted)
    found = sp.score(model, graph, "taylor", data=batches)
    ones = [(one, target) for one, target in zip(x.split(1), y.split(1), strict=True)]
    with monkeypatch.context() as patch:
        patch.setattr(slopes._Together, "sizes", lambda self, batch: None)
        return found, alone[:], sp.score(model, graph, "taylor", data=ones)


def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    shape = (49,) if isinstance(model, Images) else (TOKENS, 4)
    return torch.randn(SAMPLES, *shape, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


@pytest.mark.parametrize("build", [Tokens, TokensFirst, Written, Attention, Images])
def test_one_pass_gives_the_slopes_of_all_samples(
    build: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    found, alone, expected = scores(model, *data(model), monkeypatch)
    assert alone == []
    assert len(found) >= 1
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [Doubled, ReadTwice])
def test_where_one_pass_would_say_something_else_samples_go_one_by_one(
    build: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    found, alone, expected = scores(model, *data(model), monkeypatch)
    assert alone == [4, 2]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)


def test_the_slope_is_the_derivative_by_a_gate() -> None:
    torch.manual_seed(0)
    model = Tokens().double().eval()
    x, y = data(model)
    gate = torch.ones(SAMPLES, 1, 8, dtype=torch.float64, requires_grad=True)
    losses = F.cross_entropy(model.down(torch.relu(model.up(x)) * gate).mean(1), y, reduction="sum")
    (slope,) = torch.autograd.grad(losses, gate)
    (found,) = sp.score(model, sp.trace(model, x), "taylor", data=[(x, y)]).values()
    np.testing.assert_allclose(found, slope.abs().mean((0, 1)).numpy())


def test_a_loss_that_weighs_samples_by_what_counts_is_each_samples_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double().eval()
    x, y = torch.randn(SAMPLES, TOKENS, 4, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES, TOKENS))
    y[::2, 2:] = -100  # padded: the mean over a batch is none over its samples
    found, alone, expected = scores(model, x, y, monkeypatch)
    assert alone == []
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9)


@pytest.mark.parametrize("layout", ["rows", "classes last", "classes first"])
def test_the_loss_of_each_sample_is_its_own(layout: str) -> None:
    logits = torch.randn(5, 7) if layout == "rows" else torch.randn(5, 4, 7)
    classes = torch.randint(0, 7, logits.shape[:-1])
    if layout != "rows":
        classes[1:, 1:3] = -100  # what does not count, in all samples but the first
    given = logits.movedim(-1, 1) if layout == "classes first" else logits
    counted = (classes != -100).reshape(5, -1).sum(1)
    wanted = [counted[n] * cross_entropy(given[n : n + 1], classes[n : n + 1]) for n in range(5)]
    torch.testing.assert_close(cross_entropies(given, classes, 5), torch.stack(wanted))
