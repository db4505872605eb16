"""Fine-tuning learns, holds masks, repeats itself, and leaves everything else as it was found."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from structprune.errors import InputError
from structprune.masking import sparsify
from structprune.train import Distillation, Hook, Run, evaluate, finetune
from structprune.train.optimizers import build_optimizer, build_schedule
from structprune.train.options import TrainOptions
from tests.resuming import Continue, Keep


def sides() -> TensorDataset:
    """64 points in the plane, labelled by the side of a line they are on."""
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points[:, 0] > points[:, 1]).long())


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


class TestFinetune:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    @pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
    def test_it_learns_and_reports_each_epoch(self, optimizer: str, schedule: str) -> None:
        model, data = net(), sides()
        log = finetune(
            model,
            data,
            epochs=12,
            lr=0.05,
            batch_size=16,
            optimizer=optimizer,
            schedule=schedule,
            validation=data,
        )
        assert [entry["epoch"] for entry in log] == list(range(1, 13))
        assert log[-1]["loss"] < 0.7 * log[0]["loss"]
        assert log[-1]["accuracy"] == evaluate(model, data) > 0.9

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_masked_weights_stay_zero(self, optimizer: str) -> None:
        model = sparsify(net(), 0.5)
        gone = [layer.weight == 0 for layer in (model[0], model[4])]
        before = model[0].weight.detach().clone()
        finetune(model, sides(), epochs=2, lr=0.1, weight_decay=0.1, optimizer=optimizer)
        assert [int(zeros.sum()) for zeros in gone] == [8, 8]
        assert [
            torch.equal(layer.weight == 0, z) for layer, z in zip((model[0], model[4]), gone, strict=True)
        ] == [
            True,
            True,
        ]
        assert not torch.equal(model[0].weight, before)

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        models = [net(), net(), net()]
        for model, seed in zip(models, (3, 3, 4), strict=True):
            finetune(model, sides(), epochs=2, lr=0.1, batch_size=8, seed=seed)
        first, same, other = (model[0].weight for model in models)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_flags_random_state_and_frozen_parameters_are_left_alone(self) -> None:
        model = net().train()
        model[1].eval()
        model[4].requires_grad_(False)
        frozen, state = model[4].weight.detach().clone(), torch.get_rng_state()
        finetune(model, sides(), epochs=1, lr=0.1, validation=sides())
        assert [module.training for module in model] == [True, False, True, True, True]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(model[4].weight, frozen)

    def test_flags_are_given_back_after_an_error(self) -> None:
        model, data = net().eval(), sides()
        data.tensors[0][0] = float("nan")
        with pytest.raises(InputError, match=r"the loss is nan in batch 1 of epoch 1; lower lr=0\.1"):
            finetune(model, data, epochs=1, lr=0.1)
        assert not model.training

    @pytest.mark.parametrize(
        ("change", "loss", "message"),
        [
            (lambda y: y.float(), None, r"targets are a tensor \[16\] of torch.float32, from 0 to 1 .*Long"),
            (lambda y: y + 1, None, r"\[16, 2\].*, from 1 to 2 .*from 0 to 1 \(-100 is passed over\)"),
            (lambda y: y[:, None], None, r"a tensor \[16, 1\] .*torch.int64 \[16\], from 0 to 1"),
            (
                lambda y: y,
                lambda output, y: output @ y,
                r"a tensor \[16, 2\] .*loss= is",
            ),
            (lambda y: y, lambda output, y: (output[:, 0] - y).square(), r"one number.*got a tensor \[16\]"),
            (lambda y: y, lambda output, y: 1.0, "one number.*got a float"),
        ],
    )
    def test_a_loss_that_cannot_be_taken_names_the_batch(self, change: Any, loss: Any, message: str) -> None:
        model, (x, y) = net().eval(), sides().tensors
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        with pytest.raises(InputError, match=f"batch 1 of epoch 1.*{message}"):
            finetune(model, TensorDataset(x, change(y)), epochs=1, lr=0.1, batch_size=16, loss=loss)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_a_target_out_of_range_is_found_where_it_comes(self) -> None:
        x, y = sides().tensors
        y[-1] = 7
        seen: list[int] = []
        with pytest.raises(InputError, match=r"batch (\d) of epoch 1: .* to 7 ") as raised:
            finetune(
                net(),
                TensorDataset(x, y),
                epochs=1,
                lr=0.1,
                batch_size=16,
                progress=lambda *at: seen.append(at[0]),
            )
        assert f"batch {len(seen) + 1} of" in str(raised.value)

    @pytest.mark.parametrize("row", [{"x": torch.ones(2), "y": 1}, (torch.ones(2),), torch.ones(2)])
    def test_what_is_no_pair_is_refused(self, row: Any) -> None:
        with pytest.raises(InputError, match=r"batch 1 of epoch 1 is a .*expected \(input, target\) pairs"):
            finetune(net(), [row] * 4, epochs=1, lr=0.1)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("samples", "batch_size"), [(33, 16), (8, 1)])
    def test_a_single_sample_that_is_left_over_is_found_before_the_first_step(
        self, samples: int, batch_size: int
    ) -> None:
        data = torch.utils.data.Subset(sides(), range(samples))
        model = net().eval()
        before, seen = copy.deepcopy(model.state_dict()), list[int]()
        with pytest.raises(InputError, match=r"more than 1 value per channel.*choose a batch_size"):
            finetune(
                model, data, epochs=1, lr=0.1, batch_size=batch_size, progress=lambda *at: seen.append(at[0])
            )
        assert seen == []
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(module.training for module in model.modules())

    def test_a_single_sample_that_the_model_takes_changes_nothing(self) -> None:
        """Without batch norm 33 samples in batches of 16 are trained as by hand."""
        data = torch.utils.data.Subset(sides(), range(33))
        models = [nn.Linear(2, 2), nn.Linear(2, 2)]
        models[1].load_state_dict(models[0].state_dict())
        order: list[torch.Tensor] = []

        class Order(Hook):
            def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
                order.append((inputs, targets))

        settings: dict[str, Any] = {"weight_decay": 0.0, "momentum": 0.0, "schedule": "constant"}
        finetune(models[0], data, epochs=1, lr=0.1, batch_size=16, hooks=Order(), **settings)
        assert [len(targets) for _, targets in order] == [16, 16, 1]
        optimizer = torch.optim.SGD(models[1].parameters(), lr=0.1)
        for inputs, targets in order:
            optimizer.zero_grad()
            nn.functional.cross_entropy(models[1](inputs), targets).backward()
            optimizer.step()
        torch.testing.assert_close(models[0].weight, models[1].weight)

    def test_a_batch_that_the_model_does_not_take_is_named(self) -> None:
        x, y = sides().tensors
        with pytest.raises(
            InputError, match=r"forward failed on batch 1 of epoch 1 \(a tensor \[64, 3\].*shapes"
        ):
            finetune(net(), TensorDataset(torch.cat([x, x[:, :1]], 1), y), epochs=1, lr=0.1)

    def test_a_loss_that_is_not_finite_ends_the_run_at_its_batch(self) -> None:
        seen: list[int] = []

        def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(output, y) * (float("inf") if len(seen) == 5 else 1)

        with pytest.raises(InputError, match="the loss is inf in batch 2 of epoch 2"):
            finetune(
                *(net(), sides()),
                epochs=3,
                lr=0.1,
                batch_size=16,
                loss=loss,
                progress=lambda *at: seen.append(at[0]),
            )
        assert seen == [1, 2, 3, 4, 5]

    def test_a_loss_without_a_gradient_is_named(self) -> None:
        def detached(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(output, y).detach()

        with pytest.raises(
            InputError, match="the loss of batch 1 of epoch 1 does not depend on any parameter"
        ):
            finetune(net(), sides(), epochs=1, lr=0.1, loss=detached)

    def test_it_trains_where_gradients_are_switched_off(self) -> None:
        models = [net(), net(), net()]
        for model, around in zip(
            models, (torch.enable_grad, torch.no_grad, torch.inference_mode), strict=True
        ):
            with around():
                finetune(model, sides(), epochs=1, lr=0.1)
        assert torch.equal(models[0][0].weight, models[1][0].weight)
        assert torch.equal(models[0][0].weight, models[2][0].weight)

    @pytest.mark.gpu
    def test_a_target_out_of_range_does_not_take_the_gpu_down(self) -> None:
        x, y = sides().tensors
        with pytest.raises(InputError, match=r"batch 1 of epoch 1.*, from 1 to 2\. Expected"):
            finetune(net().cuda(), TensorDataset(x, y + 1), epochs=1, lr=0.1)
        assert float(torch.ones(2, device="cuda").sum()) == 2

    def test_progress_counts_every_step(self) -> None:
        seen: list[tuple[int, int]] = []
        finetune(net(), sides(), epochs=2, lr=0.1, batch_size=30, progress=lambda *step: seen.append(step))
        assert seen == [(step, 6) for step in range(1, 7)]

    def test_an_accelerator_of_ones_own(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        models = [net(), net()]
        finetune(models[0], sides(), epochs=1, lr=0.1, accelerator=accelerate.Accelerator(cpu=True))
        finetune(models[1], sides(), epochs=1, lr=0.1)
        assert torch.equal(models[0][0].weight.cpu(), models[1][0].weight.cpu())

    def test_mixed_precision_leaves_the_model_in_its_own(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        accelerate.state.AcceleratorState._reset_state()
        model = net()
        try:
            half = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
            log = finetune(model, sides(), epochs=1, lr=0.1, accelerator=half)
        finally:
            accelerate.state.AcceleratorState._reset_state()
        assert log[0]["loss"] < 1
        assert "forward" not in vars(model)
        assert model.eval()(torch.zeros(1, 2)).dtype == torch.float32

    def test_without_accelerate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(InputError, match=r"pip install structprune\[train\]"):
            finetune(net(), sides(), epochs=1, lr=0.1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"lr": 0.0},
            {"lr": float("nan")},
            {"batch_size": 0},
            {"optimizer": "lion"},
            {"momentum": 1.0},
            {"weight_decay": -1.0},
            {"schedule": "step"},
            {"label_smoothing": 1.0},
            {"seed": 2**70},
            {"optimizer": dict},
            {"accelerator": "x"},
        ],
    )
    def test_bad_options_are_named(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            finetune(net(), sides(), **{"epochs": 1, "lr": 0.1, **wrong})

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"optimizer": lambda model: None}, "what optimizer= returns is nothing"),
            (
                {"optimizer": lambda model: torch.optim.SGD(net().parameters(), lr=0.1)},
                "what optimizer= returns holds no parameter of the model",
            ),
            ({"optimizer": torch.optim.LBFGS}, "lambda model: LBFGS"),
            ({"schedule": lambda optimizer, steps: None}, "schedule= returns nothing"),
            (
                {"schedule": lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)},
                "schedule= returns a ReduceLROnPlateau",
            ),
        ],
    )
    def test_functions_that_give_something_else_are_named(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            finetune(net(), sides(), epochs=1, lr=0.1, **wrong)

    def test_a_class_of_optimisers_gets_the_groups_of_the_named_ones(self) -> None:
        models = [net(), net()]
        finetune(models[0], sides(), epochs=2, lr=0.1, weight_decay=0.1, optimizer=torch.optim.AdamW)
        finetune(models[1], sides(), epochs=2, lr=0.1, weight_decay=0.1, optimizer="adamw")
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(one, other)

    def test_a_model_of_inference_mode_is_refused(self) -> None:
        with torch.inference_mode():
            model = net()
        with pytest.raises(InputError, match=r"made under torch\.inference_mode"):
            finetune(model, sides(), epochs=1, lr=0.1)

    def test_nothing_to_train(self) -> None:
        with pytest.raises(InputError, match="at least one"):
            finetune(net(), TensorDataset(torch.empty(0, 2), torch.empty(0)), epochs=1, lr=0.1)
        with pytest.raises(InputError, match="requires a gradient"):
            finetune(net().requires_grad_(False), sides(), epochs=1, lr=0.1)


class Recorder(Hook):
    """Writes down the calls, with the step count that each of them sees."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_start(self, run: Run) -> None:
        self.calls.append(("start", run.step))

    def before_step(self, run: Run, inputs: Any, targets: Any) -> None:
        self.calls.append((f"before {len(inputs)} {len(targets)}", run.step))

    def after_backward(self, run: Run) -> None:
        assert all(p.grad is not None for p in run.model.parameters())
        self.calls.append(("backward", run.step))

    def after_step(self, run: Run) -> None:
        self.calls.append(("step", run.step))

    def after_epoch(self, run: Run, metrics: dict[str, float]) -> None:
        metrics["seen"] = float(run.step)
        self.calls.append(("epoch", run.step))

    def on_end(self, run: Run) -> None:
        self.calls.append(("end", run.step))


