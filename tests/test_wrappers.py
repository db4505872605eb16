"""Wrapped models: handled where the meaning is clear, else refused with the right order of steps, which works."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.prune import l1_unstructured
from torch.optim.swa_utils import AveragedModel

import structprune as sp
from tests.harness import flags
from tests.nets.case import conv, image, row
from tests.oracle import judge

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
Half = sp.Budget(channels=0.5)
Build = Callable[[], nn.Module]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def cnn() -> nn.Module:
    layers = [
        conv(3, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 3),
    ]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def half(model: nn.Module, x: Any) -> nn.Module:
    return sp.prune(model, x, Half).model


# -- handled ----------------------------------------------------------------------------------------------------------


def changed(build: Build, change: Callable[[nn.Module], Any], *layers: str) -> Build:
    def made() -> nn.Module:
        model = build()
        for layer in layers or ("0",):
            change(model.get_submodule(layer))
        return model

    return made


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.rand(12, 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.by


class Adapter(nn.Module):
    """A frozen layer with a trained difference of low rank beside it."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.5 * self.up(self.down(x))


def adapted() -> nn.Module:
    return nn.Sequential(Adapter(nn.Linear(8, 12)), nn.ReLU(), Adapter(nn.Linear(12, 3)))


def compiled_forward() -> nn.Module:
    model = mlp()
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


def lazy_but_run() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.LazyLinear(3))
    model(row(8)())
    return model


HANDLED: dict[str, tuple[Build, Callable[[], Any]]] = {
    "weight norm by hooks": (changed(cnn, nn.utils.weight_norm, "0", "3"), image()),
    "weight norm": (changed(cnn, parametrizations.weight_norm, "0", "3"), image()),
    "spectral norm by hooks": (changed(cnn, nn.utils.spectral_norm, "0", "3"), image()),
    "spectral norm": (changed(cnn, parametrizations.spectral_norm, "0", "3"), image()),
    "a parametrization": (
        changed(mlp, lambda layer: parametrize.register_parametrization(layer, "weight", Scale())),
        row(8),
    ),
    "pruning masks": (changed(cnn, lambda layer: l1_unstructured(layer, "weight", 0.3), "0", "3"), image()),
    "adapters": (adapted, row(8)),
    "an fx graph": (lambda: torch.fx.symbolic_trace(cnn()), image()),
    "module.compile()": (changed(mlp, lambda layer: layer.compile(backend="eager")), row(8)),
    "a compiled forward": (compiled_forward, row(8)),
    "lazy layers that have run": (lazy_but_run, row(8)),
    "averaged weights": (lambda: AveragedModel(mlp()), row(8)),
    "activation checkpoints": (lambda: checkpoint_wrapper(mlp()), row(8)),
    "a hook of accelerate": (
        changed(mlp, lambda layer: add_hook_to_module(layer, AlignDevicesHook("cpu", io_same_device=True))),
        row(8),
    ),
    "prepared by accelerate": (lambda: Accelerator(cpu=True).prepare(mlp()), row(8)),
}


@pytest.mark.parametrize("name", HANDLED)
def test_what_is_clear_is_pruned(name: str) -> None:
    build, inputs = HANDLED[name]
    model, x = build(), inputs()
    model.train()
    before, held = flags(model), {key: value.clone() for key, value in model.state_dict().items()}
    result = sp.prune(model, x, Half)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert result.report.params_before == count
    assert result.report.params_after == sum(p.numel() for p in result.model.parameters()) < 0.7 * count
    assert flags(model) == flags(result.model) == before
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())


# The independent judge gives every number its own value: not where numbers are copies, or follow from each other.
JUDGED = [
    "weight norm by hooks",
    "weight norm",
    "a parametrization",
    "pruning masks",
    "adapters",
    "an fx graph",
]


@pytest.mark.parametrize("name", [*JUDGED, "lazy layers that have run", "activation checkpoints"])
def test_what_is_clear_is_pruned_right(name: str) -> None:
    build, inputs = HANDLED[name]
    verdict = judge(build(), inputs(), half)
    assert verdict.status == "exact", verdict.detail


def test_the_originals_of_weight_norm_are_cut_and_the_norm_stays_attached() -> None:
    model = changed(cnn, parametrizations.weight_norm, "0", "3")()
    small = half(model, image()())
    layer = small.get_submodule("0")
    assert layer.parametrizations.weight.original0.shape == (4, 1, 1, 1)
    assert layer.parametrizations.weight.original1.shape == (4, 3, 3, 3)
    hooked = half(changed(cnn, nn.utils.spectral_norm)(), image()()).get_submodule("0")
    assert hooked.weight_orig.shape == (4, 3, 3, 3)
    hooked(image()()).sum().backward()
    assert hooked.weight_orig.grad is not None


