"""A loop of one's own: hooks follow the optimiser, pruning cuts model and optimiser, a state continues the run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.errors import InputError
from structprune.train import Distillation, EarlyStopping, Hook, Run, Session

POINTS = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS[:, 0] > POINTS[:, 1]).long()


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2))


def step(session: Session) -> float:
    """One step on all points, as a user writes it."""
    session.model.train()
    output = session.model(POINTS)
    loss = session.loss(F.cross_entropy(output, SIDES), POINTS, output, SIDES)
    loss.backward()
    session.optimizer.step()
    session.optimizer.zero_grad()
    return float(loss.detach())


def train(session: Session, epochs: int) -> list[float]:
    losses = []
    for _ in session.epochs(epochs):
        losses.append(step(session))
        session.log(loss=losses[-1])
    return losses


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.05)


class TestHooks:
    def test_they_follow_the_optimiser(self) -> None:
        calls: list[str] = []

        class Note(Hook):
            def on_start(self, run: Run) -> None:
                calls.append("start")

            def after_backward(self, run: Run) -> None:
                assert all(p.grad is not None for p in run.model.parameters())
                calls.append(f"backward {run.step}")

            def after_step(self, run: Run) -> None:
                calls.append(f"step {run.step}")

            def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
                calls.append(f"epoch {metrics['epoch']:.0f}")
                metrics["more"] = 1.0

            def on_end(self, run: Run) -> None:
                calls.append("end")

        model = net()
        optimizer = adam(model)
        with Session(model, optimizer, hooks=[Note()]) as session:
            train(session, 2)
        one, two = (["backward 0", "step 1", "epoch 1"], ["backward 1", "step 2", "epoch 2"])
        assert calls == ["start", *one, *two, "end"]
        assert [entry["more"] for entry in session.run.history] == [1.0, 1.0]
        optimizer.step()  # the session is over, and nothing of it is left
        assert len(calls) == 8

    def test_a_penalty_moves_the_weights_as_it_does_by_hand(self) -> None:
        class L1(Hook):
            def after_backward(self, run: Run) -> None:
                for parameter in run.model.parameters():
                    parameter.grad.add_(parameter.detach().sign(), alpha=0.01)

        models = [net(), net()]
        with Session(models[0], adam(models[0]), hooks=[L1()]) as session:
            train(session, 3)
        optimizer = adam(models[1])
        for _ in range(3):
            loss = F.cross_entropy(models[1](POINTS), SIDES)
            (loss + 0.01 * sum(p.abs().sum() for p in models[1].parameters())).backward()
            optimizer.step()
            optimizer.zero_grad()
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_masks_hold(self) -> None:
        model = sp.sparsify(net(), 0.5)
        zeros = model[0].weight == 0
        with Session(model, adam(model)) as session:
            train(session, 3)
        assert torch.equal(model[0].weight == 0, zeros)
        assert int(zeros.sum()) == 18

    def test_an_early_stop_and_the_best_weights(self) -> None:
        model, weights = net(), []
        with Session(model, adam(model), hooks=EarlyStopping(1, metric="score")) as session:
            for epoch in session.epochs(9):
                step(session)
                weights.append(copy.deepcopy(model.state_dict()))
                session.log(score=[3, 4, 1][epoch - 1])
        assert len(weights) == 3
        assert all(torch.equal(t, weights[1][name]) for name, t in model.state_dict().items())

    def test_nothing_is_left_after_an_error(self) -> None:
        model, ended = net(), []
        optimizer = adam(model)

        class Note(Hook):
            def on_start(self, run: Run) -> None:
                run.at_exit(lambda: ended.append("exit"))

            def after_step(self, run: Run) -> None:
                raise KeyError

            def on_end(self, run: Run) -> None:
                ended.append("end")

        with pytest.raises(KeyError), Session(model, optimizer, hooks=[Note()]) as session:
            train(session, 1)
        assert ended == ["exit"]
        optimizer.step()

    def test_distillation(self) -> None:
        dense = net(1)
        small = sp.prune(dense, POINTS, sp.Budget(channels=0.5))
        hint = Distillation(dense, features=["0"], plan=small.plan, weight=0.5)
        with Session(small.model, adam(small.model), hooks=[hint]) as session:
            losses = train(session, 20)
        assert losses[-1] < 0.8 * losses[0]
        assert not small.model[0]._forward_hooks
        assert not dense[0]._forward_hooks


class TestPrune:
    def test_model_and_optimiser_are_cut_in_place(self) -> None:
        """The next step is the masked original's: a copy whose removed channels are cut afterwards."""
        model = net()
        optimizer = adam(model)
        with Session(model, optimizer) as session:
            train(session, 3)
            kept = copy.deepcopy(model)
            moments = optimizer.state[model[0].weight]["exp_avg"].clone()
            result = session.prune(POINTS, sp.Budget(channels=0.5))
            assert result.model is model
            assert session.plans == (result.plan,)
            stays = result.plan.index("0.weight")[0]
            assert torch.equal(model[0].weight, kept[0].weight[stays])
            assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], moments[stays])
            assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
                id(p) for p in model.parameters()
            }
            before = model[0].weight.detach().clone()
            losses = train(session, 10)
            assert not torch.equal(model[0].weight, before)
            assert losses[-1] < losses[0]

    def test_calibration_reaches_the_model_in_place(self) -> None:
        model, beside = net().eval(), net().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options: dict[str, Any] = {"calibration": [POINTS], "criterion": "l2"}
        with Session(model, optimizer) as session:
            session.prune(POINTS, sp.Budget(channels=0.5), **options)
        expected = sp.prune(beside, POINTS, sp.Budget(channels=0.5), **options).model
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name

    def test_hooks_go_on_with_the_smaller_network(self) -> None:
        dense, model = net(1), net()
        model.load_state_dict(dense.state_dict())
        hooks = [Distillation(dense, features=["2"]), EarlyStopping(9, metric="loss", lower=True)]
        with Session(model, adam(model), hooks=hooks) as session:
            train(session, 2)
            session.prune(POINTS, sp.Budget(channels=0.75))
            train(session, 4)
            session.prune(POINTS, sp.Budget(channels=0.5))
            losses = train(session, 16)
        assert model[0].weight.shape == (6, 3)
        assert losses[-1] < losses[0]

    def test_an_optimiser_that_cannot_be_cut_leaves_the_model_whole(self) -> None:
        model = net()
        optimizer = torch.optim.LBFGS(model.parameters())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(POINTS), SIDES)
            loss.backward()
            return loss

        optimizer.step(closure)
        session = Session(model, optimizer)
        with pytest.raises(InputError):
            session.prune(POINTS, sp.Budget(channels=0.5))
        assert model[0].weight.shape == (12, 3)
        assert session.plans == ()
        with pytest.raises(InputError, match="inplace= and rewrite="):
            session.prune(POINTS, sp.Budget(channels=0.5), rewrite=True)


