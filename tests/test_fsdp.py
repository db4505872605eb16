"""FSDP is configuration: a model comes back from two processes' shards whole, with the weights of one process.

accelerate shards on accelerators alone: on the CPU it drops the plugin, so `sharding` puts back what it says on a GPU.
All else is accelerate's and torch's own FSDP, over gloo.
"""

from __future__ import annotations

import copy
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import structprune as sp
from structprune.errors import InputError
from structprune.train import (
    Cubic,
    Distillation,
    EarlyStopping,
    GroupLasso,
    Hook,
    Iterative,
    JsonLines,
    ProgressBar,
    Run,
    TrainOptions,
    finetune,
    prune_gradually,
    save_checkpoint,
)
from tests.launcher import torchrun
from tests.resuming import Continue, Keep

pytest.importorskip("accelerate")

SETTINGS: dict[str, Any] = {"epochs": 2, "lr": 0.05, "batch_size": 9}


def data() -> TensorDataset:
    """37 points: with batches of 9 over two processes no share is even, and the last batch is a single row."""
    points = torch.randn(37, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, (points[:, 0] > points[:, 1]).long())


class Net(nn.Module):
    """Widths that two does not divide, a frozen layer, buffers that are saved and not, and modules to shard apart."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 17)
        self.body = nn.Sequential(nn.LayerNorm(17), nn.GELU(), nn.Linear(17, 5))
        self.head = nn.Linear(5, 2, bias=False)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)
        self.double()
        self.body[2].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return self.head(self.body(self.first(x * self.scale)))


def sharding(
    precision: str = "no",
    steps: int = 1,
    version: int = 2,
    wrap: str = "size_based_wrap",
    ignored: str | None = None,
) -> Any:
    """An accelerator as FSDP configures it on GPUs; modules of more than 20 parameters are sharded apart."""
    from accelerate import Accelerator, DistributedType
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import FullyShardedDataParallelPlugin

    AcceleratorState._reset_state()
    GradientState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        auto_wrap_policy=wrap,
        min_num_params=20 if "size" in wrap else None,
        ignored_modules=ignored,
    )
    made = Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=steps, fsdp_plugin=plugin
    )
    made.state.distributed_type, made.state.fsdp_plugin = DistributedType.FSDP, plugin
    if precision != "no":
        plugin.set_mixed_precision(precision)
    return made


# -- what both sides do: one process plainly, two with shards -----------------------------------------------------


def plain(accelerator: Any = None) -> tuple[nn.Module, Any]:
    model = Net()
    return model, finetune(model, data(), validation=data(), accelerator=accelerator, **SETTINGS)


def adamw_in_two_halves(accelerator: Any = None) -> tuple[nn.Module, Any]:
    """Gradients accumulated over half batches, where the accelerator says so, else batches of twice the size."""
    model, size = Net(), 6 if accelerator is not None else 12
    even = TensorDataset(*(tensor[:36] for tensor in data().tensors))
    settings = {**SETTINGS, "batch_size": size, "optimizer": "adamw"}
    log = finetune(model, even, accelerator=accelerator, **settings)
    model.seen.zero_()  # half batches are twice as many
    return model, log


def hinted_and_stopped(accelerator: Any = None, folder: Path | None = None) -> tuple[nn.Module, Any]:
    """A pruned and masked network learns from the dense one; its loss rises, it stops, and the best weights return."""
    dense, points = Net(1), data().tensors[0][:2]
    result = sp.prune(dense, points, sp.Budget(macs=0.5))
    model, hint = sp.sparsify(result.model, 0.5), Distillation(dense, compare=nn.functional.mse_loss)
    hooks: list[Hook] = [
        EarlyStopping(1, metric="loss", lower=True),
        Rising(),
        ProgressBar(Console(file=io.StringIO())),
    ]
    if folder is not None:
        hooks.append(JsonLines(folder / "metrics.jsonl"))
    log = finetune(
        model, data(), validation=data(), distillation=hint, hooks=hooks, accelerator=accelerator,
        **{**SETTINGS, "epochs": 4},
    )  # fmt: skip
    return model, log


class Rising(Hook):
    """Sends the weights away in the third epoch; in shards it is done to shards."""

    def after_step(self, run: Run) -> None:
        if run.epoch == 3:
            with torch.no_grad():
                for parameter in run.model.parameters():
                    parameter.mul_(1.5)


def in_steps(accelerator: Any = None) -> tuple[nn.Module, Any]:
    result = prune_gradually(
        Net(), data().tensors[0][:2], sp.Budget(macs=0.5), data(), TrainOptions(**SETTINGS),
        schedule=Iterative(steps=2), validation=data(), training={"accelerator": accelerator},
    )  # fmt: skip
    return result.model, [metrics for step in result.steps for metrics in step.history]


SAME: dict[str, Callable[..., tuple[nn.Module, Any]]] = {
    "plain": plain,
    "adamw_in_two_halves": adamw_in_two_halves,
    "hinted_and_stopped": hinted_and_stopped,
    "in_steps": in_steps,
}
CONFIGURED: dict[str, dict[str, Any]] = {
    "adamw_in_two_halves": {"steps": 2},
    "hinted_and_stopped": {"wrap": "no_wrap"},  # torch shards no ModuleDict, which holds the masks
}


# -- what each process does; `torchrun` runs this file ------------------------------------------------------------


def work(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    for name, run in SAME.items():
        more = {"folder": folder} if run is hinted_and_stopped else {}
        model, log = run(sharding(**CONFIGURED.get(name, {})), **more)
        save_file(
            {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / f"{name}{rank}"
        )
        (folder / f"{name}{rank}.json").write_text(json.dumps(log))
    found = {
        check.__name__: check() for check in (left_as_found, refused, first_ones_weights, interrupted, bf16)
    }
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def left_as_found() -> dict[str, Any]:
    """What is not the same about a model after training, but its values; and what accelerate keeps of the copy."""
    model = Net()
    model.head.eval()
    kinds, flags = [type(m) for m in model.modules()], [m.training for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    names, seen = set(vars(model)), []

    class Look(Hook):
        def after_epoch(self, run: Run, metrics: Any) -> None:
            assert run.original is model
            seen.append([type(parameter).__name__ for parameter in run.model.parameters()])

    before = copy.deepcopy(model.state_dict())
    accelerator = sharding()
    hint = Distillation(Net(1), features=["body.1"])
    finetune(
        model,
        data(),
        validation=data(),
        distillation=hint,
        hooks=[Look()],
        accelerator=accelerator,
        **SETTINGS,
    )
    after = [*model.parameters(), *model.buffers()]
    return {
        "classes": kinds == [type(m) for m in model.modules()],
        "flags": flags == [m.training for m in model.modules()],
        "objects": all(a is b for a, b in zip(tensors, after, strict=True)),
        "plain": all(type(a) in (nn.Parameter, torch.Tensor) for a in after),
        "attributes": names == set(vars(model)),
        "trained": sorted(
            key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
        ),
        "shards": seen == [["DTensor"] * 7] * 2,
        "kept": len(accelerator._models) + len(accelerator._optimizers),
    }


def said(action: Callable[[], Any]) -> str:
    try:
        action()
    except InputError as error:
        return str(error)
    return "nothing"


def refused() -> dict[str, str]:
    """What is said of that which needs whole parameters; no weight changes."""
    model, points = Net(), data().tensors[0][:2]
    before = copy.deepcopy(model.state_dict())
    lasso = GroupLasso(sp.trace(model, points), 1e-3)

    class Save(Hook):
        def after_epoch(self, run: Run, metrics: Any) -> None:
            save_checkpoint("never-written", run.model)

    def train(accelerator: Any, network: nn.Module = model, **more: Any) -> Callable[[], Any]:
        return lambda: finetune(network, data(), accelerator=accelerator, **SETTINGS, **more)

    told = {
        "penalty": said(train(sharding(), hooks=[EarlyStopping(1, metric="loss"), lasso])),
        "checkpoint": said(train(sharding(), hooks=[Save()])),
        "version": said(train(sharding(version=1))),
        "ignored": said(train(sharding(ignored="head"))),
        "container": said(train(sharding(), sp.sparsify(model, 0.5))),
        "teacher": said(train(sharding(), distillation=model)),
        "carry": said(
            lambda: prune_gradually(
                model,
                points,
                sp.Budget(macs=0.5),
                data(),
                TrainOptions(**SETTINGS),
                schedule=Cubic(2),
                training={"accelerator": sharding()},
            )
        ),
    }
    told["changed"] = ", ".join(
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    )
    return told


def first_ones_weights() -> bool:
    """Whether processes that begin with different weights train those of the first."""
    models = [Net(int(os.environ["RANK"])), Net(0)]
    for model in models:
        finetune(model, data(), accelerator=sharding(), **SETTINGS)
    first, second = (model.state_dict() for model in models)
    return all(torch.equal(first[key], second[key]) for key in first)


def interrupted() -> bool:
    """Whether a run that goes on from a state, taken in shards, ends with the weights of one that does not stop."""
    models, keep = [Net(), Net(5)], Keep(1)
    finetune(models[0], data(), hooks=[keep], accelerator=sharding(), **SETTINGS)
    finetune(models[1], data(), hooks=[Continue(keep.state)], accelerator=sharding(), **SETTINGS)
    first, second = (model.state_dict() for model in models)
    return all(torch.equal(first[key], second[key]) for key in first)


def bf16() -> dict[str, Any]:
    """What mixed precision makes of weights, layers and losses."""
    model, kinds = Net().float(), set()
    points, labels = data().tensors
    model.first.register_forward_hook(lambda module, args, out: kinds.add(str(out.dtype)))

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        kinds.add(f"loss of {output.dtype}")
        return nn.functional.cross_entropy(output, targets)

    log = finetune(
        model, TensorDataset(points.float(), labels), loss=loss, accelerator=sharding("bf16"),
        **{**SETTINGS, "epochs": 6},
    )  # fmt: skip
    weights = {str(parameter.dtype) for parameter in model.parameters()}
    return {"kinds": sorted(kinds), "weights": sorted(weights), "losses": [entry["loss"] for entry in log]}


# -- the tests ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left, once for all tests."""
    folder = tmp_path_factory.mktemp("shards")
    status, told = torchrun(__file__, 2, str(folder))
    assert status == 0, told[-3000:]
    return folder


