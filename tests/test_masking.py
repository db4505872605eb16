"""The unstructured mode: which weights go, that they stay gone, and that nothing else moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from structprune.errors import InputError
from structprune.masking import finalize, nonzeros, sparsify, sparsity_report

WORKED_EXAMPLE = [[0.3, -0.8, 0.1], [-0.05, 0.9, -0.2]]


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data = torch.tensor(weight)
    return layer


def kept(layer: nn.Module) -> list[list[int]]:
    return (layer.weight != 0).int().tolist()  # type: ignore[union-attr]


def pair() -> nn.Sequential:
    """Small weights in the first layer, large ones in the second."""
    return nn.Sequential(linear([[0.1, 0.2], [0.3, 0.4]]), linear([[1.0, 2.0], [3.0, 4.0]]))


class TestWhichWeightsGo:
    def test_the_worked_example(self) -> None:
        assert kept(sparsify(linear(WORKED_EXAMPLE), 0.5)) == [[1, 1, 0], [0, 1, 0]]

    def test_l2_ranks_single_weights_as_l1_does(self) -> None:
        assert kept(sparsify(linear(WORKED_EXAMPLE), 0.5, criterion="l2")) == [[1, 1, 0], [0, 1, 0]]

    def test_threshold_removes_what_is_below_it_and_not_what_equals_it(self) -> None:
        layer = linear([[0.5, -0.25, 0.125], [-0.5, 0.25, 0.75]])
        assert kept(sparsify(layer, threshold=0.25)) == [[1, 1, 0], [1, 1, 1]]

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.7, 0.99])
    def test_equal_weights_never_over_prune_and_the_first_go_first(self, sparsity: float) -> None:
        layer = linear([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0], [1.0] * 4])
        removed = int(12 * sparsity + 1e-9)
        assert (sparsify(layer, sparsity).weight != 0).flatten().int().tolist() == [0] * removed + [1] * (
            12 - removed
        )

    def test_global_compares_all_layers_and_layer_each_with_itself(self) -> None:
        # Globally the four lowest of eight would be the whole first layer: three of eight leave 0.4.
        apart, together = sparsify(pair(), 0.5), sparsify(pair(), 0.375, scope="global")
        assert [kept(layer) for layer in apart] == [[[0, 0], [1, 1]], [[0, 0], [1, 1]]]
        assert [kept(layer) for layer in together] == [[[0, 0], [0, 1]], [[1, 1], [1, 1]]]

    def test_a_callable_is_given_the_weight_and_ranks_it(self) -> None:
        assert kept(sparsify(linear(WORKED_EXAMPLE), 0.5, criterion=lambda w: -w)) == [[0, 1, 0], [1, 0, 1]]

    def test_random_depends_on_the_seed_and_leaves_the_random_state_alone(self) -> None:
        layer, state = nn.Linear(16, 16), torch.get_rng_state()
        masks = [kept(sparsify(layer, 0.5, criterion="random", seed=seed)) for seed in (1, 1, 2)]
        assert masks[0] == masks[1] != masks[2]
        assert sum(map(sum, masks[0])) == 128
        assert torch.equal(state, torch.get_rng_state())

    def test_zero_weights_go_first_under_every_criterion(self) -> None:
        layer = linear([[0.0, 5.0], [3.0, 0.0]])
        for criterion in ("l1", "random", lambda w: -w.abs()):
            assert kept(sparsify(layer, 0.5, criterion=criterion)) == [[0, 1], [1, 0]]

    def test_more_than_sixteen_million_weights(self) -> None:
        layer = nn.Linear(4096, 4151, bias=False)  # 17,002,496 weights; torch.quantile stops at 2**24
        with torch.no_grad():
            layer.weight.copy_((torch.arange(layer.weight.numel()) % 5 + 1).view_as(layer.weight))
        sparsify(layer, 0.5, inplace=True)
        assert nonzeros(layer) == layer.weight.numel() // 2

    def test_half_precision_keeps_its_dtype(self) -> None:
        sparse = sparsify(linear(WORKED_EXAMPLE).bfloat16(), 0.5)
        assert sparse.weight.dtype == torch.bfloat16
        assert kept(sparse) == [[1, 1, 0], [0, 1, 0]]


class TestWhichTensors:
    def test_weights_of_contractions_but_no_norms_biases_embeddings_or_free_parameters(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.conv, self.norm = (
                    nn.Embedding(4, 4),
                    nn.Conv1d(4, 4, 3),
                    nn.LayerNorm((4, 4)),
                )
                self.attention, self.rnn, self.fc = nn.MultiheadAttention(4, 2), nn.GRU(4, 4), nn.Linear(4, 4)
                self.position = nn.Parameter(torch.ones(4, 4))

        masked = [t.name for t in sparsity_report(sparsify(Net(), 0.5)).tensors if t.masked]
        assert sorted(masked) == [
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "conv.weight",
            "fc.weight",
            "rnn.weight_hh_l0",
            "rnn.weight_ih_l0",
        ]

    @pytest.mark.parametrize("only", ["0", "0.weight", "[0]", ("0", "0.*"), "module"])
    def test_only_by_name_tensor_glob_or_module(self, only: str | tuple[str, ...]) -> None:
        net = pair()
        sparse = sparsify(net, 0.5, only=net[0] if only == "module" else only)
        assert [t.masked for t in sparsity_report(sparse).tensors] == [True, False]

    def test_only_and_keep_by_kind(self) -> None:
        net = nn.Sequential(nn.Conv1d(2, 2, 2), nn.Linear(4, 2))
        assert sparsity_report(sparsify(net, 0.5, only=nn.Conv1d)).tensors[0].masked
        assert sparsity_report(sparsify(net, 0.5, keep=(nn.Conv1d,))).tensors[0].masked is False

    def test_a_full_tensor_name_takes_any_parameter(self) -> None:
        norm = nn.Sequential(nn.LayerNorm(4))
        norm[0].weight.data = torch.tensor([4.0, 1.0, 3.0, 2.0])
        assert sparsify(norm, 0.5, only="0.weight")[0].weight.tolist() == [4.0, 0.0, 3.0, 0.0]

    def test_tied_weights_are_ranked_once_and_masked_in_both_layers(self) -> None:
        net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
        net[1].weight = net[0].weight
        sparse = sparsify(net, 0.5)
        net_out = sparse(torch.tensor([0, 1, 2]))
        net_out.sum().backward()
        assert nonzeros(sparse) == 3
        assert len(list(sparse.parameters())) == 1
        assert torch.equal(sparse[0].weight, sparse[1].weight)
        gradient = next(iter(sparse.parameters())).grad
        assert gradient is not None
        assert (gradient[sparse[0].weight == 0] == 0).all()
        plain = finalize(sparse)
        assert plain[0].weight is plain[1].weight


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(inputs) - 3).square().mean().backward()
        optimizer.step()


class TestMasksHold:
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
        ],
        ids=["sgd", "adamw"],
    )
    def test_steps_taken_before_the_mask_do_not_regrow_weights(self, make: object) -> None:
        model = linear(WORKED_EXAMPLE)
        optimizer = make(model.parameters())  # type: ignore[operator]
        train(model, optimizer)  # fills the momentum of every weight
        sparsify(model, 0.5, inplace=True)
        before = model.weight.detach().clone()
        train(model, optimizer)
        assert torch.equal(model.weight == 0, before == 0)
        assert int((before == 0).sum()) == 3
        assert (model.weight[before != 0] != before[before != 0]).all()

    def test_a_removed_weight_is_zero_even_behind_an_infinite_tensor(self) -> None:
        sparse = sparsify(linear(WORKED_EXAMPLE), 0.5)
        hidden = sparse.parametrizations.weight.original
        hidden.data[hidden == 0] = torch.inf
        assert sparse.weight[0, 2] == 0
        assert finalize(sparse).weight.isfinite().all()

    def test_masks_grow_to_an_absolute_target_whatever_was_trained_between(self) -> None:
        torch.manual_seed(0)
        model, gone = nn.Linear(3, 40), torch.zeros(40, 3, dtype=torch.bool)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for tenths in (1, 3, 6, 9):
            sparsify(model, tenths / 10, inplace=True, criterion="random", seed=tenths)
            train(model, optimizer)
            assert int((model.weight == 0).sum()) == 12 * tenths
            assert (model.weight[gone] == 0).all()
            gone = model.weight == 0

    def test_a_lower_target_changes_nothing(self) -> None:
        sparse = sparsify(pair(), 0.5, scope="layer")
        assert [kept(layer) for layer in sparsify(sparse, 0.25, scope="global")] == [
            kept(layer) for layer in sparse
        ]

    def test_baked_zeros_are_taken_up_again(self) -> None:
        half = finalize(sparsify(linear(WORKED_EXAMPLE), 0.5))
        assert kept(sparsify(half, 0.67, criterion="random")) != kept(half)
        assert nonzeros(sparsify(half, 0.67, criterion="random")) - 2 == 2  # 6 - 4 weights and 2 biases

    def test_recurrent_layers_compute_with_their_masks_and_can_be_copied(self) -> None:
        torch.manual_seed(0)
        rnn, inputs = nn.LSTM(3, 2), torch.randn(4, 1, 3)
        sparse = sparsify(rnn, 0.5)
        output = sparse(inputs)[0]
        output.sum().backward()
        plain = finalize(copy.deepcopy(sparse))
        assert torch.equal(plain(inputs)[0], output)
        assert not torch.equal(rnn(inputs)[0], output)
        original = sparse.parametrizations.weight_ih_l0.original
        assert (original.grad[sparse.weight_ih_l0 == 0] == 0).all()
        assert not plain._forward_hooks


class TestModelStaysAModel:
    def test_the_model_given_is_untouched_unless_asked(self) -> None:
        model = linear(WORKED_EXAMPLE)
        weight = model.weight
        sparsify(model, 0.5)
        assert model.weight is weight
        assert weight.tolist() == torch.tensor(WORKED_EXAMPLE).tolist()
        assert sparsify(model, 0.5, inplace=True) is model
        assert model.parametrizations.weight.original is weight

    def test_finalize_leaves_plain_tensors_of_the_same_values(self) -> None:
        sparse = sparsify(pair(), 0.5).eval()
        plain = finalize(sparse)
        inputs = torch.tensor([[1.0, -2.0]])
        assert torch.equal(plain(inputs), sparse(inputs))
        assert parametrize.is_parametrized(sparse[0])
        assert not any(parametrize.is_parametrized(module) for module in plain.modules())
        assert type(plain[0]) is nn.Linear
        assert isinstance(plain[0].weight, nn.Parameter)
        assert plain.state_dict().keys() == pair().state_dict().keys()
        assert not any(module.training for module in plain.modules())

    def test_finalize_in_place_keeps_the_parameter_objects(self) -> None:
        model = linear(WORKED_EXAMPLE)
        weight = model.weight
        finalize(sparsify(model, 0.5, inplace=True), inplace=True)
        assert model.weight is weight

    def test_flags_and_requires_grad_are_kept(self) -> None:
        model = pair().eval().requires_grad_(False)
        sparse = sparsify(model, 0.5)
        assert not any(module.training for module in sparse.modules())
        assert not any(parameter.requires_grad for parameter in sparse.parameters())

    def test_a_state_dict_carries_the_masks(self) -> None:
        sparse = sparsify(linear(WORKED_EXAMPLE), 0.5)
        other = sparsify(nn.Linear(3, 2), 0.0)
        other.load_state_dict(sparse.state_dict())
        assert torch.equal(other.weight, sparse.weight)
        other.parametrizations.weight.original.data += 1
        assert kept(other) == kept(sparse)

    def test_copies_have_masks_of_their_own(self) -> None:
        sparse = sparsify(pair(), 0.5)
        twin = copy.deepcopy(sparse)
        sparsify(twin, 0.75, inplace=True)
        assert (nonzeros(sparse), nonzeros(twin)) == (4 + 4, 2 + 4)  # and four biases

    def test_a_copy_may_be_masked_further_or_finalized_without_touching_the_first(self) -> None:
        rnn = sparsify(nn.GRU(2, 2), 0.5, only="weight_ih_l0")
        before = rnn.weight_hh_l0.clone()
        for change in (
            lambda twin: sparsify(twin, 0.5, inplace=True),
            lambda twin: finalize(twin, inplace=True),
        ):
            change(copy.deepcopy(rnn))
            assert torch.equal(rnn.weight_hh_l0, before)
            assert int((rnn.weight_ih_l0 == 0).sum()) == 6

    def test_the_report_counts(self) -> None:
        report = sparsity_report(sparsify(pair(), 0.25, scope="layer", keep="1"))
        assert (report.size, report.nonzeros, report.sparsity) == (8, 7, 0.125)
        assert "0.weight" in str(report)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({}, "exactly one"),
            ({"sparsity": 0.5, "threshold": 0.1}, "exactly one"),
            ({"sparsity": 1.0}, "below 1"),
            ({"sparsity": -0.1}, "at least 0"),
            ({"sparsity": float("nan")}, "at least 0"),
            ({"sparsity": "half"}, "expected float"),
            ({"threshold": -1.0}, "0 or more"),
            ({"threshold": 0.1, "criterion": "random"}, "no meaning"),
            ({"threshold": 9.0}, "would lose all 4 weights"),
            ({"sparsity": 0.5, "scope": "global"}, "would lose all 4 weights"),
            ({"sparsity": 0.5, "scope": "model"}, "scope='model'"),
            ({"sparsity": 0.5, "criterion": "l3"}, "criterion='l3'"),
            ({"sparsity": 0.5, "criterion": lambda w: w.sum()}, "shape"),
            ({"sparsity": 0.5, "criterion": lambda w: w / 0}, "not finite"),
            ({"sparsity": 0.5, "only": "fc*"}, "fc"),
            ({"sparsity": 0.5, "keep": "fc*"}, "fc"),
            ({"sparsity": 0.5, "keep": ("0", "1")}, "nothing to sparsify"),
            ({"sparsity": 0.5, "only": (3,)}, "got tuple of int"),
        ],
    )
    def test_bad_arguments_are_named_and_change_nothing(
        self, arguments: dict[str, object], says: str
    ) -> None:
        model = pair()
        with pytest.raises(InputError, match=says):
            sparsify(model, inplace=True, **arguments)  # type: ignore[arg-type]
        assert not any(parametrize.is_parametrized(module) for module in model)
        assert nonzeros(model) == 8 + 4

    def test_weights_that_are_not_finite(self) -> None:
        with pytest.raises(InputError, match="not finite"):
            sparsify(linear([[float("nan"), 1.0]]), 0.5)

    def test_weights_without_values(self) -> None:
        with pytest.raises(InputError, match="meta"):
            sparsify(nn.Linear(2, 2, device="meta"), 0.5)
        with pytest.raises(InputError, match="no values yet"):
            sparsify(nn.LazyLinear(2), 0.5)

    def test_another_parametrization_is_refused_or_kept(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
        with pytest.raises(InputError, match=r"1\.weight.*WeightNorm"):
            sparsify(model, 0.5)
        assert kept(sparsify(model, 0.5, keep="1")[1]) == [[1, 1], [1, 1]]

    def test_a_weight_computed_by_a_hook_is_refused_or_kept(self) -> None:
        hooked = prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5)
        model = nn.Sequential(nn.Linear(2, 2), hooked)
        for only in ((), "1"):
            with pytest.raises(InputError, match=r"1\.weight.*hook"):
                sparsify(model, 0.5, only=only)

    def test_a_parametrization_put_over_a_mask(self) -> None:
        class Twice(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return 2 * weight

        sparse = sparsify(linear(WORKED_EXAMPLE), 0.5)
        parametrize.register_parametrization(sparse, "weight", Twice())
        with pytest.raises(InputError, match="beside its mask"):
            finalize(sparse)
