from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from hand_plans import hand_plan
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from structprune.errors import PlanError
from structprune.plan import AttributeEdit, PruningPlan
from structprune.surgery import apply_plan
from structprune.tensors import aliases, fingerprint, named_tensors


def mlp() -> nn.Sequential:
    """Linear(2, 3), ReLU, Linear(3, 1) with weights that show where they came from."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        model[0].bias.copy_(torch.tensor([10.0, 20.0, 30.0]))
        model[2].weight.copy_(torch.tensor([[7.0, 8.0, 9.0]]))
        model[2].bias.zero_()
    return model


MLP_CUT = {"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)}, "2.weight": {1: (0, 2)}}
MODES = pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def assert_same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = named_tensors(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


# The cut itself


@MODES
def test_the_kept_channels_and_no_others(inplace: bool) -> None:
    small = apply_plan(mlp(), hand_plan(mlp(), MLP_CUT), inplace)
    assert isinstance(small, nn.Sequential)
    assert small[0].weight.tolist() == [[1, 2], [5, 6]]
    assert small[0].bias.tolist() == [10, 30]
    assert small[2].weight.tolist() == [[7, 9]]
    assert (small[0].out_features, small[2].in_features) == (2, 2)


def test_two_dims_of_one_tensor() -> None:
    model = nn.Linear(4, 3, bias=False)
    model.weight.data = torch.arange(12.0).view(3, 4)
    small = apply_plan(model, hand_plan(model, {"weight": {0: (0, 2), 1: (1, 3)}}))
    assert small.get_parameter("weight").tolist() == [[1, 3], [9, 11]]


def test_original_is_untouched_and_shares_nothing() -> None:
    model = mlp().train()
    model[2].eval()
    before, printed = state(model), str(model)
    objects = {name: id(tensor) for name, tensor in named_tensors(model).items()}
    small = apply_plan(model, hand_plan(model, MLP_CUT))
    for tensor in small.parameters():
        tensor.data.zero_()
    assert_same_state(model, before)
    assert str(model) == printed
    assert {name: id(tensor) for name, tensor in named_tensors(model).items()} == objects
    assert [module.training for module in small.modules()] == [m.training for m in model.modules()]


def test_inplace_returns_the_model_itself() -> None:
    model = mlp()
    assert apply_plan(model, hand_plan(model, MLP_CUT), inplace=True) is model


@MODES
def test_pruned_network_trains_while_an_old_loss_is_alive(inplace: bool) -> None:
    model = mlp()
    loss = model(torch.ones(4, 2)).sum()
    loss.backward()
    small = apply_plan(model, hand_plan(model, MLP_CUT), inplace)
    small(torch.ones(4, 2)).sum().backward()
    assert small.get_parameter("0.weight").grad.shape == (2, 2)  # type: ignore[union-attr]
    assert loss.requires_grad


@MODES
def test_flags_classes_and_attributes_of_tensors(inplace: bool) -> None:
    class Tagged(nn.Parameter):
        pass

    model = mlp().double()
    model[0].weight = Tagged(model[0].weight.data, requires_grad=False)
    model[0].weight.tag = "first"
    small = apply_plan(model, hand_plan(model, MLP_CUT), inplace)
    weight = small.get_parameter("0.weight")
    assert (type(weight), weight.requires_grad, weight.dtype) == (Tagged, False, torch.float64)
    assert weight.tag == "first"  # type: ignore[attr-defined]
    assert small.get_parameter("2.weight").requires_grad
    assert type(small.get_parameter("2.weight")) is nn.Parameter


def test_channels_last_stays_channels_last() -> None:
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    small = apply_plan(model, hand_plan(model, {"weight": {0: (0, 3), 1: (0, 1, 3)}, "bias": {0: (0, 3)}}))
    weight = small.get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, model.weight[[0, 3]][:, [0, 1, 3]])


def test_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    small = apply_plan(model, hand_plan(model, MLP_CUT))
    assert small.get_parameter("0.weight").is_meta
    assert small.get_parameter("0.weight").shape == (2, 2)


# Tensors in all places


class Places(nn.Module):
    """Tensors as parameter, buffer, cache, attribute, in a list, a tuple, a dict and an object; one tied."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))
        self.tied = self.weight
        self.register_buffer("steady", torch.arange(4.0) + 10)
        self.register_buffer("passing", torch.arange(4.0) + 20, persistent=False)
        self.table = torch.arange(4.0) + 30
        self.cache = [torch.arange(4.0) + 40, self.weight]
        self.pair = (torch.arange(4.0) + 50, 7)
        self.by_name = {"k": torch.arange(4.0) + 60}
        self.holder = types.SimpleNamespace(inner=torch.arange(4.0) + 70)