@pytest.fixture(params=[0, 1], ids=["rank 0", "rank 1"])
def found(request: pytest.FixtureRequest, trained: Path) -> Any:
    return json.loads((trained / f"found{request.param}.json").read_text())


@pytest.mark.parametrize("name", SAME)
def test_shards_give_the_weights_and_the_metrics_of_one_process(name: str, trained: Path) -> None:
    model, log = SAME[name]()
    for rank in (0, 1):
        told = json.loads((trained / f"{name}{rank}.json").read_text())
        for entry, own in zip(told, log, strict=True):
            assert entry == pytest.approx(own, rel=1e-6)  # losses are summed in float32
        tensors = load_file(trained / f"{name}{rank}")
        assert tensors.keys() == model.state_dict().keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, model.state_dict()[key], rtol=1e-9, atol=1e-12, msg=key)


def test_early_stopping_and_the_log_in_shards(trained: Path) -> None:
    """The run ends after the epoch whose loss rises, the weights are those of the one before, masked ones zero."""
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] > lines[1]["loss"] < lines[0]["loss"]
    tensors = load_file(trained / "hinted_and_stopped0")
    behind = [key for key in tensors if key.endswith("original")]
    assert len(behind) == 3
    masks = {key: tensors[key.replace("original", "0.mask")] for key in behind}
    assert all((tensors[key][~mask] == 0).all() and not mask.all() for key, mask in masks.items())