def test_masks_stay_attached_and_hold() -> None:
    small = half(changed(cnn, lambda layer: l1_unstructured(layer, "weight", 0.3))(), image()())
    layer = small.get_submodule("0")
    assert layer.weight_mask.shape == layer.weight_orig.shape == (4, 3, 3, 3)
    small(image()())
    assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)
    prune.remove(layer, "weight")
    assert not hasattr(layer, "weight_mask")


def test_a_compiled_forward_is_that_of_the_pruned_network() -> None:
    model, x = compiled_forward(), row(8)()
    small = half(model, x)
    plain = nn.Sequential(*(copy.deepcopy(layer) for layer in small))
    assert torch.allclose(small(x), plain(x))
    assert small(x).shape == (4, 3)


# -- hooks of the user's ----------------------------------------------------------------------------------------------


def test_hooks_that_change_values_take_part() -> None:
    model, x = mlp(), row(8)()
    model[0].register_forward_hook(lambda layer, args, out: out * 3)
    model[2].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    result = sp.prune(model, x, Half)
    kept = list(result.plan.groups[0].keep)
    hidden = torch.relu(3 * model[0](x) / 3)[:, kept] + 1
    assert torch.allclose(result.model(x), hidden @ model[2].weight[:, kept].t() + model[2].bias, atol=1e-6)


def test_hooks_that_keep_values_are_left_with_none_of_the_trace() -> None:
    model, x = mlp(), row(8)()
    seen: list[Tensor] = []
    named: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda layer, args, out: seen.append(out))
    model[1].register_forward_hook(lambda layer, args, out: named.__setitem__("relu", out))
    sp.trace(model, x)
    assert [tensor for tensor in (*seen, *named.values()) if tensor.is_meta] == []


class Doubling(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output * 2


def test_accelerate_hooks_take_part() -> None:
    model, x = mlp(), row(8)()
    add_hook_to_module(model[0], Doubling())
    result = sp.prune(model, x, Half)
    kept = list(result.plan.groups[0].keep)
    inner = torch.relu(2 * nn.functional.linear(x, model[0].weight, model[0].bias))[:, kept]
    expected = nn.functional.linear(inner, model[2].weight[:, kept], model[2].bias)
    assert torch.allclose(result.model(x), expected, atol=1e-6)


# -- refused ----------------------------------------------------------------------------------------------------------


def prepared(training: bool) -> nn.Module:
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), mlp(), quantization.DeQuantStub()).train(training)
    engine = torch.backends.quantized.engine
    if training:
        model.qconfig = quantization.get_default_qat_qconfig(engine)
        return quantization.prepare_qat(model)
    model.qconfig = quantization.get_default_qconfig(engine)
    model = quantization.prepare(model)
    model(row(8)())
    return model