PLACES = ["weight", "steady", "passing", "table", "cache.0", "pair.0", "by_name.k", "holder.inner"]


def test_every_tensor_has_one_name() -> None:
    assert list(named_tensors(Places())) == PLACES
    known = aliases(Places())
    assert known["tied"] == known["cache.1"] == known["weight"] == "weight"


def test_aliases_name_shared_modules_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model.append(model[0])
    assert list(named_tensors(model)) == ["0.weight"]
    assert aliases(model) == {"0.weight": "0.weight", "1.weight": "0.weight"}


@MODES
def test_tensors_in_all_places_are_cut_and_ties_hold(inplace: bool) -> None:
    model = Places()
    small: Any = apply_plan(model, hand_plan(model, {name: {0: (1, 3)} for name in PLACES}), inplace)
    found = {name: tensor.tolist() for name, tensor in named_tensors(small).items()}
    assert found == {name: [10.0 * i + 1, 10.0 * i + 3] for i, name in enumerate(PLACES)}
    assert small.tied is small.weight
    assert small.cache[1] is small.weight
    assert small.pair[1] == 7
    assert "passing" not in small.state_dict()


def test_places_of_the_original_stay() -> None:
    model = Places()
    before = state(model)
    apply_plan(model, hand_plan(model, {name: {0: (1, 3)} for name in PLACES}))
    assert_same_state(model, before)


@MODES
def test_modules_that_share_a_weight_still_do(inplace: bool) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    small: Any = apply_plan(model, hand_plan(model, {"embed.weight": {1: (0, 3)}}), inplace)
    assert small["head"].weight is small["embed"].weight
    assert (small["embed"].embedding_dim, small["head"].in_features) == (2, 2)


def test_weights_tied_by_memory_still_are() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight.data = model[0].weight.data
    small: Any = apply_plan(model, hand_plan(model, {f"{i}.weight": {1: (0, 2)} for i in range(2)}))
    assert small[0].weight is not small[1].weight
    small[0].weight.data.zero_()
    assert small[1].weight.abs().sum() == 0
    assert model[0].weight.abs().sum() > 0


# Layers tell the truth afterwards

LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[int, tuple[int, ...]]], dict[str, Any]]] = {
    "conv": (
        lambda: nn.Conv2d(4, 6, 3),
        {"weight": {0: (0, 1, 2), 1: (1, 3)}, "bias": {0: (0, 1, 2)}},
        {"out_channels": 3, "in_channels": 2},
    ),
    "grouped conv, two of four inputs of each group": (
        lambda: nn.Conv1d(8, 6, 3, groups=2),
        {"weight": {1: (0, 3)}},
        {"out_channels": 6, "in_channels": 4},
    ),
    "transposed conv": (
        lambda: nn.ConvTranspose2d(4, 6, 2),
        {"weight": {0: (0, 1, 2), 1: (1, 3)}, "bias": {0: (1, 3)}},
        {"out_channels": 2, "in_channels": 3},
    ),
    "linear": (lambda: nn.Linear(5, 4), {"weight": {1: (0, 4)}}, {"out_features": 4, "in_features": 2}),
    "bilinear": (
        lambda: nn.Bilinear(3, 4, 5),
        {"weight": {0: (0,), 1: (0, 1), 2: (1, 2, 3)}, "bias": {0: (0,)}},
        {"out_features": 1, "in1_features": 2, "in2_features": 3},
    ),
    "batch norm": (
        lambda: nn.BatchNorm2d(4),
        {name: {0: (0, 3)} for name in ("weight", "bias", "running_mean", "running_var")},
        {"num_features": 2},
    ),
    "batch norm without affine": (
        lambda: nn.BatchNorm1d(4, affine=False),
        {name: {0: (0, 3)} for name in ("running_mean", "running_var")},
        {"num_features": 2},
    ),
    "layer norm": (
        lambda: nn.LayerNorm((2, 4)),
        {name: {1: (0, 3)} for name in ("weight", "bias")},
        {"normalized_shape": (2, 2)},
    ),
    "rms norm": (lambda: nn.RMSNorm(4), {"weight": {0: (0, 3)}}, {"normalized_shape": (2,)}),
    "group norm": (
        lambda: nn.GroupNorm(2, 8),
        {name: {0: (0, 1, 4, 5)} for name in ("weight", "bias")},
        {"num_channels": 4, "num_groups": 2},
    ),
    "embedding": (
        lambda: nn.Embedding(7, 4),
        {"weight": {1: (0, 3)}},
        {"num_embeddings": 7, "embedding_dim": 2},
    ),
    "prelu": (lambda: nn.PReLU(4), {"weight": {0: (1,)}}, {"num_parameters": 1}),
    "lstm": (
        lambda: nn.LSTM(3, 4),
        {
            "weight_ih_l0": {0: (0, 2, 4, 6, 8, 10, 12, 14), 1: (0, 1)},
            "weight_hh_l0": {0: (0, 2, 4, 6, 8, 10, 12, 14), 1: (0, 2)},
            "bias_ih_l0": {0: (0, 2, 4, 6, 8, 10, 12, 14)},
            "bias_hh_l0": {0: (0, 2, 4, 6, 8, 10, 12, 14)},
        },
        {"input_size": 2, "hidden_size": 2},
    ),
    "gru cell": (
        lambda: nn.GRUCell(3, 2),
        {
            "weight_ih": {0: (0, 2, 4)},
            "weight_hh": {0: (0, 2, 4), 1: (0,)},
            "bias_ih": {0: (0, 2, 4)},
            "bias_hh": {0: (0, 2, 4)},
        },
        {"input_size": 3, "hidden_size": 1},
    ),
    "attention, keys of other width": (
        lambda: nn.MultiheadAttention(4, 2, kdim=6, vdim=3),
        {"k_proj_weight": {1: (0, 1)}},
        {"embed_dim": 4, "kdim": 2, "vdim": 3, "num_heads": 2, "head_dim": 2},
    ),
}


@MODES
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
def test_sizes_of_layers_are_true(case: Any, inplace: bool) -> None:
    build, cut, sizes = case
    small = apply_plan(build(), hand_plan(build(), cut), inplace)
    assert {name: getattr(small, name) for name in sizes} == sizes


@MODES
def test_cut_lstm_runs(inplace: bool) -> None:
    build, cut, _ = LAYERS["lstm"]
    small = apply_plan(build(), hand_plan(build(), cut), inplace)
    assert small(torch.ones(5, 1, 2))[0].shape == (5, 1, 2)


@MODES
def test_depthwise_conv_with_its_edit(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    plan = hand_plan(
        model, {"0.weight": {0: (1, 2)}, "0.bias": {0: (1, 2)}}, [AttributeEdit("0", ("groups",), 4, 2)]
    )
    small: Any = apply_plan(model, plan, inplace)
    assert (small[0].groups, small[0].in_channels, small[0].out_channels) == (2, 2, 2)
    assert small(torch.ones(1, 2, 3, 3)).shape == (1, 2, 1, 1)


def test_an_attribute_that_means_something_else_is_left_alone() -> None:
    class Odd(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.out_features = 99

    small: Any = apply_plan(Odd(), hand_plan(Odd(), {"weight": {0: (0, 1), 1: (0,)}, "bias": {0: (0, 1)}}))
    assert (small.out_features, small.in_features) == (99, 1)


# Attribute edits


@dataclasses.dataclass(frozen=True)
class Sizes:
    heads: int = 4


class Named(NamedTuple):
    width: int
    depth: int


class Reader(nn.Module):
    shared: ClassVar = {"width": 4}
    classwide = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))
        self.shape = (4, 9)
        self.sizes = [1, [4]]
        self.by_name = {"heads": 4, 2: 4}
        self.config = types.SimpleNamespace(heads=4, inner=Sizes())
        self.named = Named(4, 2)


EDITS: list[tuple[tuple[str | int, ...], Callable[[Any], object], object]] = [
    (("shape", 0), lambda m: m.shape, (2, 9)),
    (("sizes", 1, 0), lambda m: m.sizes, [1, [2]]),
    (("by_name", "heads"), lambda m: m.by_name, {"heads": 2, 2: 4}),
    (("by_name", 2), lambda m: m.by_name, {"heads": 4, 2: 2}),
    (("config", "heads"), lambda m: m.config.heads, 2),
    (("config", "inner", "heads"), lambda m: m.config.inner, Sizes(2)),
    (("named", 0), lambda m: m.named, Named(2, 2)),
    (("named", "width"), lambda m: m.named, Named(2, 2)),
    (("shared", "width"), lambda m: m.shared, {"width": 2}),
    (("classwide",), lambda m: m.classwide, 2),
]


