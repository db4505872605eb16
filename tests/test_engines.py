"""torch-pruning as the second engine: the same graph where it is right, caught by the proof where it is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune as sp
from benchmarks.networks import NETWORKS, BasicBlock, DenseNet, InvertedResidual
from structprune.engines.probing import PrunerError, Unclear, probe
from structprune.engines.propagation import Handle, propagate
from tests.harness import flags
from tests.nets.case import Net, conv, image, row, tokens
from tests.oracle import judge

tp = pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Half = sp.Budget(channels=0.5)


def plain() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.Flatten(), nn.Linear(6 * 64, 5))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8), nn.Linear(8, 3))


def vgg() -> nn.Module:
    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [
            conv(c_in, c_out),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            conv(c_out, c_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    head = [nn.Flatten(), nn.Linear(12 * 4, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5)]
    return nn.Sequential(*block(3, 8), *block(8, 12), *head)


def ended(layers: Sequence[nn.Module], width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def residual() -> nn.Module:
    return ended([conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8, 8, 1), BasicBlock(8, 12, 2)], 12)


def inverted() -> nn.Module:
    blocks = [InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3)]
    return ended([conv(3, 8), nn.BatchNorm2d(8), nn.ReLU6(), *blocks], 12)


def densenet() -> nn.Module:
    return DenseNet((3, 2), growth=4, stem=8, num_classes=5)


def grouped() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.relu(net.norm(net.two(torch.relu(net.one(net.stem(x)))))).mean((2, 3)))

    parts = {"stem": conv(3, 16), "one": conv(16, 16, groups=16), "two": conv(16, 12, groups=4)}
    return Net(forward, **parts, norm=nn.GroupNorm(4, 12), head=nn.Linear(12, 5))


RIGHT: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain": (plain, image()),
    "mlp": (mlp, row(12)),
    "vgg": (vgg, image()),
    "residual": (residual, image()),
    "inverted residual": (inverted, image()),
    "densenet": (densenet, image(size=32)),
}
WHOLE = ("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn", "densenet201")


@pytest.fixture(
    scope="module", params=[*RIGHT, *(pytest.param(name, marks=pytest.mark.nightly) for name in WHOLE)]
)
def both(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, sp.DependencyGraph, sp.DependencyGraph]:
    torch.manual_seed(0)
    name = request.param
    build, inputs = (
        RIGHT[name] if name in RIGHT else (NETWORKS[name][0], image(size=224 if "vgg" in name else 64))
    )
    model, x = build(), inputs()
    return model, x, sp.trace(model, x), sp.trace(model, x, engine="torch-pruning")


def described(graph: sp.DependencyGraph) -> dict[str, Any]:
    """The free groups by name, with what they reach into and how."""
    return {
        group.name: (group.size, {(m.tensor, m.dim, m.role, tuple(m.index.tolist())) for m in group.members})
        for group in graph.groups
        if group.frozen is None
    }


def test_both_engines_give_the_same_groups(both: Any) -> None:
    _, _, ours, theirs = both
    assert described(theirs) == described(ours)


@pytest.mark.parametrize("quantity", ["macs", "params", "channels"])
def test_both_engines_give_the_same_prices(both: Any, quantity: str) -> None:
    _, _, ours, theirs = both
    free = {group.name for group in ours.groups if group.frozen is None}
    for share in (1.0, 0.5, 0.3):
        counts = [
            np.array([max(1, int(g.size * share)) if g.name in free else g.size for g in graph.groups])
            for graph in (ours, theirs)
        ]
        assert theirs.price(quantity, counts[1]) == ours.price(quantity, counts[0])


def test_both_engines_give_the_same_network(both: Any) -> None:
    model, x, ours, theirs = both
    one, other = [sp.select(graph, sp.score(model, graph), sp.Budget(macs=0.5)) for graph in (ours, theirs)]
    assert one.tensors == other.tensors
    small = sp.apply_plan(model, other)
    assert str(small) == str(sp.apply_plan(model, one))
    assert sp.verify(model, small, other, x).max_error < 1e-9


def test_grouped_convolutions_keep_the_same_positions_in_every_group() -> None:
    model, x = grouped(), image()()
    result = sp.prune(model, x, Half, engine="torch-pruning")
    assert result.model.one.groups == 8
    assert result.model.two.weight.shape[:2] == (4, 2)
    two = next(group for group in result.plan.groups if group.name == "two")
    assert (two.size, len(two.keep)) == (3, 1)  # of three channels in each of the four groups


# -- where torch-pruning is wrong -----------------------------------------------------------------------------------


def shuffle() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.one(torch.relu(net.stem(x)))
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return net.head(torch.relu(net.two(x))).mean((2, 3))

    groups = {"one": conv(16, 16, groups=4), "two": conv(16, 16, groups=4)}
    return Net(forward, stem=conv(3, 16), **groups, head=conv(16, 5))


def channels_last_flatten() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.relu(net.stem(x)).permute(0, 2, 3, 1).flatten(1))

    return Net(forward, stem=conv(3, 16), head=nn.Linear(16 * 64, 5))


def padded_shortcut() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = torch.relu(net.stem(x))
        y = net.two(torch.relu(net.one(x)))
        return net.head(torch.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))).mean((2, 3)))

    layers = {"stem": conv(3, 16), "one": conv(16, 32, stride=2), "two": conv(32, 32)}
    return Net(forward, **layers, head=nn.Linear(32, 5))


def concatenated_input() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cat([x, torch.relu(net.stem(x))], 1)).mean((2, 3))

    return Net(forward, stem=conv(3, 16), head=conv(19, 5))


WRONG = {
    "channel shuffle": shuffle,
    "flatten of channels last": channels_last_flatten,
    "padded shortcut": padded_shortcut,
    "concatenation with the input": concatenated_input,
}


@pytest.mark.parametrize("name", WRONG)
def test_the_proof_catches_what_torch_pruning_gets_wrong(name: str) -> None:
    torch.manual_seed(0)
    model, x = WRONG[name](), image()()
    before = model(x)
    with pytest.raises(
        sp.VerificationError, match=r"it (keeps|removes) position .*, which is the same channel"
    ):
        sp.prune(model, x, Half, engine="torch-pruning")
    assert torch.equal(model(x), before)
    ours = judge(model, x, lambda net, inputs: sp.prune(net, inputs, Half).model)
    assert ours.status == "exact"
    theirs = judge(
        model, x, lambda net, inputs: sp.prune(net, inputs, Half, engine="torch-pruning", verify=False).model
    )
    assert theirs.status in ("wrong", "broken"), "an independent judge finds the plan right"


def test_a_pruned_network_that_does_not_run_is_named() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.stem(x).view(-1, 16, 4).sum(-1))

    model = Net(forward, stem=nn.Linear(8, 64), head=nn.Linear(16, 3))
    with pytest.raises(sp.VerificationError):
        sp.prune(model, row(8)(), Half, engine="torch-pruning")


# -- torch-pruning's own answers are the standard -------------------------------------------------------------------


@pytest.mark.parametrize("build", [plain, vgg, residual, inverted, grouped], ids=lambda build: build.__name__)
def test_the_closure_is_that_of_its_groups(build: Callable[[], nn.Module]) -> None:
    """Every channel of every root, asked for alone, takes along what the closure says."""
    model, x = build().eval(), image()()
    graph = tp.DependencyGraph().build_dependency(model, x, verbose=False)
    roots = [module for module in graph.module2node if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = {
        m: Handle(graph.module2node[m], graph.get_pruner_of_module(m).prune_out_channels) for m in roots
    }
    channels = {module: graph.get_out_channels(module) for module in roots}
    reached = propagate([(handles[module], channels[module]) for module in roots], {})
    for module in roots:
        for channel in range(0, channels[module], 3):
            group = graph.get_pruning_group(module, handles[module].function, [channel])
            asked = {(Handle(dep.target, dep.handler), i) for dep, indices in group for i in indices}
            mine = reached.classes[handles[module]][channel]
            found = {
                (handle, int(i))
                for handle, classes in reached.classes.items()
                for i in reached.indices[handle][classes == mine]
            }
            assert found == asked


LAYERS: dict[str, tuple[Callable[[], nn.Module], bool, dict[tuple[str, int], int]]] = {
    "conv out": (lambda: nn.Conv2d(3, 8, 3), True, {("weight", 0): 8, ("bias", 0): 8}),
    "conv in": (lambda: nn.Conv2d(8, 3, 3), False, {("weight", 1): 8}),
    "transposed out": (lambda: nn.ConvTranspose2d(3, 8, 3), True, {("weight", 1): 8, ("bias", 0): 8}),
    "linear in": (lambda: nn.Linear(8, 3), False, {("weight", 1): 8}),
    "embedding": (lambda: nn.Embedding(5, 8), True, {("weight", 1): 8}),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2),
        True,
        {
            ("in_proj_weight", 0): 24,
            ("in_proj_weight", 1): 8,
            ("in_proj_bias", 0): 24,
            ("out_proj.weight", 0): 8,
            ("out_proj.weight", 1): 8,
            ("out_proj.bias", 0): 8,
        },
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_pruner_shows_what_it_cuts(name: str) -> None:
    build, out, expected = LAYERS[name]
    layer = build()
    pruner = tp.DependencyGraph().get_pruner_of_module(layer)
    function = pruner.prune_out_channels if out else pruner.prune_in_channels
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    cuts = probe(layer, function, np.arange(8))
    assert {place: len(channels) for place, channels in cuts.positions.items()} == expected
    for channels in cuts.positions.values():
        assert channels.tolist() == list(range(8)) * (len(channels) // 8)
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


# -- customised pruners ---------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A layer of the user's own: x -> x weight^T * gain, with an integer that its forward reads."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, c_in))
        self.gain = nn.Parameter(torch.rand(1, width) + 0.5)
        self.wide = width

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.matrix.t()
        assert y.shape[-1] == self.wide
        return y * self.gain


class ScaledPruner(tp.pruner.function.BasePruningFunc):
    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        keep = sorted(set(range(layer.wide)) - set(idxs))
        layer.matrix = nn.Parameter(layer.matrix.data[keep])
        layer.gain = nn.Parameter(layer.gain.data[:, keep])
        layer.wide -= len(idxs)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        keep = sorted(set(range(layer.matrix.shape[1])) - set(idxs))
        layer.matrix = nn.Parameter(layer.matrix.data[:, keep])
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return layer.wide

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.matrix.shape[1]


def customised() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), Scaled(12, 10), nn.ReLU(), nn.Linear(10, 3))


def options(**changed: Any) -> dict[str, Any]:
    return {
        "customized_pruners": {Scaled: ScaledPruner()},
        "root_module_types": [nn.Linear, Scaled],
        **changed,
    }


def test_a_customised_pruner_cuts_its_layer() -> None:
    torch.manual_seed(0)
    model, x = customised(), row(8)()
    model.train()
    model[0].weight.requires_grad_(False)
    before = flags(model)
    result = sp.prune(model, x, Half, engine="torch-pruning", engine_options=options())
    assert [p.shape for p in result.model[2].parameters()] == [(5, 6), (1, 5)]
    assert result.model[2].wide == 5
    assert model[2].wide == 10
    assert flags(model) == flags(result.model) == before
    assert result.plan.tensors == sp.prune(model, x, Half).plan.tensors


class Broken(ScaledPruner):
    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise KeyError("no such weight")


class Rescaling(ScaledPruner):
    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        layer = super().prune_out_channels(layer, idxs)
        layer.gain = nn.Parameter(layer.gain * 2)
        return layer


class Nearby(ScaledPruner):
    """Cuts, for many channels at once, other positions than for each of them: the first so many."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return super().prune_out_channels(layer, range(len(idxs)))