class Codes(Tensor):
    """A weight in 8 bits that shows itself as floats, as torchao's are."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Codes:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # type: ignore[no-any-return]

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Codes(args[0].codes, args[0].scale)
        plain = [one.codes.float() * one.scale if isinstance(one, Codes) else one for one in args]
        return func(*plain, **(kwargs or {}))


def with_codes(layer: nn.Module) -> None:
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    codes = Codes((layer.weight.detach() / scale).round().to(torch.int8), scale)
    layer.weight = nn.Parameter(codes, requires_grad=False)


def sharded() -> nn.Module:
    model, mesh = mlp(), init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def replicated() -> nn.Module:
    from torch.distributed._composable.replicate import replicate

    return replicate(mlp())


REFUSED: dict[str, tuple[Build, str]] = {
    "DataParallel": (lambda: nn.DataParallel(mlp()), r"is a DataParallel: prune model\.module, then wrap"),
    "DDP": (
        lambda: nn.parallel.DistributedDataParallel(mlp()),
        r"prune model\.module, then wrap the result again",
    ),
    "DDP inside": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.parallel.DistributedDataParallel(mlp())),
        r"1 is a DistributedDataParallel: prune model\.1\.module",
    ),
    "FSDP": (
        lambda: FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")),
        "is a FullyShardedDataParallel: prune the module before it is sharded",
    ),
    "fully_shard": (sharded, "prune the module before it is sharded or replicated, then wrap the result"),
    "replicate": (replicated, "prune the module before it is sharded or replicated, then wrap the result"),
    "DTensor": (
        lambda: distribute_module(mlp(), init_device_mesh("cpu", (1,))),
        r"0\.weight is a DTensor, .* then shard or quantise the result",
    ),
    "torch.compile": (lambda: torch.compile(mlp(), backend="eager"), r"prune model\._orig_mod, then compile"),
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(mlp(), backend="eager")),
        r"0 is a OptimizedModule: .* prune model\.0\._orig_mod",
    ),
    "scripted": (lambda: torch.jit.script(mlp()), "before it is scripted or traced, then script the result"),
    "traced": (lambda: torch.jit.trace(mlp(), row(8)()), "before it is scripted or traced"),
    "scripted inside": (lambda: nn.Sequential(torch.jit.script(mlp())), "0 is a RecursiveScriptModule"),
    "dynamically quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}),
        r"0 is a torch\.ao\..*Linear: prune before quantising",
    ),
    "statically quantised": (
        lambda: torch.ao.quantization.convert(prepared(False)),
        "prune before quantising",
    ),
    "prepared for quantising": (lambda: prepared(False), "Observer: prune before quantising"),
    "trained for quantising": (lambda: prepared(True), "FakeQuantize: prune before quantising"),
    "a weight of its own kind": (
        changed(mlp, with_codes),
        r"0\.weight is a Codes, which computes in its own way: .* then shard or quantise",
    ),
    "exported": (
        lambda: torch.export.export(cnn(), (image()(),)).module(),
        "prune the module before it is exported, then export the result",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(12)), r"0\.weight has no shape yet: run the model once"),
    "offloaded": (
        lambda: cpu_offload(mlp(), execution_device=torch.device("cpu")),
        "accelerate keeps its weights elsewhere: .* prune it, then dispatch the result",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("gloo")
def test_the_others_are_refused_with_the_right_order(name: str) -> None:
    build, words = REFUSED[name]
    model, x = build(), image()() if name == "exported" else row(8)()
    with pytest.raises(sp.TraceError, match=words):
        sp.prune(model, x, Half)


def test_meta_models_have_no_weights_to_score_and_can_be_planned() -> None:
    model, x = mlp().to("meta"), row(8)()
    with pytest.raises(sp.InputError, match="meta device"):
        sp.prune(model, x, Half)
    with pytest.raises(sp.InputError, match="no weights to verify"):
        sp.prune(model, x, Half, "random")
    small = sp.prune(model, x, Half, "random", verify=False).model
    assert small[0].weight.shape == (6, 8)
    assert small[0].weight.is_meta


# -- the right order works --------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "FSDP": lambda model: FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=True
    ),
    "fully_shard": lambda model: fully_shard(model, mesh=init_device_mesh("cpu", (1,))),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "script": torch.jit.script,
    "quantise": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
    "export": lambda model: torch.export.export(model, (row(8)(),)).module(),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.usefixtures("gloo")
def test_pruned_first_then_wrapped(name: str) -> None:
    x = row(8)()
    small = half(mlp(), x)
    expected = small(x).detach()
    wrapped = WRAPPERS[name](small)
    got = wrapped(x)
    assert torch.allclose(got, expected, atol=0.1 if name == "quantise" else 1e-6)
    if name in ("DataParallel", "DDP", "FSDP", "fully_shard", "compile"):
        got.sum().backward()
        torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
        assert not torch.allclose(wrapped(x), expected)


@pytest.mark.parametrize("name", ["DDP", "compile"])
@pytest.mark.usefixtures("gloo")
def test_unwrapped_pruned_and_wrapped_again(name: str) -> None:
    x = row(8)()
    wrapped = WRAPPERS[name](mlp())
    inside = wrapped.module if name == "DDP" else wrapped._orig_mod
    small = half(inside, x)
    assert torch.allclose(WRAPPERS[name](small)(x), small(x))


TWO = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import structprune as sp

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(4, 8)
small = sp.prune(model, x, sp.Budget(channels=0.5)).model
expected = small(x).detach()
(expected_grad,) = torch.autograd.grad(small(x).pow(2).mean(), small[0].weight)
ddp = nn.parallel.DistributedDataParallel(small)
ddp(x[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
assert torch.allclose(small[0].weight.grad, expected_grad, atol=1e-6)
again = sp.prune(ddp.module, x, sp.Budget(channels=0.25)).model
fully_shard(again, mesh=init_device_mesh("cpu", (2,)))
try:
    sp.prune(again, x, sp.Budget(channels=0.1))
except sp.TraceError as error:
    assert "before it is sharded" in str(error)
else:
    raise AssertionError("a sharded model was pruned")
loss = again(x).pow(2).mean()
loss.backward()
assert again[0].weight.grad.to_local().shape[1] == 8
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.nightly
def test_two_processes_prune_alike_and_train_together(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command, store = [sys.executable, "-W", "ignore", "-c", TWO], str(tmp_path / "store")
    processes = [
        subprocess.Popen([*command, str(rank), store], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