@MODES
@pytest.mark.parametrize(
    ("path", "look", "expected"), EDITS, ids=[".".join(map(str, edit[0])) for edit in EDITS]
)
def test_edit_reaches_its_place(
    path: tuple[str | int, ...], look: Callable[[Any], object], expected: object, inplace: bool
) -> None:
    model = Reader()
    before = copy.deepcopy(look(model))
    small = apply_plan(
        model, hand_plan(model, {"weight": {0: (0, 1)}}, [AttributeEdit("", path, 4, 2)]), inplace
    )
    assert look(small) == expected
    assert type(look(small)) is type(expected)
    assert inplace or look(model) == before
    assert Reader.shared == {"width": 4}
    assert Reader.classwide == 4


@MODES
@pytest.mark.parametrize("edit", EDITS, ids=[".".join(map(str, edit[0])) for edit in EDITS])
def test_failure_midway_changes_nothing(edit: Any, inplace: bool) -> None:
    """The last edit cannot be made: the tensor of its layer says otherwise."""
    path, look, _ = edit
    model = nn.Sequential(Reader(), nn.Linear(3, 2), weight_norm(nn.Linear(2, 2)))
    before, seen, printed = state(model), copy.deepcopy(look(model[0])), str(model)
    weights = model[2].weight.detach().clone()
    plan = hand_plan(
        model,
        {"0.weight": {0: (0, 1)}, "1.weight": {0: (0,)}, "1.bias": {0: (0,)}, "2.weight_v": {1: (1,)}},
        [AttributeEdit("0", path, 4, 2), AttributeEdit("1", ("in_features",), 3, 2)],
    )
    with pytest.raises(PlanError, match=r"in_features 3 -> 2.*make it 3"):
        apply_plan(model, plan, inplace)
    assert_same_state(model, before)
    assert look(model[0]) == seen
    assert str(model) == printed
    assert torch.equal(model[2].weight, weights)
    assert (set(vars(model[0])) & {"shared", "classwide"}) == set()


@MODES
def test_read_only_place_is_a_plan_error_and_changes_nothing(inplace: bool) -> None:
    class Fixed(Reader):
        @property
        def double(self) -> int:
            return 8

    model = Fixed()
    before = state(model)
    edits = [AttributeEdit("", ("shape", 0), 4, 2), AttributeEdit("", ("double",), 8, 4)]
    with pytest.raises(PlanError, match="do not fit together"):
        apply_plan(model, hand_plan(model, {"weight": {0: (0,)}}, edits), inplace)
    assert_same_state(model, before)
    assert model.shape == (4, 9)


def test_config_shared_by_layers_is_edited_once_for_all() -> None:
    model = nn.Sequential(Reader(), Reader())
    model[1].config = model[0].config
    edits = [AttributeEdit(str(i), ("config", "heads"), 4, 2) for i in range(2)]
    small: Any = apply_plan(model, hand_plan(model, {"0.weight": {0: (0,)}}, edits))
    assert small[0].config is small[1].config
    assert (small[0].config.heads, model[0].config.heads) == (2, 4)


def test_object_that_does_not_copy_is_refused_before_the_original_changes() -> None:
    class Single:
        heads = 4

        def __init__(self) -> None:
            self.heads = 4

        def __deepcopy__(self, memo: object) -> Single:
            return self

    model = Reader()
    model.config = Single()  # type: ignore[assignment]
    plan = hand_plan(model, {"weight": {0: (0,)}}, [AttributeEdit("", ("config", "heads"), 4, 2)])
    with pytest.raises(PlanError, match="shares this object with the original"):
        apply_plan(model, plan)
    assert model.config.heads == 4


def test_class_as_config_is_refused() -> None:
    model = Reader()
    model.config = type("Config", (), {"heads": 4})  # type: ignore[assignment]
    plan = hand_plan(model, {"weight": {0: (0,)}}, [AttributeEdit("", ("config", "heads"), 4, 2)])
    with pytest.raises(PlanError, match="all models share"):
        apply_plan(model, plan, inplace=True)