class TestHooks:
    def test_the_order_of_the_calls(self) -> None:
        hook = Recorder()
        log = finetune(net(), sides(), epochs=2, lr=0.1, batch_size=48, hooks=[hook])
        steps = [
            [(f"before {size} {size}", done), ("backward", done), ("step", done + 1)]
            for done, size in enumerate((48, 16, 48, 16))
        ]
        first, second = [*steps[0], *steps[1], ("epoch", 2)], [*steps[2], *steps[3], ("epoch", 4)]
        assert hook.calls == [("start", 0), *first, *second, ("end", 4)]
        assert [entry["seen"] for entry in log] == [2.0, 4.0]

    def test_a_penalty_on_the_gradient_is_weight_decay(self) -> None:
        class Decay(Hook):
            def after_backward(self, run: Run) -> None:
                for parameter in run.model.parameters():
                    if parameter.ndim > 1:
                        parameter.grad.add_(parameter.detach(), alpha=0.01)

        models = [net(), net()]
        finetune(models[0], sides(), epochs=2, lr=0.1, weight_decay=0.01)
        finetune(models[1], sides(), epochs=2, lr=0.1, weight_decay=0.0, hooks=[Decay()])
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, other)

    def test_the_learning_rate_after_a_step_is_that_of_the_step(self) -> None:
        rates: list[float] = []

        class Rates(Hook):
            def after_backward(self, run: Run) -> None:
                rates.append(run.lr)

            def after_step(self, run: Run) -> None:
                rates.append(run.lr)

        finetune(net(), sides(), epochs=1, lr=1.0, batch_size=16, hooks=[Rates()])
        assert rates == pytest.approx([1, 1, 0.8535534, 0.8535534, 0.5, 0.5, 0.1464466, 0.1464466])

    def test_stop_ends_the_run_after_the_epoch(self) -> None:
        class Stop(Hook):
            def after_step(self, run: Run) -> None:
                if run.step == 3:
                    run.stop()

        hook = Recorder()
        log = finetune(net(), sides(), epochs=9, lr=0.1, batch_size=32, hooks=[Stop(), hook])
        assert len(log) == 2
        assert hook.calls[-1] == ("end", 4)

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_a_run_continued_from_its_state_ends_with_the_same_weights(self, optimizer: str) -> None:
        keep = Keep(epoch=2)
        settings: dict[str, Any] = {"epochs": 4, "lr": 0.1, "batch_size": 16, "optimizer": optimizer}
        whole, continued = net(), net(seed=1)
        log = finetune(whole, sides(), validation=sides(), hooks=[keep], **settings)
        again = finetune(continued, sides(), validation=sides(), hooks=[Continue(keep.state)], **settings)
        assert again == log
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, continued.state_dict()[name]), name

    def test_a_state_of_other_hooks_is_refused(self) -> None:
        class Other(Hook):
            def on_start(self, run: Run) -> None:
                run.load_state_dict(run.state_dict() | {"hooks": []})

        with pytest.raises(InputError, match="a run with 0 hooks, this one has 1"):
            finetune(net(), sides(), epochs=1, lr=0.1, hooks=[Other()])