class Shrinking(ScaledPruner):
    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        wide = layer.wide
        layer = super().prune_out_channels(layer, idxs)
        layer.wide = max(layer.wide, wide // 2 + 1)
        return layer


def test_a_customised_pruner_that_fails_is_named_with_its_layer() -> None:
    given = options(customized_pruners={Scaled: Broken()})
    with pytest.raises(sp.TraceError, match="Broken fails on '2' with KeyError"):
        sp.trace(customised(), row(8)(), "torch-pruning", given)


@pytest.mark.parametrize(
    ("pruner", "words"),
    [
        (Rescaling, "does more to 'gain' than leaving out positions"),
        (Nearby, "is not what it removes for each"),
        (Shrinking, "does not lower wide by the same number"),
    ],
)
def test_a_customised_pruner_that_does_something_else_leaves_its_layer_whole(pruner: Any, words: str) -> None:
    graph = sp.trace(customised(), row(8)(), "torch-pruning", options(customized_pruners={Scaled: pruner()}))
    reasons = [
        str(group.frozen) for group in graph.groups if any(m.tensor == "2.gain" for m in group.members)
    ]
    reasons += [
        str(g.frozen) for g in graph.groups if any(m.tensor == "4.weight" and m.dim == 1 for m in g.members)
    ]
    assert any(words in reason for reason in reasons), reasons


# -- its other options ----------------------------------------------------------------------------------------------


def test_ignored_layers_stay_and_say_so() -> None:
    model, x = mlp(), row(12)()
    graph = sp.trace(model, x, "torch-pruning", {"ignored_layers": [model[0]]})
    assert {g.name: str(g.frozen) for g in graph.groups if g.size == 16} == {
        "0": "'0' is among the ignored layers"
    }
    assert [group.name for group in graph.groups if group.frozen is None] == ["3"]


def test_root_types_choose_the_layers() -> None:
    model, x = vgg(), image()()
    graph = sp.trace(model, x, "torch-pruning", {"root_module_types": [nn.Linear]})
    assert [group.name for group in graph.groups if group.frozen is None] == ["13"]
    assert {str(g.frozen) for g in graph.groups if g.name == "0"} == {"torch-pruning sees no channels here"}


class Gained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 3)
        self.gain = nn.Parameter(torch.rand(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x) * self.gain.view(-1))


