"""The judge itself, on networks cut by hand: it accepts what is right and rejects each way of being wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets.patterns import PATTERNS
from tests.oracle import Verdict, compare, fill_distinct, judge, outputs_of, tensors_of

KEEP = torch.tensor([0, 2, 3, 5])


class Net(nn.Module):
    """in -> a -> middle -> b -> out, where `middle` sees the eight channels that are cut to four."""

    def __init__(self, a: nn.Module, middle: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.middle, self.b = a, middle, b

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.middle(self.a(x)))
        return out


def conv_net(middle: nn.Module) -> Net:
    return Net(nn.Conv2d(3, 8, 3, padding=1), middle, nn.Conv2d(8, 5, 3))


def linear_net(middle: nn.Module) -> Net:
    return Net(nn.Linear(6, 8), middle, nn.Linear(8, 5))


def cut(net: Net, produced: Tensor = KEEP, consumed: Tensor = KEEP, middle: Tensor = KEEP) -> Net:
    """A copy of `net` with these channels kept on the producer's, the consumer's and the middle's side."""
    small = copy.deepcopy(net)
    small.a.weight = nn.Parameter(small.a.weight[produced])
    small.a.bias = nn.Parameter(small.a.bias[produced])
    small.b.weight = nn.Parameter(small.b.weight[:, consumed])
    for module in small.middle.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.dim() == 1:
                    chosen = tensor.detach()[middle]
                    held[name] = nn.Parameter(chosen) if held is module._parameters else chosen
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.normalized_shape = (len(middle),)
        if isinstance(module, nn.InstanceNorm2d):
            module.num_features = len(middle)
        if isinstance(module, nn.GroupNorm):
            module.num_channels = len(middle)
    return small


class RMS(nn.Module):
    """A normalisation written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Standardised(nn.Module):
    """Mean and deviation over the channels, and a softmax over them."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        return torch.softmax(x, 1) + x.amax(1, keepdim=True) + F.normalize(x, dim=1)


IMAGE, ROW = torch.randn(2, 3, 6, 6), torch.randn(4, 6)
MIDDLES = {
    "relu": (conv_net, nn.ReLU(), IMAGE),
    "sigmoid of what is gone is not 0": (conv_net, nn.Sigmoid(), IMAGE),
    "batch norm": (conv_net, nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), IMAGE),
    "instance norm": (conv_net, nn.InstanceNorm2d(8, affine=True), IMAGE),
    "group norm": (conv_net, nn.GroupNorm(1, 8), IMAGE),
    "layer norm": (linear_net, nn.LayerNorm(8), ROW),
    "rms norm": (linear_net, nn.RMSNorm(8), ROW),
    "rms norm by hand": (linear_net, RMS(), ROW),
    "statistics over channels": (conv_net, Standardised(), IMAGE),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_right_cut_is_exact(name: str) -> None:
    build, middle, x = MIDDLES[name]
    net = fill_distinct(build(copy.deepcopy(middle))).eval()
    verdict = compare(net, cut(net), x)
    assert verdict.status == "exact", verdict
    assert 0 < verdict.removed < 1


@pytest.mark.parametrize("name", MIDDLES)
def test_consumer_with_other_channels_is_wrong(name: str) -> None:
    build, middle, x = MIDDLES[name]
    net = fill_distinct(build(copy.deepcopy(middle))).eval()
    verdict = compare(net, cut(net, consumed=torch.tensor([0, 1, 3, 5])), x)
    assert verdict.status == "wrong", verdict


def test_affine_of_other_channels_is_wrong() -> None:
    net = fill_distinct(conv_net(nn.BatchNorm2d(8))).eval()
    assert compare(net, cut(net, middle=torch.tensor([0, 1, 3, 5])), IMAGE).status == "wrong"


def test_reordered_channels_are_wrong_unless_everybody_agrees() -> None:
    net = fill_distinct(conv_net(nn.ReLU())).eval()
    assert compare(net, cut(net, consumed=KEEP.flip(0)), IMAGE).status == "wrong"
    assert compare(net, cut(net, KEEP.flip(0), KEEP.flip(0)), IMAGE).status == "exact"


def test_a_wrong_shape_inside_is_broken() -> None:
    net = fill_distinct(conv_net(nn.ReLU())).eval()
    verdict = compare(net, cut(net, consumed=KEEP[:3]), IMAGE)
    assert verdict.status == "broken"
    assert "forward" in verdict.detail


def test_a_cut_output_is_wrong() -> None:
    net = fill_distinct(nn.Sequential(nn.Linear(6, 8))).eval()
    small = copy.deepcopy(net)
    small[0].weight, small[0].bias = nn.Parameter(net[0].weight[KEEP]), nn.Parameter(net[0].bias[KEEP])
    assert compare(net, small, ROW).status == "wrong"


