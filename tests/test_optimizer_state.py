"""An optimiser that was cut along takes the step that the masked original takes, on what was kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

import structprune as sp
from structprune.errors import InputError
from structprune.gathering import removed, take
from structprune.train import cut_optimizer

Make = Callable[[Any], Optimizer]
Net = nn.Module

MAKERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    return net.double()


def grouped() -> nn.Module:
    """Each group of the second convolution keeps its own channels."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    return net.double()


INPUTS = {mlp: (16, 4), grouped: (16, 4, 3, 3)}


def batch(net: Callable[[], Net]) -> Tensor:
    return torch.randn(INPUTS[net], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def backward(output: Tensor) -> None:
    output.square().mean().backward()


def train(net: Net, optimizer: Optimizer, inputs: Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        backward(net(inputs))
        optimizer.step()


def masked_step(net: Net, optimizer: Optimizer, plan: sp.PruningPlan, inputs: Tensor) -> None:
    """One step of the whole network, in which everything that the plan removes reads as zero."""
    optimizer.zero_grad()
    masked = {name: p.masked_fill(removed(p, plan.index(name)), 0) for name, p in net.named_parameters()}
    backward(functional_call(net, masked, (inputs,)))
    optimizer.step()


@pytest.mark.parametrize("build", [mlp, grouped])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_next_step_is_the_masked_networks(build: Callable[[], Net], make: Make, inplace: bool) -> None:
    net, inputs = build(), batch(build)
    optimizer = make(net.parameters())
    train(net, optimizer, inputs)
    plan = sp.prune(net, inputs, sp.Budget(channels=0.5)).plan
    small = sp.apply_plan(net, plan)
    reference = copy.deepcopy(net)  # the whole one, which goes on with all of its memory
    whole = make(reference.parameters())
    whole.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    cut = cut_optimizer(optimizer, net, small, plan, inplace=inplace)
    assert (cut is optimizer) == inplace
    cut.zero_grad()
    backward(small(inputs))
    cut.step()
    masked_step(reference, whole, plan, inputs)
    wide = dict(reference.named_parameters())
    assert any(plan.index(name) for name in wide)
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter, take(wide[name], plan.index(name)), rtol=1e-12, atol=1e-14)
        if build is mlp and "0." in name:
            unmoved = take(dict(net.named_parameters())[name], plan.index(name))
            assert not torch.equal(parameter, unmoved)


def test_each_group_keeps_its_own_in_the_tested_network() -> None:
    plan = sp.prune(grouped(), batch(grouped), sp.Budget(channels=0.5)).plan
    assert any(array.ndim > 1 for name in plan.tensors for array in plan.index(name).values())


class TestWhatStays:
    def test_a_new_optimizer_has_the_options_and_counts_and_leaves_the_old_one(self) -> None:
        net, inputs = mlp(), batch(mlp)
        groups = [
            {"params": [net[0].weight, net[3].weight], "weight_decay": 0.5},
            {"params": [net[0].bias, net[5].weight], "lr": 0.25},
        ]
        optimizer = torch.optim.Adam(groups, lr=0.125)
        train(net, optimizer, inputs, steps=2)
        before = copy.deepcopy(optimizer.state_dict())
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        cut = cut_optimizer(optimizer, net, result.model, result.plan)
        assert [(g["lr"], g["weight_decay"]) for g in cut.param_groups] == [(0.125, 0.5), (0.25, 0)]
        small = result.model
        assert [[id(p) for p in g["params"]] for g in cut.param_groups] == [
            [id(small[0].weight), id(small[3].weight)],
            [id(small[0].bias), id(small[5].weight)],
        ]
        assert cut.state[small[0].bias]["step"] == 2
        torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
        assert cut.state[small[5].weight]["exp_avg"].shape == (3, 4)

    def test_a_plan_applied_in_place_and_a_scheduler_that_goes_on(self) -> None:
        net, inputs = mlp(), batch(mlp)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        train(net, optimizer, inputs, steps=1)
        before = dict(net.named_parameters())
        momentum = optimizer.state[net[5].weight]["momentum_buffer"].clone()
        plan = sp.prune(net, inputs, sp.Budget(channels=0.5), inplace=True).plan
        cut_optimizer(optimizer, before, net, plan, inplace=True)
        found = optimizer.state[net[5].weight]["momentum_buffer"]
        assert torch.equal(found, take(momentum, plan.index("5.weight")))
        assert {id(p) for p in optimizer.state} == {id(p) for p in net.parameters()}
        train(net, optimizer, inputs, steps=1)
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_parameters_of_others_and_tensors_that_are_not_trained(self) -> None:
        net, inputs = mlp(), batch(mlp)
        temperature = nn.Parameter(torch.ones(8, dtype=torch.float64))
        optimizer = torch.optim.Adam([net[0].weight, temperature], lr=0.1)
        optimizer.zero_grad()
        backward(net(inputs) * temperature.sum())
        optimizer.step()
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        cut = cut_optimizer(optimizer, net, result.model, result.plan)
        assert cut.param_groups[0]["params"][1] is temperature
        assert torch.equal(cut.state[temperature]["exp_avg"], optimizer.state[temperature]["exp_avg"])

    def test_an_optimizer_that_has_not_stepped(self) -> None:
        net, inputs = mlp(), batch(mlp)
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        cut = cut_optimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, result.model, result.plan)
        train(result.model, cut, inputs)
        assert not torch.equal(result.model[5].bias, net[5].bias)


