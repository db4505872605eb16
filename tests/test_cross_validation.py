"""Cross-validation: the folds are scikit-learn's, the table is what loops by hand give, the choice is the rule's."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import structprune as sp
from structprune.errors import InputError
from structprune.train import (
    L1,
    Candidate,
    CrossValidation,
    GroupLasso,
    Hook,
    Metrics,
    Run,
    Trial,
    cross_validate,
    evaluate,
    finetune,
    zero_plan,
)
from structprune.train.folds import folds_of

selection = pytest.importorskip("sklearn.model_selection")


def sides(count: int = 60) -> TensorDataset:
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points[:, 0] > points[:, 1]).long() + (points[:, 0] > 1).long())


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))


class TestFolds:
    def test_a_number_is_stratified_by_class(self) -> None:
        data = sides()
        parts = folds_of(data, 3, seed=5)
        labels = data.tensors[1].numpy()
        theirs = selection.StratifiedKFold(3, shuffle=True, random_state=5).split(labels, labels)
        for found, expected in zip(parts, theirs, strict=True):
            assert np.array_equal(found[0], expected[0])
            assert np.array_equal(found[1], expected[1])

    def test_targets_that_are_no_classes_are_divided_at_random(self) -> None:
        data = TensorDataset(torch.randn(10, 2), torch.randn(10, 1))
        theirs = selection.KFold(5, shuffle=True, random_state=1).split(np.arange(10))
        for found, expected in zip(folds_of(data, 5, seed=1), theirs, strict=True):
            assert np.array_equal(found[1], expected[1])

    @pytest.mark.parametrize("kind", ["splitter", "pairs"])
    def test_splitters_and_pairs(self, kind: str) -> None:
        splitter = selection.ShuffleSplit(2, test_size=0.2, random_state=0)
        expected = list(splitter.split(np.arange(60)))
        parts = folds_of(sides(), splitter if kind == "splitter" else expected, seed=0)
        assert [part[1].tolist() for part in parts] == [part[1].tolist() for part in expected]

    @pytest.mark.parametrize("folds", [1, 61, [], [([0, 1], [])], [([0], [1])]])
    def test_what_is_no_division(self, folds: Any) -> None:
        with pytest.raises(InputError, match="folds"):
            folds_of(sides(), folds, seed=0)

    def test_data_that_cannot_be_looked_up(self) -> None:
        with pytest.raises(InputError, match="looked up"):
            folds_of(iter([]), 2, seed=0)  # type: ignore[arg-type]


class TestCrossValidate:
    def test_it_is_what_loops_by_hand_give(self) -> None:
        model, data, x = net(), sides(), torch.randn(1, 4)
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        table = cross_validate(
            model,
            data,
            x,
            strengths=np.array([0.0, 0.02]),
            thresholds=(0.0, 0.8),
            folds=3,
            seed=4,
            epochs=3,
            lr=0.1,
            batch_size=8,
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        graph = sp.trace(model, x)
        for candidate in table.candidates:
            metrics, params = [], []
            for inside, outside in folds_of(data, 3, seed=4):
                copied = copy.deepcopy(model)
                hooks = [GroupLasso(graph, candidate.strength)] if candidate.strength else []
                finetune(copied, Subset(data, inside), epochs=3, lr=0.1, batch_size=8, seed=4, hooks=hooks)
                small = sp.apply_plan(copied, zero_plan(graph, copied, candidate.cut))
                metrics.append(evaluate(small, Subset(data, outside)))
                params.append(sp.count_params(small) / sp.count_params(model))
            assert [trial.metric for trial in candidate.trials] == metrics
            assert candidate.mean == pytest.approx(np.mean(metrics))
            assert candidate.std == pytest.approx(np.std(metrics, ddof=1))
            assert candidate.params == pytest.approx(np.mean(params))
        assert [(one.strength, one.cut) for one in table.candidates] == [
            (0.0, 0.0), (0.0, 0.8), (0.02, 0.0), (0.02, 0.8),
        ]  # fmt: skip
        assert table.candidates[0].params == 1.0 > table.candidates[3].params

    def test_budgets_penalties_metrics_and_training_after_the_cut(self) -> None:
        seen: list[tuple[int, int]] = []

        def shared(model: nn.Module, data: Any) -> float:
            return float(len(data)) + evaluate(model, data)

        def table() -> CrossValidation:
            return cross_validate(
                net_,
                sides(),
                torch.randn(1, 4),
                strengths=(1e-3,),
                budgets=(sp.Budget(params=0.5), sp.Budget(params=0.9)),
                penalty=L1,
                folds=selection.KFold(2),
                criterion="l1",
                cut={"multiple_of": 2},
                metric=shared,
                epochs_after=1,
                progress=lambda done, total: seen.append((done, total)),
                epochs=1,
                lr=0.05,
            )

        net_ = net()
        found = table()
        assert found == table()
        assert seen == [(1, 2), (2, 2)] * 2
        small, large = found.candidates
        assert small.params <= 0.5 < large.params <= 0.9
        assert 30 < small.mean < 31

    def test_one_hook_or_several(self) -> None:
        class Count(Hook):
            epochs = 0

            def after_epoch(self, run: Run, metrics: Metrics) -> None:
                self.epochs += 1

        one, several = Count(), [Count(), Count()]
        for hooks in (one, several):
            cross_validate(
                *(net(), sides(), torch.randn(1, 4)),
                strengths=(0.0, 1e-3),
                thresholds=(0.0,),
                folds=2,
                epochs=2,
                lr=0.1,
                hooks=hooks,
            )
        assert [hook.epochs for hook in (one, *several)] == [8, 8, 8]

    @pytest.mark.parametrize("worth", [float("nan"), float("inf"), None])
    def test_a_metric_that_is_no_finite_number_names_the_fold(self, worth: Any) -> None:
        measures = iter([0.5, 0.5, 0.5, worth])
        seen: list[int] = []
        with pytest.raises(InputError, match=r"metric= returns.* on fold 2 of 3, strength 0.001, cut 0.0"):
            cross_validate(
                *(net(), sides(), torch.randn(1, 4)),
                strengths=(0.0, 1e-3),
                thresholds=(0.0,),
                folds=3,
                metric=lambda *_: next(measures),
                progress=lambda done, total: seen.append(done),
                epochs=1,
                lr=0.1,
            )
        assert seen == [1, 2, 3]  # the fourth is the last that is trained

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"thresholds": (), "budgets": ()}, "thresholds= or budgets="),
            ({"budgets": (sp.Budget(params=0.5),)}, "not both"),
            ({"strengths": ()}, "at least one"),
            ({"strengths": (1.0, 1.0)}, "each once"),
            ({"strengths": (-1.0,)}, "strength"),
            ({"folds": 1}, "folds"),
            ({"strengths": "much"}, "strengths"),
        ],
    )
    def test_bad_arguments_are_named(self, wrong: dict[str, Any], message: str) -> None:
        options: dict[str, Any] = {"strengths": (1e-3,), "thresholds": (0.0,), "epochs": 1, "lr": 0.1}
        with pytest.raises(InputError, match=message):
            cross_validate(net(), sides(), torch.randn(1, 4), **{**options, **wrong})


def candidate(strength: float, metrics: tuple[float, ...], params: float) -> Candidate:
    return Candidate(strength, 0.0, tuple(Trial(metric, params, params) for metric in metrics))


class TestChoice:
    def test_the_smallest_within_one_standard_error_of_the_best(self) -> None:
        best = candidate(0.1, (0.90, 0.94, 0.98), 0.9)  # 0.94, standard error 0.04 / sqrt(3) = 0.0231
        within = candidate(0.2, (0.92, 0.92, 0.92), 0.5)
        beyond = candidate(0.3, (0.91, 0.91, 0.91), 0.1)
        table = CrossValidation((best, within, beyond))
        assert (table.best, table.chosen) == (best, within)
        assert best.error == pytest.approx(0.04 / 3**0.5)

    def test_of_equal_means_the_smaller_network(self) -> None:
        table = CrossValidation((candidate(0.1, (0.9, 0.9), 0.8), candidate(0.2, (0.9, 0.9), 0.4)))
        assert table.best is table.chosen is table.candidates[1]

    def test_it_prints_and_goes_to_json(self) -> None:
        table = CrossValidation((candidate(0.1, (0.90, 0.98), 0.9), candidate(0.2, (0.92, 0.92), 0.5)))
        lines = str(table).splitlines()
        assert len(lines) == 3
        assert lines[1].endswith("best")
        assert lines[2].endswith("chosen")
        rows = json.loads(json.dumps(table.rows()))
        assert [(row["best"], row["chosen"]) for row in rows] == [(True, False), (False, True)]