# Checks before the first write


def changed(plan: PruningPlan, **fields: Any) -> PruningPlan:
    return dataclasses.replace(plan, **fields)


OTHERS: dict[str, tuple[Callable[[PruningPlan], PruningPlan], str]] = {
    "fingerprint": (lambda p: changed(p, fingerprint="0" * 64), "fingerprint"),
    "tensor name": (
        lambda p: changed(p, tensors={"7.weight": {0: (0,)}}, shapes={"7.weight": (3, 2)}),
        r"tensor '7\.weight'.*not in the model",
    ),
    "tensor shape": (
        lambda p: changed(p, tensors={"0.bias": {0: (0, 3)}}, shapes={"0.bias": (4,)}),
        r"tensor '0\.bias' has shape \[3\].*\[4\]",
    ),
    "attribute name": (
        lambda p: changed(p, attributes=(AttributeEdit("0", ("nope",), 3, 2),)),
        "0: nope 3 -> 2",
    ),
    "attribute layer": (lambda p: changed(p, attributes=(AttributeEdit("9", ("x",), 3, 2),)), "9: x 3 -> 2"),
    "attribute value": (
        lambda p: changed(p, attributes=(AttributeEdit("0", ("out_features",), 5, 2),)),
        "the model has '3' there",
    ),
    "attribute kind": (
        lambda p: changed(p, attributes=(AttributeEdit("0", ("training",), 1, 2),)),
        "the model has 'True' there",
    ),
}


@MODES
@pytest.mark.parametrize(("spoil", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_plan_of_another_model_changes_nothing(
    spoil: Callable[[PruningPlan], PruningPlan], message: str, inplace: bool
) -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(PlanError, match=message):
        apply_plan(model, spoil(hand_plan(model, MLP_CUT)), inplace)
    assert_same_state(model, before)


def test_a_plan_is_applied_once_and_a_second_prune_has_its_own() -> None:
    plan = hand_plan(mlp(), MLP_CUT)
    small = apply_plan(mlp(), plan)
    with pytest.raises(PlanError, match="another model"):
        apply_plan(small, plan)
    smaller: Any = apply_plan(
        small, hand_plan(small, {"0.weight": {0: (1,)}, "0.bias": {0: (1,)}, "2.weight": {1: (1,)}})
    )
    assert (smaller[0].weight.tolist(), smaller[2].weight.tolist()) == ([[5, 6]], [[9]])


def test_fingerprint_is_of_names_and_shapes() -> None:
    assert fingerprint(mlp()) == fingerprint(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).half()
    )
    assert fingerprint(mlp()) != fingerprint(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
    assert fingerprint(mlp()) != fingerprint(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    grown = mlp()
    grown.register_buffer("cache", torch.ones(3), persistent=False)
    assert fingerprint(grown) == fingerprint(mlp())


def test_lazy_layer_says_what_to_do() -> None:
    with pytest.raises(PlanError, match="run the model once"):
        fingerprint(nn.LazyLinear(3))


# Parametrized and hooked layers


@MODES
def test_torch_parametrization(inplace: bool) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 4, 1)), nn.Conv1d(4, 3, 1))
    chain = "0.parametrizations.weight.original"
    assert {f"{chain}0", f"{chain}1"} <= set(named_tensors(model))
    expected = model[0].weight[[1, 3]].detach().clone()
    keep = (1, 3)
    cut = {f"{chain}0": {0: keep}, f"{chain}1": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}}
    small: Any = apply_plan(model, hand_plan(model, cut), inplace)
    assert torch.equal(small[0].weight, expected)
    assert parametrize.is_parametrized(small[0], "weight")
    assert (small[0].out_channels, small[1].in_channels) == (2, 2)


def test_spectral_norm_parametrization_does_not_learn_from_the_cut() -> None:
    model = parametrizations.spectral_norm(nn.Linear(3, 4)).train()
    before = state(model)
    cut = {
        "parametrizations.weight.original": {0: (0, 1)},
        "bias": {0: (0, 1)},
        "parametrizations.weight.0._u": {0: (0, 1)},
    }
    small: Any = apply_plan(model, hand_plan(model, cut))
    assert_same_state(model, before)
    assert torch.equal(small.parametrizations.weight[0]._u, before["parametrizations.weight.0._u"][:2])
    assert small.out_features == 2
    assert all(module.training for module in small.modules())