class TestOptions:
    def test_schedules_start_and_end_where_they_should(self) -> None:
        rates = {}
        for name in ("cosine", "onecycle", "constant"):
            options = TrainOptions(epochs=1, lr=1.0, schedule=name)
            optimizer = build_optimizer(net(), options)
            schedule = build_schedule(optimizer, options, steps=10)
            rates[name] = []
            for _ in range(10):
                rates[name].append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
        assert rates["constant"] == [1.0] * 10
        assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
        assert (rates["cosine"][0], max(rates["onecycle"])) == (1.0, 1.0)
        assert rates["onecycle"][0] < 0.1 > rates["onecycle"][-1]

    def test_biases_and_norms_are_not_decayed(self) -> None:
        decayed, spared = build_optimizer(net(), TrainOptions(epochs=1, lr=1.0)).param_groups
        assert [p.ndim for p in decayed["params"]] == [2, 2]
        assert {p.ndim for p in spared["params"]} == {1}
        assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)


class Two(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([left, right], 1))


class Pairs(Dataset[Any]):
    """32 examples of two inputs, in a tensor, a tuple or a dict."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.values = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        left, right = self.values[number, :1], self.values[number, 1:]
        inputs = {
            "tuple": (left, right),
            "dict": {"right": right, "left": left},
            "tensor": self.values[number],
        }
        return inputs[self.form], int(left > right[:1])


class TestLossesAndInputs:
    def test_inputs_by_position_and_by_name(self) -> None:
        models = [Two(), Two(), Two().layer]
        for model, form in zip(models, ("tuple", "dict", "tensor"), strict=True):
            log = finetune(model, Pairs(form), epochs=4, lr=0.5, batch_size=8, validation=Pairs(form))
            assert log[-1]["accuracy"] > 0.9
        assert torch.equal(models[0].layer.weight, models[1].layer.weight)
        assert torch.equal(models[0].layer.weight, models[2].weight)

    def test_a_loss_of_ones_own(self) -> None:
        """Least squares on exact data: the weights that made the targets come back."""
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        truth = torch.tensor([[1.0, -2.0, 0.5]])
        model = nn.Linear(3, 1, bias=False)
        log = finetune(
            model,
            TensorDataset(x, x @ truth.T),
            epochs=40,
            lr=0.1,
            batch_size=16,
            weight_decay=0.0,
            loss=nn.functional.mse_loss,
            validation=TensorDataset(x, x @ truth.T),
            metric=lambda net, data: -float((net(data.tensors[0]) - data.tensors[1]).abs().max().detach()),
        )
        torch.testing.assert_close(model.weight.detach(), truth, rtol=1e-3, atol=1e-3)
        assert "accuracy" not in log[-1]
        assert -1e-2 < log[-1]["metric"] <= 0

    def test_an_optimiser_and_a_schedule_of_ones_own(self) -> None:
        rates: list[float] = []

        class Rates(Hook):
            def after_step(self, run: Run) -> None:
                assert isinstance(run.optimizer, torch.optim.RMSprop)
                rates.append(run.lr)

        finetune(
            net(),
            sides(),
            epochs=2,
            lr=1.0,
            batch_size=32,
            optimizer=lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
            schedule=lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, steps // 2, 0.1),
            hooks=[Rates()],
        )
        assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])

    def test_what_does_not_go_together(self) -> None:
        with pytest.raises(InputError, match=r"label_smoothing=0.1 belongs to the default loss"):
            finetune(net(), sides(), epochs=1, lr=0.1, loss=nn.functional.cross_entropy, label_smoothing=0.1)
        with pytest.raises(InputError, match="metric= needs validation="):
            finetune(net(), sides(), epochs=1, lr=0.1, metric=evaluate)

        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = net()

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"logits": self.inner(x)}

        with pytest.raises(InputError, match="the model returns dict; measure with a metric="):
            evaluate(Named(), sides())


class TestAccelerate:
    """What accelerate is configured for; its state is one per process, so each test begins and ends with none."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        accelerate = pytest.importorskip("accelerate")
        accelerate.state.AcceleratorState._reset_state()
        yield
        accelerate.state.AcceleratorState._reset_state()
        accelerate.state.GradientState._reset_state()

    def test_accumulated_gradients_are_those_of_one_batch(self) -> None:
        from accelerate import Accelerator

        seen: list[tuple[int, int]] = []
        models = [nn.Linear(2, 2).double() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        x, y = sides().tensors
        data = TensorDataset(x.double(), y)
        settings: dict[str, Any] = {"epochs": 2, "lr": 0.1, "optimizer": "sgd"}
        finetune(models[0], data, batch_size=32, **settings)
        slow = Accelerator(cpu=True, gradient_accumulation_steps=2)
        finetune(
            models[1],
            data,
            batch_size=16,
            accelerator=slow,
            progress=lambda *step: seen.append(step),
            **settings,
        )
        assert seen == [(step, 4) for step in range(1, 5)]
        torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-9, atol=1e-12)

    def test_bf16_with_distillation_masks_and_a_penalty(self) -> None:
        from accelerate import Accelerator

        kinds: set[torch.dtype] = set()

        class Kinds(Hook):
            def after_backward(self, run: Run) -> None:
                kinds.update(p.grad.dtype for p in run.model.parameters() if p.grad is not None)

        dense, model = net(1), sparsify(net(), 0.5)
        hint = Distillation(dense, features=["2"])
        half = Accelerator(cpu=True, mixed_precision="bf16")
        model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
        log = finetune(
            model, sides(), epochs=8, lr=0.05, accelerator=half, distillation=hint, hooks=[Kinds()]
        )
        assert kinds == {torch.bfloat16, torch.float32}  # the forward's, and the gradients'
        assert log[-1]["loss"] < log[0]["loss"]
        assert int((model[0].weight == 0).sum()) == 8
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    def test_each_run_has_its_precision_and_accelerate_keeps_nothing_of_it(self) -> None:
        from accelerate import Accelerator

        model, kinds = net(), list[torch.dtype]()
        model[0].register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
        half, before = Accelerator(cpu=True, mixed_precision="bf16"), set(vars(model))
        for _ in range(2):
            finetune(model, sides(), epochs=1, lr=0.05, batch_size=64, accelerator=half)
        assert kinds == [torch.bfloat16] * 2
        assert set(vars(model)) == before
        assert half._models == half._optimizers == []

    def test_a_schedule_that_fails_leaves_nothing_on_the_model_nor_in_accelerate(self) -> None:
        from accelerate import Accelerator

        def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
            raise KeyError("no schedule")

        model, half = net(), Accelerator(cpu=True, mixed_precision="bf16")
        before = set(vars(model))
        with pytest.raises(KeyError, match="no schedule"):
            finetune(model, sides(), epochs=1, lr=0.1, schedule=schedule, accelerator=half)
        assert set(vars(model)) == before
        assert half._models == half._optimizers == []