class Factored(Optimizer):
    """Remembers the mean square of the gradient's rows and columns, as vectors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim == 2:
                    self.state[p] = {
                        "rows": p.grad.square().mean(1),
                        "columns": [p.grad.square().mean(0)],
                        "n": 1,
                    }


class TestFactored:
    def test_rows_and_columns_of_a_square_matrix_are_told_apart(self) -> None:
        net, inputs = mlp(), batch(mlp)
        optimizer = Factored(net.parameters())
        train(net, optimizer, inputs, steps=1)
        keep = [0, 1, 5, 6]
        graph = sp.trace(net, inputs)
        plan = graph.plan({"3": keep})  # the rows of the 8 x 8 matrix, all of its columns
        small = sp.apply_plan(net, plan)
        cut = cut_optimizer(optimizer, net, small, plan)
        old, new = optimizer.state[net[3].weight], cut.state[small[3].weight]
        assert torch.equal(new["rows"], old["rows"][keep])
        assert torch.equal(new["columns"][0], old["columns"][0])
        last = cut.state[small[5].weight]
        assert torch.equal(last["columns"][0], optimizer.state[net[5].weight]["columns"][0][keep])
        assert last["n"] == 1

    def test_adafactor_goes_on(self) -> None:
        net, inputs = mlp(), batch(mlp)
        optimizer = torch.optim.Adafactor(net.parameters(), lr=0.01)
        train(net, optimizer, inputs)
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        cut = cut_optimizer(optimizer, net, result.model, result.plan)
        rows = optimizer.state[net[3].weight]["row_var"]
        assert torch.equal(
            cut.state[result.model[3].weight]["row_var"], rows[list(result.plan.tensors["3.weight"][0])]
        )
        train(result.model, cut, inputs)

    def test_rows_that_each_group_chooses_are_refused(self) -> None:
        class Columns(Factored):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                for p in self.param_groups[0]["params"]:
                    if p.ndim == 4:
                        self.state[p] = {"columns": p.grad.square().mean((0, 2, 3))}

        net, inputs = grouped(), batch(grouped)
        optimizer = Columns(net.parameters())
        train(net, optimizer, inputs, steps=1)
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        with pytest.raises(InputError, match=r"2\.weight', 'columns', holds rows or columns.*ragged=False"):
            cut_optimizer(optimizer, net, result.model, result.plan)


class TestRefusals:
    def test_state_whose_shape_says_nothing(self) -> None:
        net, inputs = mlp(), batch(mlp)
        optimizer = torch.optim.LBFGS(net.parameters())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = net(inputs).square().mean()
            loss.backward()
            return loss  # type: ignore[no-any-return]

        optimizer.step(closure)
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        with pytest.raises(InputError, match="make a new optimizer"):
            cut_optimizer(optimizer, net, result.model, result.plan)

    def test_an_optimizer_of_another_network_or_after_the_cut(self) -> None:
        net, inputs = mlp(), batch(mlp)
        result = sp.prune(net, inputs, sp.Budget(channels=0.5))
        with pytest.raises(InputError, match="no parameter of the network before the cut"):
            cut_optimizer(torch.optim.SGD(mlp().parameters()), net, result.model, result.plan)
        optimizer = torch.optim.SGD(net.parameters())
        with pytest.raises(InputError, match="as it was before this plan"):
            cut_optimizer(optimizer, result.model, result.model, result.plan)
        with pytest.raises(InputError, match="as it was before this plan"):
            cut_optimizer(optimizer, {}, result.model, result.plan)