@pytest.mark.parametrize("kind", [dict, list])
def test_bare_parameters_are_cut_in_the_dimension_given(kind: Any) -> None:
    model, x = Gained(), row(8)()
    given = {model.gain: 0} if kind is dict else [(model.gain, 0)]
    result = sp.prune(model, x, Half, engine="torch-pruning", engine_options={"unwrapped_parameters": given})
    assert result.model.gain.shape == (6, 1)
    assert (given == {model.gain: 0}) if kind is dict else len(given) == 1
    kept = sp.trace(
        model, x, "torch-pruning", {"unwrapped_parameters": given, "ignored_layers": [model.gain]}
    )
    assert not any(m.tensor == "gain" for g in kept.groups if g.frozen is None for m in g.members)


def test_heads_keep_the_same_positions() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.out(torch.relu(net.qkv(x)))

    model, x = Net(forward, qkv=nn.Linear(8, 12), out=nn.Linear(12, 3)), tokens(8)()
    graph = sp.trace(model, x, "torch-pruning", {"num_heads": {model.qkv: 3}})
    (group,) = [group for group in graph.groups if group.frozen is None]
    assert group.size == 4
    assert next(m for m in group.members if m.tensor == "qkv.bias").index.tolist() == [0, 1, 2, 3] * 3