class TestEvaluate:
    def test_the_share_that_is_right_in_eval_mode(self) -> None:
        points = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
        model = nn.Sequential(nn.Identity(), nn.Dropout(0.999)).train()
        assert evaluate(model, TensorDataset(points, torch.tensor([0, 1, 0, 1])), batch_size=3) == 0.75
        assert model.training

    def test_an_empty_data_set(self) -> None:
        with pytest.raises(InputError, match="empty"):
            evaluate(net(), TensorDataset(torch.empty(0, 2), torch.empty(0)))

    def test_every_target_counts_and_none_that_is_passed_over(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(5, 3, 4, 4, generator=generator)
        classes = torch.randint(0, 3, (5, 4, 4), generator=generator)
        classes[:2, 0] = -100
        right = counted = 0
        for image, target in zip(images.tolist(), classes.tolist(), strict=True):
            for row in range(4):
                for column in range(4):
                    scores = [channel[row][column] for channel in image]
                    counted += target[row][column] != -100
                    right += scores.index(max(scores)) == target[row][column]
        found = evaluate(nn.Identity(), TensorDataset(images, classes), batch_size=2)
        assert found == right / counted < 1
        assert counted == 5 * 16 - 2 * 4

    @pytest.mark.parametrize("size", [2, 3, 256])
    def test_of_probabilities_the_highest_is_the_class(self, size: int) -> None:
        scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        wanted = torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]])
        assert evaluate(nn.Identity(), TensorDataset(scores, wanted), batch_size=size) == 0.75

    @pytest.mark.parametrize(
        ("output", "targets", "message"),
        [
            (
                (6, 3),
                torch.zeros(6, 1, dtype=torch.int64),
                r"a tensor \[6, 3\] .*\[6, 1\].*torch.int64 \[6\]",
            ),
            ((6, 3), torch.full((6,), 3), r"from 3 to 3\. Expected .* from 0 to 2"),
            ((6, 3), torch.zeros(6), r"a tensor \[6\] of torch.float32"),
            ((6, 3), torch.zeros(6, 3, dtype=torch.int64), "or probabilities"),
            ((6,), torch.zeros(6, dtype=torch.int64), r"logits \[batch, classes"),
            ((6, 3), torch.full((6,), -100), "all its targets are -100"),
        ],
    )
    def test_what_accuracy_cannot_be_told_of(
        self, output: tuple[int, ...], targets: torch.Tensor, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            evaluate(nn.Identity(), TensorDataset(torch.zeros(output), targets))

    def test_batches_of_no_sample(self) -> None:
        with pytest.raises(InputError, match="batch_size=0: must be at least 1"):
            evaluate(net(), sides(), batch_size=0)


class TestValidation:
    """What does not fit in `validation` is found before the first step; what fits changes nothing of the run."""

    @pytest.mark.parametrize(
        ("data", "metric", "message"),
        [
            (TensorDataset(torch.zeros(3, 2), torch.zeros(3, 1).long()), None, "validation: accuracy cannot"),
            (TensorDataset(torch.empty(0, 2), torch.empty(0)), None, "validation is empty"),
            (TensorDataset(torch.empty(0, 2), torch.empty(0)), lambda net, data: 1.0, "validation is empty"),
        ],
    )
    def test_it_is_refused_before_the_first_step(self, data: Any, metric: Any, message: str) -> None:
        model = net()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match=message):
            finetune(model, sides(), epochs=1, lr=0.1, validation=data, metric=metric)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_the_look_at_it_draws_no_random_number(self) -> None:
        drawn: list[float] = []

        class Draw(Hook):
            def on_start(self, run: Run) -> None:
                drawn.append(float(torch.rand(())))

        for validation in (None, sides()):
            finetune(net(), sides(), epochs=1, lr=0.1, validation=validation, hooks=Draw())
        assert drawn[0] == drawn[1]

    def test_a_metric_that_is_no_number(self) -> None:
        for worth in (None, "much", torch.ones(2)):
            with pytest.raises(InputError, match="what metric= returns must be one number"):
                finetune(net(), sides(), epochs=1, lr=0.1, validation=sides(), metric=lambda *_, w=worth: w)