def test_the_model_is_what_it_was_but_trained(found: Any) -> None:
    trained = ["body.0.bias", "body.0.weight", "first.bias", "first.weight", "head.weight", "seen"]
    left = found["left_as_found"]
    assert (left.pop("trained"), left.pop("kept")) == (trained, 0)
    assert left == dict.fromkeys(left, True)


def test_what_needs_whole_parameters_is_refused_before_training(found: Any) -> None:
    told = found["refused"]
    assert "GroupLasso needs whole parameters, and 'first.weight' is cut into shards" in told["penalty"]
    assert "'first.weight' is a DTensor, of which this process may hold a part" in told["checkpoint"]
    assert "FullyShardedDataParallelPlugin(fsdp_version=2)" in told["version"]
    assert "'weight' of a Linear is in FSDP's ignored_modules" in told["ignored"]
    assert "with another auto_wrap_policy" in told["container"]
    assert "the teacher is the network that is trained" in told["teacher"]
    assert "goes on from step to step needs whole parameters" in told["carry"]
    assert "give carry=False" in told["carry"]
    assert told["changed"] == ""


def test_processes_that_begin_apart_train_the_first_ones_weights(found: Any) -> None:
    assert found["first_ones_weights"]


def test_a_run_goes_on_from_its_state_in_shards(found: Any) -> None:
    assert found["interrupted"]


def test_bf16_is_configuration(found: Any) -> None:
    """Layers compute in bf16, the loss is of float32, and so are the weights that come back."""
    made = found["bf16"]
    assert made["kinds"] == ["loss of torch.float32", "torch.bfloat16"]
    assert made["weights"] == ["torch.float32"]
    assert made["losses"][-1] < 0.8 * made["losses"][0]


def test_engines_with_a_loop_of_their_own_are_refused() -> None:
    from accelerate import DistributedType

    accelerator = sharding()
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    try:
        with pytest.raises(InputError, match="accelerate is configured for DEEPSPEED"):
            finetune(Net(), data(), accelerator=accelerator, **SETTINGS)
    finally:
        accelerator.state._reset_state()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