@MODES
def test_hook_weight_norm(inplace: bool) -> None:
    model = nn.Sequential(weight_norm(nn.Linear(2, 4)))
    expected = model[0].weight.detach()[[0, 3]].clone()
    cut = {name: {0: (0, 3)} for name in ("0.weight_g", "0.weight_v", "0.bias")}
    assert set(named_tensors(model)) == set(cut)
    small: Any = apply_plan(model, hand_plan(model, cut), inplace)
    assert torch.allclose(small[0].weight, expected)
    assert small[0].out_features == 2
    assert torch.allclose(small(torch.eye(2)).T - small[0].bias[:, None], expected)
    small(torch.ones(1, 2)).sum().backward()
    assert small[0].weight_v.grad.shape == (2, 2)


def test_hook_spectral_norm_does_not_learn_from_the_cut() -> None:
    model = spectral_norm(nn.Linear(3, 4)).train()
    before = state(model)
    small: Any = apply_plan(
        model, hand_plan(model, {name: {0: (0, 1)} for name in ("weight_orig", "bias", "weight_u")})
    )
    assert_same_state(model, before)
    assert torch.equal(small.weight_u, before["weight_u"][:2])
    assert (small.weight.shape, small.out_features) == ((2, 3), 2)


def test_hook_prune_mask_stays_a_mask() -> None:
    model = prune.l1_unstructured(nn.Linear(2, 4), "weight", amount=3)
    expected = model.weight.detach()[[0, 3]].clone()
    small: Any = apply_plan(
        model, hand_plan(model, {n: {0: (0, 3)} for n in ("weight_orig", "weight_mask", "bias")})
    )
    assert torch.equal(small.weight, expected)
    assert prune.is_pruned(small)


# Models that code makes


@MODES
def test_graph_module(inplace: bool) -> None:
    model = torch.fx.symbolic_trace(mlp())
    small = apply_plan(model, hand_plan(model, MLP_CUT), inplace)
    assert isinstance(small, torch.fx.GraphModule)
    assert small(torch.ones(1, 2)).item() == (1 + 2 + 10) * 7 + (5 + 6 + 30) * 9


# Hooks, closures, and what cannot be copied


class Counting(nn.Module):
    """A network whose hooks lead back into it, in the three ways hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.calls: list[str] = []
        self.body.register_forward_hook(self.note)
        body = self.body

        def closed(module: nn.Module, inputs: Any) -> None:
            assert module is body, "the hook looks at another model"

        def by_default(module: nn.Module, inputs: Any, output: Any, layer: nn.Module = self.body[0]) -> Any:
            return output * layer.out_features

        self.body.register_forward_pre_hook(closed)
        self.body[2].register_forward_hook(by_default)
        self.run = lambda x: self.body(x)

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls.append(type(module).__name__)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def test_hooks_of_the_copy_lead_into_the_copy() -> None:
    model = Counting()
    small: Any = apply_plan(model, hand_plan(model, {f"body.{name}": dims for name, dims in MLP_CUT.items()}))
    # relu([1 + 2 + 10, 5 + 6 + 30]) . [7, 9] = 91 + 369 = 460, times out_features = 2
    assert small(torch.ones(1, 2)).item() == 920
    assert (small.calls, model.calls) == (["Sequential"], [])


def test_hooks_stay_in_place() -> None:
    model = Counting()
    plan = hand_plan(model, {f"body.{name}": dims for name, dims in MLP_CUT.items()})
    assert apply_plan(model, plan, inplace=True)(torch.ones(1, 2)).item() == 920


def test_computed_tensor_in_an_attribute_can_be_copied() -> None:
    model = mlp()
    model.last = model(torch.ones(1, 2))  # type: ignore[assignment]
    small: Any = apply_plan(model, hand_plan(model, MLP_CUT))
    assert torch.equal(small.last, model.last)
    assert not small.last.requires_grad


def test_model_that_cannot_be_copied_says_so_and_can_be_cut_in_place() -> None:
    model = mlp()
    model.stream = (number for number in range(3))  # type: ignore[assignment]
    with pytest.raises(PlanError, match="inplace=True"):
        apply_plan(model, hand_plan(model, MLP_CUT))
    assert apply_plan(model, hand_plan(model, MLP_CUT), inplace=True)(torch.ones(1, 2)).shape == (1, 1)