def test_forward_and_outputs_can_be_told() -> None:
    def forward(net: Any, x: Tensor, flag: bool = False) -> dict[str, Any]:
        return {"logits": net.two(torch.relu(net.one(x))), "flag": flag}

    model, x = Net(forward, one=nn.Linear(8, 12), two=nn.Linear(12, 3)), row(8)()
    seen: list[Any] = []
    given = {
        "forward_fn": lambda net, inputs: seen.append(inputs) or net(x, flag=True),
        "output_transform": lambda out: seen.append(out["flag"]) or out["logits"],
    }
    graph = sp.trace(model, x, "torch-pruning", given)
    assert seen[1:] == [True]
    assert described(graph) == described(sp.trace(model, {"x": x}, "torch-pruning"))


def test_a_plan_of_this_engine_is_saved_and_loaded(tmp_path: Any) -> None:
    model, x = plain(), image()()
    result = sp.prune(model, x, sp.Budget(macs=0.5), engine="torch-pruning")
    sp.save(tmp_path / "small", result.model, result.plan)
    assert torch.equal(sp.load(tmp_path / "small", plain)(x), result.model(x))
    again = sp.prune(result.model, x, sp.Budget(macs=0.25), engine="torch-pruning")
    assert again.report.macs_after <= 0.25 * result.report.macs_before


# -- refusals -------------------------------------------------------------------------------------------------------


def test_wrong_options_are_refused() -> None:
    model, x = mlp(), row(12)()
    with pytest.raises(
        sp.InputError, match="unknown engine 'depgraph': use one of structprune, torch-pruning"
    ):
        sp.trace(model, x, engine="depgraph")
    with pytest.raises(sp.InputError, match="pass engine='torch-pruning'"):
        sp.trace(model, x, engine_options={"ignored_layers": []})
    with pytest.raises(sp.InputError, match="no 'round_to'; torch-pruning's graph takes customized_pruners"):
        sp.trace(model, x, "torch-pruning", {"round_to": 8})
    with pytest.raises(sp.InputError, match="names a Linear that is not part of the model"):
        sp.trace(model, x, "torch-pruning", {"ignored_layers": [nn.Linear(2, 2)]})
    with pytest.raises(sp.InputError, match="takes modules and parameters of the model, got 'head'"):
        sp.trace(model, x, "torch-pruning", {"ignored_layers": ["head"]})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(sp.InputError, match=r"pip install 'structprune\[torch-pruning\]'"):
        sp.trace(mlp(), row(12)(), "torch-pruning")
    assert sp.trace(mlp(), row(12)()).groups


def test_what_torch_pruning_cannot_trace_is_refused_with_its_reason() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.two(x.cumsum(1)[:, :8].sort().values.tile(1, 1)[None][0])

    model = Net(forward, two=nn.Linear(8, 3))
    given = {"forward_fn": lambda net, inputs: net.missing}
    with pytest.raises(
        sp.TraceError, match=r"torch-pruning cannot trace the model \(AttributeError.*missing"
    ):
        sp.trace(model, row(8)(), "torch-pruning", given)


def test_unclear_and_failing_pruners_are_told_apart() -> None:
    layer = Scaled(6, 8)
    with pytest.raises(Unclear, match="more to 'gain'"):
        probe(layer, Rescaling().prune_out_channels, np.arange(8))
    with pytest.raises(PrunerError, match="KeyError"):
        probe(layer, Broken().prune_out_channels, np.arange(8))
    assert layer.wide == 8
