"""Distillation compares the channels that stayed, its losses are the papers', and the teacher stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.errors import InputError, PlanError
from structprune.features import kept_features
from structprune.gathering import put, take
from structprune.train import Distillation, Hook, Run, finetune
from structprune.train.distillation import soft_cross_entropy


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.outer = nn.Conv2d(2 * width, width, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))


class Net(nn.Module):
    """A residual block, two branches joined, and a flattened head: 3 classes for images `[n, 1, 4, 4]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = Block(8)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)
        self.join = nn.Conv2d(10, 6, 3, padding=1)
        self.flat = nn.Flatten()
        self.head = nn.Sequential(nn.Linear(6 * 16, 12), nn.GELU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(self.join(torch.cat([self.left(x), self.right(x)], 1)))
        return self.head(self.flat(x))


LAYERS = (
    *("stem", "block.inner", "block.norm", "block.outer", "block", "left", "right", "join", "flat"),
    *("head.0", "head.1", "head"),
)


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval()


def images(count: int = 24) -> TensorDataset:
    drawn = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 1, 4, 4, generator=drawn), torch.arange(count) % 3)


def cut(model: nn.Module, share: float = 0.5) -> tuple[nn.Module, Any]:
    example = torch.zeros(2, 1, 4, 4, dtype=next(model.parameters()).dtype)
    result = sp.prune(model, example, sp.Budget(channels=share))
    return result.model, result.plan


def deaf(model: nn.Module, plan: sp.PruningPlan, example: Tensor) -> nn.Module:
    """The network with zeros wherever a layer reads what the plan removes."""
    graph, silenced = sp.trace(model, example), copy.deepcopy(model)
    tensors = dict(silenced.named_parameters())
    readers = {m.tensor for group in graph.groups for m in group.members if m.role == "in"}
    for name in readers & plan.tensors.keys():
        whole, index = tensors[name].data, plan.index(name)
        whole.copy_(put(torch.zeros_like(whole), index, take(whole, index)))
    return silenced


def features(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, out, layer=layer: found.__setitem__(layer, out.detach())
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


class TestKeptFeatures:
    def test_they_are_what_the_cut_network_computes(self) -> None:
        model = net().double()
        small, plan = cut(model, 0.5)
        x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
        kept = kept_features(model, [plan], x, LAYERS)
        wide, narrow = features(deaf(model, plan, x), x), features(small, x)
        for layer in LAYERS:
            torch.testing.assert_close(take(wide[layer], kept[layer][0]), narrow[layer], msg=layer)
        assert narrow["block"].shape[1] == 4
        assert narrow["flat"].shape[1] == 3 * 16
        assert kept["head"][0] == {}

    def test_two_plans_one_after_the_other(self) -> None:
        model = net()
        small, first = cut(model, 0.75)
        smaller, second = cut(small, 0.5)
        kept = kept_features(model, [first, second], torch.zeros(2, 1, 4, 4), ["stem"])["stem"]
        both = kept[0][1][kept[1][1]]
        assert len(both) == smaller.stem.weight.shape[0] == 4
        torch.testing.assert_close(model.stem.weight[both], smaller.stem.weight)

    def test_a_layer_that_runs_twice_and_is_cut_differently(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 2)
                self.act = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.act(self.second(self.act(self.first(x)))))

        model = Twice()
        plan = sp.trace(model, torch.zeros(1, 3)).plan({"first": [0, 1], "second": [2]})
        with pytest.raises(InputError, match="'act' runs 2 times"):
            kept_features(model, [plan], torch.zeros(1, 3), ["act"])
        kept = kept_features(model, [plan], torch.zeros(1, 3), ["second"])["second"]
        assert [at.tolist() for at in kept[0].values()] == [[2]]

    def test_a_plan_of_another_network_and_a_layer_that_does_not_run(self) -> None:
        model = net()
        small, plan = cut(model)
        with pytest.raises(PlanError):
            kept_features(small, [plan], torch.zeros(2, 1, 4, 4), ["stem"])
        with pytest.raises(InputError, match="no layer 'nowhere' returns a tensor"):
            kept_features(model, [plan], torch.zeros(2, 1, 4, 4), ["nowhere"])


class TestSoftCrossEntropy:
    def test_by_hand(self) -> None:
        student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 0.0]])
        p = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()  # temperature 2
        q = np.exp([0.5, 1.5]) / np.exp([0.5, 1.5]).sum()
        expected = 4 * (p * np.log(p / q)).sum()
        assert float(soft_cross_entropy(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)

    def test_a_high_temperature_matches_the_logits(self) -> None:
        """Hinton et al., equation 4: the gradient becomes (z - v) / classes, for logits of mean 0."""
        student = torch.tensor([[0.3, -0.5, 0.2], [1.0, -2.0, 1.0]], requires_grad=True)
        teacher = torch.tensor([[0.1, 0.4, -0.5], [0.0, 0.5, -0.5]])
        soft_cross_entropy(student, teacher, 300.0).backward()
        torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3 / 2, rtol=0.02, atol=1e-3)

    def test_classes_are_in_dim_1(self) -> None:
        student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
        flat = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
        torch.testing.assert_close(soft_cross_entropy(student, teacher, 3.0), soft_cross_entropy(*flat, 3.0))


class TestDistillation:
    def test_the_loss_is_the_weighted_sum(self) -> None:
        model = net()
        small, plan = cut(model)
        data = images(8)
        x, y = data.tensors
        hint = Distillation(
            model, temperature=3.0, weight=0.25, features=("stem", "block"), feature_weight=2.0, plan=plan
        )
        small.eval()
        own, wanted = features(small, x), features(model, x)
        kept = kept_features(model, [plan], x, ["stem", "block"])
        gaps = []
        for layer in ("stem", "block"):
            theirs = take(wanted[layer], kept[layer][0])
            gaps.append(float((own[layer] - theirs).square().sum() / theirs.square().sum()))
        with torch.no_grad():
            plain, soft = F.cross_entropy(small(x), y), soft_cross_entropy(small(x), model(x), 3.0)
        for module in small.modules():  # so that the training's forward is the one above
            module.train = lambda mode=True: None  # type: ignore[method-assign]
        log = finetune(small, data, epochs=1, lr=1e-9, batch_size=8, distillation=hint)
        expected = 0.75 * float(plain) + 0.25 * float(soft) + 2.0 * (gaps[0] + gaps[1]) / 2
        assert log[0]["loss"] == pytest.approx(expected, rel=1e-5)
        assert gaps[0] == 0.0  # the stem's own weights are whole: only channels were removed
        assert gaps[1] > 0.0

    def test_features_come_closer(self) -> None:
        model = net()
        small, plan = cut(model)
        hint = Distillation(model, weight=0.0, features=["block"], plan=plan)
        log = finetune(
            small,
            images(),
            epochs=15,
            lr=0.05,
            batch_size=8,
            loss=lambda output, target: 0 * output.sum(),
            distillation=hint,
        )
        assert log[-1]["loss"] < 0.5 * log[0]["loss"]

    def test_a_teacher_alone_takes_the_defaults(self) -> None:
        model = net()
        one, other = (cut(model)[0] for _ in range(2))
        finetune(one, images(), epochs=1, lr=0.1, distillation=model)
        finetune(other, images(), epochs=1, lr=0.1, hooks=[Distillation(model, temperature=4, weight=0.5)])
        assert torch.equal(one.stem.weight, other.stem.weight)

    def test_with_weight_0_it_changes_nothing(self) -> None:
        model = net()
        one, other = (cut(model)[0] for _ in range(2))
        finetune(one, images(), epochs=1, lr=0.1, distillation=Distillation(model, weight=0.0))
        finetune(other, images(), epochs=1, lr=0.1)
        assert torch.equal(one.stem.weight, other.stem.weight)

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_teacher_is_left_as_it_was(self, fails: bool) -> None:
        class Fail(Hook):
            def after_step(self, run: Run) -> None:
                if fails:
                    raise KeyError

        model = net().train()
        model.block.eval()
        small, plan = cut(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        hint = Distillation(model, features=["block"], plan=plan)
        try:
            finetune(small, images(), epochs=1, lr=0.1, distillation=hint, hooks=[Fail()])
        except KeyError:
            assert fails
        assert model.training
        assert not model.block.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert all(p.grad is None for p in model.parameters())
        for module in (*model.modules(), *small.modules()):
            assert not module._forward_hooks

    def test_outputs_of_another_form_need_a_comparison(self) -> None:
        class Wrapped(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"logits": self.inner(x)}

        def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
            return F.cross_entropy(output["logits"], target)

        def compare(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
            return F.mse_loss(student["logits"], teacher["logits"])

        small, teacher = Wrapped(net(1)), Wrapped(net())
        with pytest.raises(InputError, match="compare="):
            finetune(small, images(), epochs=1, lr=0.1, loss=loss, distillation=teacher)
        hint = Distillation(teacher, weight=1.0, compare=compare)
        log = finetune(small, images(), epochs=12, lr=0.05, loss=loss, batch_size=8, distillation=hint)
        assert log[-1]["loss"] < 0.5 * log[0]["loss"]

    def test_what_does_not_fit_is_named(self) -> None:
        model = net()
        small, plan = cut(model)
        before = copy.deepcopy(small.state_dict())

        def train(*args: Any, **kwargs: Any) -> None:
            finetune(small, images(), epochs=1, lr=0.1, distillation=Distillation(*args, **kwargs))

        with pytest.raises(
            InputError, match=r"layer 'block' gives \[24, 4, 4, 4\], in the teacher \[24, 8, 4, 4\]"
        ):
            train(model, features=["block"])
        with pytest.raises(InputError, match="no layer 'nowhere'"):
            train(model, features=["nowhere"], plan=plan)
        with pytest.raises(InputError, match="the teacher is the network that is trained"):
            train(small)
        with pytest.raises(InputError, match="its teacher"):
            train(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)))
        with pytest.raises(InputError, match=r"the teacher, a Linear, fails on .*\[24, 1, 4, 4\]"):
            train(nn.Linear(3, 3))
        with pytest.raises(InputError, match="the teacher has no layer 'stem'; its layers are 0, 1"):
            train(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), features=["stem"])
        with pytest.raises(InputError, match=r"of which \[24, 2, 4, 4\] stay; give plan="):
            train(model, features=["block"], plan=cut(model, 0.25)[1])
        with pytest.raises(PlanError, match=r"stem\.weight.*another model"):
            train(model, features=["block"], plan=[plan, plan])
        with pytest.raises(InputError, match=r"compare= failed on a tensor \[24, 3\]"):
            train(model, compare=lambda own, wanted: own @ wanted)
        with pytest.raises(InputError, match=r"compare= returns must be one number.*\[24, 3\]"):
            train(model, compare=lambda own, wanted: own - wanted)
        assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
        for wrong in ({"temperature": 0.0}, {"weight": 1.5}, {"feature_weight": -1.0}):
            with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
                Distillation(model, **wrong)


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (None, {}, r"Distillation\(teacher=None\): expected Module"),
        (nn.Linear(1, 1), {"plan": "x"}, r"Distillation\(plan='x'\): expected PruningPlan"),
        (nn.Linear(1, 1), {"temperature": "x"}, r"Distillation\(temperature='x'\): expected float"),
    ],
)
def test_arguments_of_other_types_are_named(teacher: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distillation(teacher, **options)