class Attention(nn.Module):
    """Two heads; the temperature is a number of its own."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out, self.scale = nn.Linear(8, 8), scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize(("scale", "status"), [(0.5, "exact"), (None, "wrong")])
def test_head_dim_cut_needs_the_old_temperature(scale: float | None, status: str) -> None:
    net = fill_distinct(Attention(scale)).eval()
    small, keep = copy.deepcopy(net), torch.tensor([0, 2, 5, 7])
    for layer in (small.q, small.k):
        layer.weight, layer.bias = nn.Parameter(layer.weight[keep]), nn.Parameter(layer.bias[keep])
    assert compare(net, small, torch.randn(2, 3, 8)).status == status


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_weight_norm(wrap: object) -> None:
    net = fill_distinct(nn.Sequential(wrap(nn.Linear(6, 8)), nn.ReLU(), wrap(nn.Linear(8, 3)))).eval()  # type: ignore[operator]
    small = copy.deepcopy(net) if wrap is nn.utils.parametrizations.weight_norm else None
    if small is None:
        small = nn.Sequential(wrap(nn.Linear(6, 8)), nn.ReLU(), wrap(nn.Linear(8, 3)))  # type: ignore[operator]
        small.load_state_dict(net.state_dict())
    for held in [module._parameters for module in small.modules()]:
        for name, tensor in list(held.items()):
            if tensor is not None and tensor.shape[0] == 8:
                held[name] = nn.Parameter(tensor.detach()[KEEP])
            elif tensor is not None and tensor.shape[-1] == 8:
                held[name] = nn.Parameter(tensor.detach()[:, KEEP])
    assert compare(net, small, ROW).status == "exact"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_network_whole_is_left_whole(kind: type[nn.Module]) -> None:
    net = fill_distinct(kind(6, 8, num_layers=2, bidirectional=True)).eval()
    verdict = compare(net, copy.deepcopy(net), torch.randn(5, 2, 6))
    assert verdict.status == "left whole"
    assert verdict.error == 0


def test_a_lost_tie_is_broken() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    small = copy.deepcopy(fill_distinct(net))
    small[1].weight = nn.Parameter(small[1].weight.detach().clone())
    assert compare(net, small, ROW).status == "broken"


def test_every_number_is_unique_and_tensors_in_lists_count() -> None:
    net = conv_net(nn.BatchNorm2d(8))
    net.cache = [torch.zeros(7), {"k": torch.zeros(3)}]
    fill_distinct(net)
    values = torch.cat([t.flatten() for _, t in tensors_of(net) if t.is_floating_point()])
    assert {"cache.0", "cache.1.k", "a.weight", "middle.running_var"} <= {name for name, _ in tensors_of(net)}
    assert len(values.unique()) == len(values)
    assert (net.middle.running_var > 0).all()


def prune_by_another_tool(model: nn.Module, inputs: object) -> nn.Module:
    head = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [head]}
    tp.pruner.BasePruner(model.eval(), inputs, **options).step()
    return model


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("groups 4", "exact"),
        ("squeeze and excite by linears", "exact"),
        ("convnext block", "exact"),
        ("cat with the input", "wrong"),
        ("shuffle between group convs", "wrong"),
        ("flatten after permute to NHWC", "wrong"),
        ("encoder layer", "wrong"),
        ("gqa by expand", "wrong"),
        ("c2f", "broken"),
        ("one-channel gate", "left whole"),
    ],
)
def test_another_tool_is_judged_as_its_users_found(name: str, status: str) -> None:
    torch.manual_seed(0)
    case = next(case for case in PATTERNS if case.id == name)
    verdict = judge(case.build(), case.inputs(), prune_by_another_tool)
    assert verdict.status == status, verdict.detail


def test_exceptions_of_the_pruner_are_verdicts() -> None:
    def fails(model: nn.Module, inputs: object) -> nn.Module:
        raise KeyError("layer")

    net = conv_net(nn.ReLU())
    assert judge(net, IMAGE, fails).status == "broken"
    refused = judge(net, IMAGE, fails, refusals=(KeyError,))
    assert (refused.status, refused.detail) == ("refused", "KeyError: 'layer'")
    assert judge(net, IMAGE, lambda model, _: model).status == "left whole"
    assert isinstance(refused, Verdict)
    assert math.isnan(refused.error)


def test_outputs_are_found_in_any_container() -> None:
    x = torch.ones(1)
    assert len(outputs_of({"a": (x, [x]), "b": x, "c": torch.ones(1, dtype=torch.int64), "d": None})) == 3
