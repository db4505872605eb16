"""Cutting in steps: the targets are the formulas', the steps those of doing it by hand, and a run can stop anywhere."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import structprune as sp
from structprune.archive import write_archive
from structprune.errors import BudgetError, InputError, StorageError
from structprune.train import (
    Cubic,
    Distillation,
    EarlyStopping,
    GradualResult,
    GradualStep,
    GroupLasso,
    Hook,
    Iterative,
    OneShot,
    Run,
    Schedule,
    TrainOptions,
    cut_optimizer,
    finetune,
    prune_gradually,
    sparsify_gradually,
)
from structprune.train.gradual.floor import Floor
from structprune.train.gradual.rounds import learning_rates
from structprune.train.gradual.schedules import step_budgets
from structprune.train.optimizers import build_optimizer
from tests.toy_runtime import EXAMPLE as TOY_EXAMPLE
from tests.toy_runtime import WASTE, kernels
from tests.toy_runtime import mlp as toy_mlp

EXAMPLE = torch.zeros(1, 4, dtype=torch.float64)
OPTIONS = TrainOptions(epochs=2, lr=0.05, batch_size=16, seed=3)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)
        ).double()


def points() -> TensorDataset:
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] > x[:, 1]).long())


def arguments(options: TrainOptions) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in fields(options)}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def asked(result: GradualResult, quantity: str = "macs") -> list[float]:
    return [step.asked[quantity] for step in result.steps]


def measured(values: list[float]) -> Callable[[nn.Module, Any], float]:
    """A metric that gives these values, one after the other."""
    given: Iterator[float] = iter(values)
    return lambda model, data: next(given)


class TestTargets:
    def test_cubic_is_the_papers_formula(self) -> None:
        # s_t = 0.75 - 0.75 (1 - t/5)^3, of which 1 - s_t stays
        removed = [
            0.75 - 0.75 * 0.8**3,
            0.75 - 0.75 * 0.6**3,
            0.75 - 0.75 * 0.4**3,
            0.75 - 0.75 * 0.2**3,
            0.75,
        ]
        assert Cubic(5).shares(1.0, 0.25) == pytest.approx([1 - s for s in removed], abs=1e-15)
        assert Cubic(2).shares(0.5, 0.3) == pytest.approx([0.3 + 0.2 / 8, 0.3], abs=1e-15)

    def test_iterative_removes_a_part_of_what_is_left_or_of_the_original(self) -> None:
        assert Iterative().shares(1.0, 0.85) == pytest.approx((0.9, 0.85))
        assert Iterative(0.5).shares(1.0, 0.25) == (0.5, 0.25)  # no empty step where the parts fit
        assert Iterative(0.1).shares(1.0, 0.9**3) == pytest.approx((0.9, 0.81, 0.729))
        assert Iterative(steps=3).shares(0.8, 0.1) == pytest.approx((0.4, 0.2, 0.1))
        assert Iterative(steps=4, of="original").shares(1.0, 0.2) == pytest.approx((0.8, 0.6, 0.4, 0.2))
        assert Iterative(0.3, of="original").shares(1.0, 0.1) == pytest.approx((0.7, 0.4, 0.1))

    @pytest.mark.parametrize("schedule", [OneShot(), Iterative(), Iterative(steps=3), Cubic(4)])
    def test_what_is_met_already_is_one_step(self, schedule: Schedule) -> None:
        assert schedule.shares(0.4, 0.5) == (0.5,)

    def test_several_quantities_each_go_from_where_they_are(self) -> None:
        budgets = step_budgets(Cubic(2), sp.Budget(macs=0.25, params=0.6), {"params": 0.8})
        assert [str(limit) for limit in budgets[0].limits] == ["params=0.625", "macs=0.34375"]
        assert budgets[1] == sp.Budget(macs=0.25, params=0.6)
        uneven = step_budgets(Iterative(0.5), sp.Budget(macs=0.25, params=0.5), {})
        assert [(each.macs, each.params) for each in uneven] == [(0.5, 0.5), (0.25, 0.5)]

    def test_figures_go_from_what_was_measured(self) -> None:
        slow = step_budgets(Iterative(steps=2), sp.Budget(latency_ms=2.0), {"latency_ms": 8.0})
        assert [each.latency_ms for each in slow] == pytest.approx([4.0, 2.0])
        fast = step_budgets(Iterative(steps=2), sp.Budget(throughput=400.0), {"throughput": 100.0})
        assert [each.throughput for each in fast] == pytest.approx([200.0, 400.0])

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Iterative(0.1, steps=2),
            lambda: Iterative(0.0),
            lambda: Iterative(1.0),
            lambda: Iterative(steps=0),
            lambda: Cubic(0),
            lambda: Cubic(2.0),
            lambda: Iterative(0.1, of="all"),
        ],
    )
    def test_schedules_that_are_none(self, make: Callable[[], Schedule]) -> None:
        with pytest.raises(InputError, match=r"Iterative|Cubic"):
            make()


class TestRun:
    def test_the_steps_are_those_of_doing_it_by_hand(self) -> None:
        model, data = net(), points()
        result = prune_gradually(
            model, EXAMPLE, sp.Budget(macs=0.25), data, OPTIONS, schedule=Iterative(steps=2)
        )
        half = sp.prune(model, EXAMPLE, sp.Budget(macs=0.5))
        log = finetune(half.model, data, **arguments(OPTIONS))
        quarter = sp.prune(half.model, EXAMPLE, sp.Budget(macs=0.25))
        finetune(quarter.model, data, **{**arguments(OPTIONS), "seed": 4})
        assert asked(result) == pytest.approx([0.5, 0.25])
        assert same(result.model, quarter.model)
        assert result.plans == (half.plan, quarter.plan)
        assert list(result.steps[0].history) == log
        assert result.reached

    def test_targets_are_of_the_original_also_of_a_network_that_was_cut_before(self) -> None:
        whole = sp.count_macs(net(), EXAMPLE)
        before = sp.prune(net(), EXAMPLE, sp.Budget(macs=0.6)).model
        result = prune_gradually(before, EXAMPLE, sp.Budget(macs=0.2), points(), OPTIONS, schedule=Cubic(2))
        start = sp.count_macs(before, EXAMPLE) / whole
        assert asked(result) == pytest.approx([0.2 + (start - 0.2) / 8, 0.2])
        assert sp.count_macs(result.model, EXAMPLE) / whole == pytest.approx(
            result.steps[1].remaining["macs"]
        )
        for step in result.steps:
            assert 0.8 * step.asked["macs"] < step.remaining["macs"] <= step.asked["macs"]

    def test_the_model_the_random_state_and_the_flags_stay(self) -> None:
        model = net().train()
        model[1].eval()
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        prune_gradually(
            model, EXAMPLE, sp.Budget(macs=0.5), points(), OPTIONS, schedule=Cubic(2), validation=points()
        )
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert [module.training for module in model] == [True, False, True, True, True]
        assert torch.equal(torch.get_rng_state(), random)

    def test_in_place_the_model_becomes_the_result(self) -> None:
        model, other = net(), net()
        result = prune_gradually(
            model, EXAMPLE, sp.Budget(macs=0.5), points(), OPTIONS, schedule=Iterative(steps=2), inplace=True
        )
        copied = prune_gradually(
            other, EXAMPLE, sp.Budget(macs=0.5), points(), OPTIONS, schedule=Iterative(steps=2)
        )
        assert result.model is model
        assert same(model, copied.model)

    def test_what_comes_out_is_saved_with_its_plans(self, tmp_path: Path) -> None:
        result = prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.4), points(), OPTIONS, schedule=Cubic(3))
        sp.save(tmp_path, result.model, result.plans)
        assert len(sp.load_plans(tmp_path)) == 3
        assert same(sp.load(tmp_path, net), result.model)

    def test_modules_to_keep_and_calibration_hold_in_every_step(self) -> None:
        model = net()
        result = prune_gradually(
            model,
            EXAMPLE,
            sp.Budget(params=0.5),
            points(),
            OPTIONS,
            schedule=Iterative(steps=2),
            criterion="wanda",
            calibration=iter([points().tensors[0]]),  # read in both steps
            pruning={"keep": model[4]},
        )
        assert result.model[2].out_features == 16
        assert result.model[0].out_features < 13

    def test_each_step_draws_its_own_order(self) -> None:
        seen: list[Tensor] = []

        class First(Hook):
            def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
                if run.step == 0:
                    seen.append(inputs.clone())

        once = TrainOptions(epochs=1, lr=0.05, batch_size=16, seed=3)
        prune_gradually(
            net(), EXAMPLE, sp.Budget(macs=0.4), points(), once, schedule=Iterative(steps=2), hooks=First()
        )
        assert len(seen) == 2
        assert not torch.equal(*seen)

    def test_a_budget_out_of_reach_and_options_that_are_said_twice(self) -> None:
        with pytest.raises(BudgetError, match="cannot be met"):
            prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.001), points(), OPTIONS, schedule=OneShot())
        for wrong, text in (
            ({"training": {"lr": 0.1}}, "say it in options"),
            ({"pruning": {"inplace": True}}, "inplace"),
            ({"pruning": {"rewrite": True}}, "rewrite"),
            ({"pruning": {"only_": "0"}}, "only_.*did you mean 'only'"),
            ({"pruning": {"criterion": "l1"}}, "criterion"),
            ({"training": {"foo": 1}}, "foo.*no option of finetune.* takes "),
            ({"final_epochs": 0}, "final_epochs"),
            ({"rewind": 1}, "at least the 2 epochs"),
            ({"rewind": 9, "schedule": Cubic(2)}, "trains on"),
            ({"floor": 0.5}, "validation="),
            ({"validation": points(), "max_drop": -0.1}, "max_drop"),
        ):
            with pytest.raises(InputError, match=text):
                prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.5), points(), OPTIONS, **wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("budget", "asked"),
        [(sp.Budget(params=1e-4), "params=0.0001"), (sp.Budget(macs=1e-3, latency=0.5), "macs=0.001")],
    )
    def test_a_target_that_no_steps_lead_to_is_named_before_any_training(
        self, budget: sp.Budget, asked: str
    ) -> None:
        rates = Rates()
        with pytest.raises(BudgetError, match=asked):
            prune_gradually(net(), EXAMPLE, budget, points(), OPTIONS, hooks=rates)
        assert not rates.seen

    def test_steps_go_further_than_the_bound_of_each(self) -> None:
        bound = {"max_pruned": 0.3}
        with pytest.raises(BudgetError):
            sp.prune(net(), EXAMPLE, sp.Budget(macs=0.3), **bound)  # type: ignore[arg-type]
        result = prune_gradually(
            *(net(), EXAMPLE, sp.Budget(macs=0.3), points(), TrainOptions(epochs=1, lr=0.05)),
            schedule=Iterative(0.3),
            pruning=bound,
        )
        assert result.reached
        assert result.steps[-1].remaining["macs"] <= 0.3

    def test_latency_goes_down_in_shares_of_the_networks_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STRUCTPRUNE_CACHE", str(tmp_path))
        model = toy_mlp()
        x = torch.randn(32, 32)
        data = TensorDataset(x, torch.arange(32) % 16)
        once = TrainOptions(epochs=1, lr=0.01)
        budget = sp.Budget(latency=0.6, runtime="toy")
        result = prune_gradually(model, TOY_EXAMPLE, budget, data, once, schedule=Iterative(steps=2))
        assert asked(result, "latency") == pytest.approx([math.sqrt(0.6), 0.6])
        whole, small = (WASTE + sum(kernel.ms for kernel in kernels(each)) for each in (model, result.model))
        assert 0.57 < small / whole <= 0.6
        assert result.steps[1].remaining["latency"] == pytest.approx(small / whole)


@dataclass(frozen=True)
class Nothing(Schedule):
    """Steps that remove nothing."""

    steps: int
    trains_on = True

    def shares(self, start: float, target: float) -> tuple[float, ...]:
        return (1.0,) * self.steps


class Rates(Hook):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
        self.seen.append(run.lr)


def cosine(lr: float, steps: int) -> list[float]:
    return [lr * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


class TestTraining:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_a_training_that_goes_on_is_one_training(self, optimizer: str) -> None:
        data = points()
        whole = TrainOptions(6, 0.05, batch_size=len(data), optimizer=optimizer)
        part = TrainOptions(2, 0.05, batch_size=len(data), optimizer=optimizer)
        reference = net()
        finetune(reference, data, **arguments(whole))
        results = [
            prune_gradually(
                net(), EXAMPLE, sp.Budget(channels=1.0), data, part, schedule=Nothing(3), carry=carry
            ).model
            for carry in (None, False)
        ]
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(results[0].state_dict()[name], tensor, rtol=1e-9, atol=1e-11)
        assert (results[1][0].weight - reference[0].weight).abs().max() > 1e-4

    def test_momentum_goes_through_the_cut(self) -> None:
        data = points()
        options = TrainOptions(2, 0.05, batch_size=len(data), schedule="constant")
        result = prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.4), data, options, schedule=Cubic(2))

        def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
                optimizer.step()

        first = sp.prune(net(), EXAMPLE, sp.Budget(macs=0.4 + 0.6 / 8)).model
        optimizer = build_optimizer(first, options)
        train(first, optimizer)
        second = sp.prune(first, EXAMPLE, sp.Budget(macs=0.4))
        cut = cut_optimizer(optimizer, first, second.model, second.plan)
        train(second.model, cut)
        for name, tensor in second.model.state_dict().items():
            torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)

    def test_penalties_are_made_for_the_network_of_each_step(self) -> None:
        traced: list[int] = []

        def penalties(model: nn.Module) -> list[Hook]:
            traced.append(sp.count_params(model))
            return [GroupLasso(sp.trace(model, EXAMPLE), 1e-3)]

        result = prune_gradually(
            net(),
            EXAMPLE,
            sp.Budget(macs=0.4),
            points(),
            OPTIONS,
            schedule=Iterative(steps=2),
            hooks=penalties,
        )
        assert len(traced) == 2
        assert traced[0] > traced[1] == sp.count_params(result.model)

    def test_features_of_the_dense_network_and_an_early_end_in_each_step(self) -> None:
        hint = Distillation(net(), features=["0", "2"])
        options = TrainOptions(epochs=9, lr=0.4, batch_size=16, seed=3)
        budgets = [sp.Budget(macs=math.sqrt(0.3)), sp.Budget(macs=0.3)]
        result = prune_gradually(
            net(),
            EXAMPLE,
            budgets[1],
            points(),
            options,
            schedule=Iterative(steps=2),
            training={"distillation": hint},
            hooks=[EarlyStopping(1, metric="loss")],
        )
        model, plans = net(), list[sp.PruningPlan]()
        for number, budget in enumerate(budgets):
            cut = sp.prune(model, EXAMPLE, budget)
            model, plans = cut.model, [*plans, cut.plan]
            hooks = [
                Distillation(net(), features=["0", "2"], plan=plans),
                EarlyStopping(1, metric="loss"),
            ]
            own = arguments(dataclasses.replace(options, seed=3 + number))
            log = finetune(model, points(), hooks=hooks, **own)
            assert list(result.steps[number].history) == log
        assert same(result.model, model)
        assert any(len(step.history) < 9 for step in result.steps)

    def test_one_schedule_over_all_steps_with_more_epochs_at_the_end(self) -> None:
        rates = Rates()
        prune_gradually(
            net(),
            EXAMPLE,
            sp.Budget(macs=0.5),
            points(),
            OPTIONS,
            schedule=Cubic(2),
            final_epochs=4,
            hooks=[rates],
        )
        assert rates.seen == pytest.approx(cosine(0.05, 6 * 3))  # 48 points in batches of 16

    def test_rewinding_repeats_the_last_epochs_of_the_original_training(self) -> None:
        rates = Rates()
        result = prune_gradually(
            net(),
            EXAMPLE,
            sp.Budget(macs=0.4),
            points(),
            OPTIONS,
            schedule=Iterative(steps=2),
            rewind=10,
            hooks=[rates],
        )
        last = cosine(0.05, 10 * 3)[-2 * 3 :]
        assert rates.seen == pytest.approx([*last, *last])
        assert [entry["lr"] for entry in result.steps[1].history] == pytest.approx([last[0], last[3]])

    def test_without_either_each_step_has_the_whole_schedule(self) -> None:
        rates = Rates()
        prune_gradually(
            net(), EXAMPLE, sp.Budget(macs=0.4), points(), OPTIONS, schedule=Iterative(steps=2), hooks=[rates]
        )
        assert rates.seen == pytest.approx(cosine(0.05, 2 * 3) * 2)

    @pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
    def test_learning_rates_are_those_of_the_training(self, schedule: str) -> None:
        rates, options = Rates(), TrainOptions(epochs=2, lr=0.1, batch_size=16, schedule=schedule)
        finetune(net(), points(), hooks=[rates], **arguments(options))
        assert rates.seen == learning_rates(options, 6)


class TestFloor:
    def run(self, values: list[float], **options: Any) -> GradualResult:
        return prune_gradually(
            net(),
            EXAMPLE,
            sp.Budget(macs=0.25),
            points(),
            TrainOptions(epochs=1, lr=0.05),
            schedule=Iterative(0.5),
            validation=points(),
            metric=measured(values),
            **options,
        )

    def test_the_last_that_met_it_is_handed_back(self) -> None:
        result = self.run([0.9, 0.4, 0.88, 0.3, 0.8], floor=0.85)
        assert [(step.metric_cut, step.metric, step.met) for step in result.steps] == [
            (0.4, 0.88, True),
            (0.3, 0.8, False),
        ]
        first = prune_gradually(
            net(), EXAMPLE, sp.Budget(macs=0.5), points(), TrainOptions(epochs=1, lr=0.05), schedule=OneShot()
        )
        assert same(result.model, first.model)
        assert (len(result.plans), result.reached) == (1, False)
        assert "0.8000 after training, below the floor" in str(result)
        assert "stopped at the floor of 0.8500: this is the network of step 1" in str(result)

    def test_a_drop_is_from_the_network_given(self) -> None:
        assert self.run([0.9, 0.1, 0.87, 0.1, 0.86], max_drop=0.05).reached
        assert not self.run([0.9, 0.1, 0.87, 0.1, 0.84], max_drop=0.05).reached
        assert not self.run([0.9, 0.1, 0.86], max_drop=0.05, floor=0.87).reached

    def test_where_no_step_meets_it_the_network_comes_back_uncut(self) -> None:
        result = self.run([0.9, 0.4, 0.5], floor=0.85)
        assert same(result.model, net())
        assert (result.plans, result.reached, len(result.steps)) == ((), False, 1)
        assert "as it was given, uncut" in str(result)

    def test_a_metric_that_is_no_number_does_not_meet_it(self) -> None:
        assert not self.run([0.9, 0.4, math.nan], floor=0.85).reached

    @pytest.mark.parametrize("asked", [{"max_drop": 0.1}, {"floor": 0.5}])
    def test_a_network_given_whose_metric_is_no_number_is_refused(self, asked: dict[str, float]) -> None:
        with pytest.raises(InputError, match="measures nan before any cut"):
            self.run([math.nan], **asked)

    def test_a_floor_that_the_network_given_does_not_reach(self) -> None:
        with pytest.raises(InputError, match=r"measures 0\.9000 before any cut"):
            self.run([0.9], floor=0.95)


class Interrupted(Exception):
    pass


class TestCheckpoint:
    @pytest.mark.parametrize(("optimizer", "stop"), [("sgd", 1), ("adamw", 2), ("sgd", 3)])
    def test_an_interrupted_run_goes_on_to_the_same_result(
        self, tmp_path: Path, optimizer: str, stop: int
    ) -> None:
        options = TrainOptions(epochs=1, lr=0.05, batch_size=16, optimizer=optimizer, seed=3)

        def go(**more: Any) -> GradualResult:
            return prune_gradually(
                net(),
                EXAMPLE,
                sp.Budget(macs=0.3),
                points(),
                options,
                schedule=Cubic(3),
                validation=points(),
                **more,
            )

        def interrupt(step: GradualStep) -> None:
            if step.number == stop:
                raise Interrupted

        file = tmp_path / "run.safetensors"
        with pytest.raises(Interrupted):
            go(checkpoint=file, progress=interrupt)
        numbers: list[int] = []
        again = go(checkpoint=file, progress=lambda step: numbers.append(step.number))
        whole = go()
        assert numbers == list(range(stop + 1, 4))
        assert same(again.model, whole.model)
        assert (again.steps, again.plans) == (whole.steps, whole.plans)
        assert same(go(checkpoint=file).model, whole.model)

    def test_masks_and_their_momentum_come_back(self, tmp_path: Path) -> None:
        def interrupt(step: GradualStep) -> None:
            raise Interrupted

        file = tmp_path / "run.safetensors"
        with pytest.raises(Interrupted):
            sparsify_gradually(
                net(), 0.8, points(), OPTIONS, schedule=Cubic(2), checkpoint=file, progress=interrupt
            )
        again = sparsify_gradually(net(), 0.8, points(), OPTIONS, schedule=Cubic(2), checkpoint=file)
        assert same(again.model, sparsify_gradually(net(), 0.8, points(), OPTIONS, schedule=Cubic(2)).model)

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "run.safetensors"
        sizes = {"schedule": Iterative(steps=2), "checkpoint": file}
        prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.5), points(), OPTIONS, **sizes)  # type: ignore[arg-type]
        with pytest.raises(StorageError, match="another cut"):
            prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.4), points(), OPTIONS, **sizes)  # type: ignore[arg-type]
        other = TrainOptions(epochs=2, lr=0.1)
        with pytest.raises(StorageError, match="another training"):
            prune_gradually(net(), EXAMPLE, sp.Budget(macs=0.5), points(), other, **sizes)  # type: ignore[arg-type]

    def test_what_differs_is_said(self, tmp_path: Path) -> None:
        file = tmp_path / "run.safetensors"
        other, fewer = net(), TensorDataset(*points()[:40])
        with torch.no_grad():
            other[0].weight[3, 2] += 1e-6

        def go(model: nn.Module, data: TensorDataset, floor: float = 0.1, **more: Any) -> GradualResult:
            return prune_gradually(
                model,
                EXAMPLE,
                sp.Budget(macs=0.5),
                data,
                OPTIONS,
                schedule=OneShot(),
                validation=points(),
                floor=floor,
                checkpoint=file,
                **more,
            )

        first = go(net(), points())
        assert same(go(net(), points()).model, first.model)
        with pytest.raises(StorageError, match="another network's weights"):
            go(other, points())
        with pytest.raises(StorageError, match="number of examples: train_data 48, and 40 here; delete it"):
            go(net(), fewer)
        with pytest.raises(StorageError, match=r"another floor: floor 0\.1, and 0\.2 here"):
            go(net(), points(), floor=0.2)
        with pytest.raises(StorageError, match="another cut: multiple_of None, and 4 here"):
            go(net(), points(), pruning={"multiple_of": 4})

    @pytest.mark.parametrize("function", [False, True])
    def test_other_hooks_are_refused(self, tmp_path: Path, function: bool) -> None:
        file, once = tmp_path / "run", TrainOptions(epochs=1, lr=0.05)

        def go(strength: float, patience: int, *more: Hook) -> GradualResult:
            def hooks(model: nn.Module) -> list[Hook]:
                graph = sp.trace(model, EXAMPLE)
                own = GroupLasso(graph, strength, example_inputs=EXAMPLE)
                return [own, EarlyStopping(patience, metric="loss"), *more]

            model = net()
            return prune_gradually(
                *(model, EXAMPLE, sp.Budget(macs=0.5), points(), once),
                schedule=Iterative(steps=2),
                hooks=hooks if function else hooks(model),
                checkpoint=file,
            )

        before = go(1e-3, 3)
        with pytest.raises(
            StorageError, match=r"set of hooks: hook 1 GroupLasso\(strength=0.001.*strength=1.0"
        ):
            go(1.0, 3)
        with pytest.raises(StorageError, match=r"hook 2 EarlyStopping\(patience=3.*patience=4"):
            go(1e-3, 4)
        with pytest.raises(StorageError, match=r"hook 3 None, and Rates\(\) here"):
            go(1e-3, 3, Rates())
        assert same(go(1e-3, 3).model, before.model)

    def test_files_that_are_none_are_found_before_any_training(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        sp.train.save_checkpoint(tmp_path / "other", net())
        write_archive(tmp_path / "list", [1])
        write_archive(tmp_path / "old", {"of": {"cut": {}}, "steps": []})
        rates = Rates()
        for name, error, text in (
            ("", InputError, "names no file"),
            (tmp_path, StorageError, "is a folder: name a file"),
            (tmp_path / "file" / "run", StorageError, "cannot be written"),
            (tmp_path / "other", StorageError, "of another kind.*name another checkpoint="),
            (tmp_path / "list", StorageError, "of another kind"),
            (tmp_path / "old", StorageError, "another version of structprune"),
        ):
            with pytest.raises(error, match=text) as caught:
                sparsify_gradually(net(), 0.5, points(), OPTIONS, hooks=rates, checkpoint=name)
            assert ("delete" in str(caught.value)) == (name == tmp_path / "old")
        assert not rates.seen
        assert same(sp.train.load_checkpoint(tmp_path / "other").build(net), net())

    def test_a_gradual_run_is_no_checkpoint_of_a_training(self, tmp_path: Path) -> None:
        once = TrainOptions(epochs=1, lr=0.05)
        sparsify_gradually(net(), 0.5, points(), once, schedule=Cubic(2), checkpoint=tmp_path / "run")
        with pytest.raises(StorageError, match="gradual run, which the same call"):
            sp.train.load_checkpoint(tmp_path / "run")

    def test_a_file_is_one_runs_at_a_time_and_the_lock_ends_with_its_process(self, tmp_path: Path) -> None:
        file, once = tmp_path / "run", TrainOptions(epochs=1, lr=0.05)

        def go() -> GradualResult:
            return sparsify_gradually(net(), 0.5, points(), once, schedule=Cubic(2), checkpoint=file)

        holds = (
            "import sys, time; from structprune.train.gradual.checkpoint import held\n"
            "with held(sys.argv[1]): print('held', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", holds, str(file)], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(StorageError, match=f"{file} is in use: another process"):
                go()
            other.kill()
        assert go().reached
        assert go().reached

    def test_data_of_other_values_are_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "run.safetensors"
        x, y = points().tensors

        def go(data: TensorDataset, validation: TensorDataset) -> GradualResult:
            return prune_gradually(
                *(net(), EXAMPLE, sp.Budget(macs=0.5), data, TrainOptions(epochs=1, lr=0.05)),
                schedule=Iterative(steps=2),
                validation=validation,
                checkpoint=file,
            )

        before = go(points(), points())
        for name, other in (("inputs", TensorDataset(x + 1, y)), ("targets", TensorDataset(x, 1 - y))):
            for turn, place in enumerate(("train_data", "validation")):
                with pytest.raises(StorageError, match=f"{place} has as many .*in its {name}; delete it"):
                    go(*((other, points()), (points(), other))[turn])
        assert same(go(TensorDataset(x.clone(), y.clone()), points()).model, before.model)

    @pytest.mark.parametrize("of_its_own", [False, True])
    def test_data_that_draw_are_no_other_data(self, tmp_path: Path, of_its_own: bool) -> None:
        class Flips(Dataset[Any]):
            def __init__(self, labels: Tensor) -> None:
                self.labels = labels
                self.draw = torch.Generator() if of_its_own else None

            def __len__(self) -> int:
                return 48

            def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
                side = torch.rand((), generator=self.draw) < 0.5
                return points()[place][0] * (1 if side else -1), self.labels[place]

        def go(labels: Tensor) -> None:
            once = TrainOptions(epochs=1, lr=0.05)
            sparsify_gradually(
                net(), 0.5, Flips(labels), once, schedule=Cubic(2), checkpoint=tmp_path / "run"
            )

        labels = points().tensors[1]
        for _ in range(3):
            go(labels)
        with pytest.raises(StorageError, match="other values in its targets"):
            go(1 - labels)


class TestMasks:
    def test_the_sparsity_of_each_step_is_the_formulas_and_zeros_stay(self) -> None:
        zeros: list[int] = []

        class Count(Hook):
            def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
                model = run.model
                zeros.append(sum(int((model[n].weight == 0).sum()) for n in (0, 2, 4)))  # type: ignore[index, union-attr]

        once = TrainOptions(epochs=1, lr=0.1, weight_decay=0.1)
        result = sparsify_gradually(net(), 0.8, points(), once, schedule=Cubic(4), hooks=[Count()])
        size = 4 * 24 + 24 * 16 + 16 * 2
        wanted = [0.8 - 0.8 * (1 - t / 4) ** 3 for t in range(1, 5)]
        assert asked(result, "sparsity") == pytest.approx(wanted)
        assert zeros == [math.floor(s * size + 1e-9) for s in wanted]
        assert sp.nonzeros(sp.finalize(result.model)) == size - zeros[-1] + 24 + 16 + 2
        assert result.plans == ()

    def test_masks_that_are_there_count(self) -> None:
        sparse = sp.sparsify(net(), 0.5, scope="global")
        result = sparsify_gradually(sparse, 0.75, points(), OPTIONS, schedule=Iterative(steps=2))
        assert asked(result, "sparsity") == pytest.approx([1 - math.sqrt(0.125), 0.75])

    def test_layers_to_keep_and_a_sparsity_that_is_none(self) -> None:
        model = net()
        result = sparsify_gradually(model, 0.5, points(), OPTIONS, schedule=Iterative(steps=2), keep=model[4])
        assert bool((result.model[4].weight != 0).all())
        assert bool((model[0].weight != 0).all())
        with pytest.raises(InputError, match="sparsity="):
            sparsify_gradually(net(), 1.0, points(), OPTIONS)


@pytest.mark.parametrize("floor", [95.0, -0.1, math.nan])
def test_a_floor_that_no_accuracy_has_is_refused(floor: float) -> None:
    with pytest.raises(InputError, match=f"floor={floor}"):
        Floor(points(), least=floor)


@pytest.mark.parametrize("wrong", [{"epochs": 1.5}, {"lr": "x"}, {"seed": None}])
def test_options_of_a_wrong_type_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}=.*must be a"):
        TrainOptions(**{"epochs": 1, "lr": 0.1, **wrong})


def test_a_share_that_is_a_text_is_refused() -> None:
    with pytest.raises(InputError, match="share='a'"):
        Iterative("a")  # type: ignore[arg-type]


def test_a_loader_is_no_data_set_and_one_hook_is_enough() -> None:
    with pytest.raises(InputError, match="got DataLoader"):
        finetune(net(), DataLoader(points()), epochs=1, lr=0.1)  # type: ignore[arg-type]
    rates = Rates()
    finetune(net(), points(), epochs=1, lr=0.1, hooks=rates)