class TestState:
    def test_a_script_that_starts_again_goes_on_where_it_was(self) -> None:
        def script(state: dict[str, Any] | None, until: int) -> tuple[Session, nn.Module]:
            model = net()  # in full size, as a script builds it
            optimizer = adam(model)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            with Session(model, optimizer, schedule=schedule) as session:
                if state is not None:
                    session.load_state_dict(state)
                for epoch in session.epochs(until):
                    if epoch == 3:
                        session.prune(POINTS, sp.Budget(channels=0.5))
                    session.log(loss=step(session))
                    schedule.step()
            return session, model

        session, whole = script(None, 6)
        broken, _ = script(None, 4)
        again, model = script(copy.deepcopy(broken.state_dict()), 6)
        assert again.run.history == session.run.history
        assert again.plans == session.plans
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name

    def test_a_state_of_another_cut_is_refused(self) -> None:
        states = []
        for share in (0.5, 0.25):
            model = net()
            session = Session(model, adam(model))
            session.prune(POINTS, sp.Budget(channels=share))
            states.append(session.state_dict())
        with pytest.raises(InputError, match="was cut otherwise"):
            session.load_state_dict(states[0])


def test_a_session_that_is_not_entered_is_refused_where_it_has_hooks() -> None:
    model = net()
    session = Session(model, adam(model), hooks=[Hook()])
    with pytest.raises(InputError, match="with Session"):
        next(session.epochs(1))
    with session:
        assert len(train(session, 1)) == 1


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="no parameter of the model"):
        Session(net(), adam(net()))
    with pytest.raises(InputError, match="optimizer is a int"):
        Session(net(), 4)  # type: ignore[arg-type]


def test_what_is_no_hook_state_or_metric_is_named() -> None:
    model = net()
    with pytest.raises(InputError, match="hooks='x': expected a Hook, or several"):
        Session(model, adam(model), hooks="x")  # type: ignore[arg-type]
    session = Session(model, adam(model))
    with pytest.raises(InputError, match=r"it lacks epoch, step, .*plans"):
        session.load_state_dict({})
    for value in ("x", None):
        with pytest.raises(InputError, match=r"log\(loss=\.\.\.\) must be one number"):
            session.log(loss=value)  # type: ignore[arg-type]
