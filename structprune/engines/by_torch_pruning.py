"""torch-pruning's dependency graph, asked for everything it knows about a model.

It is built on a copy of the model, since it leaves what it traces in eval mode and needs gradients of everything. Its
dependencies give the classes of channels that go together (`propagation`), its pruners what goes with them (`probing`).
What it believes is taken as it is: whether it is true is for the proof to find out.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from structprune.axes import Frozen
from structprune.clone import structural_clone
from structprune.engines.options import Options, on_copy, read_options
from structprune.engines.probing import PrunerError, Unclear, probe
from structprune.engines.propagation import Handle, Reached, propagate
from structprune.engines.translation import Findings, graph_from
from structprune.errors import InputError, TraceError
from structprune.graph import DependencyGraph
from structprune.inputs import normalize_inputs
from structprune.outputs import Outputs, output_tensors
from structprune.tensors import named_tensors, slots
from structprune.trace import run_traced
from structprune.wrappers import refuse_wrapped

__all__ = ["trace_by_torch_pruning"]

_OUTPUT = Frozen("model output")


def trace_by_torch_pruning(
    model: nn.Module, example_inputs: Any, engine_options: Mapping[str, Any], outputs: Outputs = None
) -> DependencyGraph:
    """Return the dependency graph of ``model`` as torch-pruning sees it; prices come from a traced run.

    The model stays as it is. Raises TraceError where torch-pruning, or a customised pruner, fails on the model, and
    InputError where it is not installed.
    """
    package = _package()
    refuse_wrapped(model)
    options = read_options(engine_options)
    inputs = normalize_inputs(example_inputs)
    run = run_traced(model, inputs, outputs=outputs)
    asked = _Asked(package, model, inputs, options)
    return graph_from(asked.findings(), run, model)


def _package() -> types.ModuleType:
    try:
        import torch_pruning
    except ImportError as error:
        raise InputError(
            f"engine='torch-pruning' needs that package ({error}): pip install 'structprune[torch-pruning]'"
        ) from None
    return torch_pruning  # type: ignore[no-any-return]


class _Asked:
    """torch-pruning's graph of a copy of the model, and what its pruners are asked."""

    def __init__(self, package: types.ModuleType, model: nn.Module, inputs: Any, options: Options) -> None:
        self.package = package
        self.copy = _copy(model)
        twins = {id(module): self.copy.get_submodule(name) for name, module in model.named_modules()}
        parameters = dict(self.copy.named_parameters(remove_duplicate=False))
        named = model.named_parameters(remove_duplicate=False)
        self.options = on_copy(options, {**twins, **{id(p): parameters[name] for name, p in named}})
        self.modules = {module: name for name, module in self.copy.named_modules()}
        self.names = {id(tensor): name for name, tensor in named_tensors(self.copy).items()}
        self.graph, self.ends = self.built(inputs)

    def built(self, inputs: Any) -> tuple[Any, set[Any]]:
        """Return torch-pruning's graph, and the autograd nodes of the model's outputs."""
        args, kwargs = inputs
        options = self.options
        ends: set[Any] = set()

        def outputs(result: Any) -> list[torch.Tensor]:
            found = output_tensors(
                result if options.output_transform is None else options.output_transform(result)
            )
            found = [tensor for tensor in found if tensor.grad_fn is not None]
            ends.update(tensor.grad_fn for tensor in found)
            return found

        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                graph = self.package.DependencyGraph().build_dependency(
                    self.copy,
                    inputs,
                    forward_fn=options.forward_fn or (lambda model, _: model(*args, **kwargs)),
                    output_transform=outputs,
                    unwrapped_parameters=[tuple(pair) for pair in options.unwrapped_parameters],
                    customized_pruners=dict(options.customized_pruners),
                    ignored_params=options.ignored_parameters(),
                    verbose=options.verbose,
                )
        except Exception as error:  # the boundary around torch-pruning and the user's forward
            raise TraceError(
                f"torch-pruning cannot trace the model ({type(error).__name__}: {error}). Without engine= the model is "
                "traced by structprune itself."
            ) from error
        return graph, ends

    def findings(self) -> Findings:
        """Return which channels torch-pruning removes together, and what goes with them."""
        roots, stretches = self.roots(), self.stretches()
        reached = propagate([(root, self.channels(root) or 0) for root in roots], stretches)
        found = Findings(reached.count)
        for handle in reached.indices:
            self.ask(handle, reached, found)
        return found

    def roots(self) -> list[Handle]:
        """The layers whose channels torch-pruning would choose: those of the root types, in its own order."""
        ops = self.package.ops
        kinds = self.options.root_module_types or (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_LSTM)
        inner = set(self.graph.IGNORED_LAYERS_IN_TRACING)
        found = []
        for module, node in self.graph.module2node.items():
            if isinstance(module, tuple(kinds)) and module not in inner:
                found.append(Handle(node, self.pruner(node).prune_out_channels))
        return found

    def pruner(self, node: Any) -> Any:
        pruner = self.graph.get_pruner_of_module(node.module)
        pruner.pruning_dim = node.pruning_dim  # where torch-pruning itself puts it before each call
        return pruner

    def told(self, node: Any, method: str) -> Any:
        """Return what the pruner of a node says about its layer."""
        pruner = self.pruner(node)
        try:
            return getattr(pruner, method)(node.module)
        except Exception as error:  # the boundary around a pruner, which may be the user's
            raise self.failed(node, f"{type(error).__name__}: {error}") from error

    def failed(self, node: Any, error: object) -> TraceError:
        name, kind = self.modules.get(node.module, node.name), type(self.pruner(node)).__name__
        return TraceError(f"torch-pruning's {kind} fails on {name!r} with {error}")

    def channels(self, handle: Handle) -> int | None:
        """Return how many channels the function of a handle chooses from."""
        out = handle.function == self.pruner(handle.node).prune_out_channels
        return self.told(handle.node, "get_out_channels" if out else "get_in_channels")  # type: ignore[no-any-return]

    def stretches(self) -> dict[Handle, tuple[int, int]]:
        """Return for each handle whose channels fall into stretches (groups, heads) how many channels and stretches."""
        ops, found = self.package.ops, {}
        for module, node in self.graph.module2node.items():
            if module not in self.modules or ops.module2type(module) == ops.OPTYPE.DEPTHWISE_CONV:
                continue
            pruner = self.pruner(node)
            out = self.options.out_channel_groups.get(module) or self.options.num_heads.get(module)
            inward = self.options.in_channel_groups.get(module) or self.told(node, "get_in_channel_groups")
            for function, number in (
                (pruner.prune_out_channels, out or self.told(node, "get_out_channel_groups")),
                (pruner.prune_in_channels, inward),
            ):
                handle = Handle(node, function)
                channels = self.channels(handle)
                if number > 1 and channels:
                    found[handle] = channels, number
        return found

    def ask(self, handle: Handle, reached: Reached, found: Findings) -> None:
        """Note what goes with the channels of one handle, and which of them must stay."""
        node, indices, classes = handle.node, reached.indices[handle], reached.classes[handle]
        pruner = self.pruner(node)
        outward = handle.function == pruner.prune_out_channels
        if node.type == self.package.ops.OPTYPE.OUTPUT or (outward and node.grad_fn in self.ends):
            found.freeze(classes, _OUTPUT)
        parameter = isinstance(node.module, nn.Parameter)
        if node.module not in self.modules and not parameter:
            return
        name = self.names[id(node.module)] if parameter else self.modules[node.module]
        if outward and node.module in self.options.ignored_modules():
            found.freeze(classes, Frozen(f"{name!r} is among the ignored layers"))
        if parameter and any(node.module is one for one in self.options.ignored_parameters()):
            return
        width = self.channels(handle)
        if width is None:
            return
        outside = indices >= width
        reason = f"torch-pruning sees channel {{}} of {name!r}, which has {width}"
        if outside.any():
            found.freeze(classes[outside], Frozen(reason.format(indices[outside][0])))
        self.cut(handle, name, width, indices[~outside], classes[~outside], found)

    def cut(self, handle: Handle, name: str, width: int, indices: Any, classes: Any, found: Findings) -> None:
        """Let the pruner cut copies of its layer, and note which tensors and integers follow which class."""
        local = found.local(indices, classes, width)
        if local is None:
            found.freeze(classes, Frozen(f"nothing would be left of {name!r}"))
            return
        pruner, module = self.pruner(handle.node), handle.node.module
        try:
            with torch.no_grad():
                cuts = probe(module, handle.function, local.channels)
        except Unclear as reason:
            found.freeze(classes, Frozen(f"{type(pruner).__name__} of {name!r}: {reason}"))
            return
        except PrunerError as error:
            raise self.failed(handle.node, error) from error
        prefix = "" if isinstance(module, nn.Parameter) else f"{name}." if name else ""
        for (tensor, dim), channels in cuts.positions.items():
            found.add(self.tensor_name(module, name, tensor), dim, local.classes_at(channels))
        for (inner, path), (number, slope) in cuts.integers.items():
            found.follow(f"{prefix}{inner}".rstrip("."), path, number, slope, local.classes)

    def tensor_name(self, module: Any, name: str, tensor: str) -> str:
        """Return the name by which the whole model knows a layer's tensor; a tied one goes by its first."""
        if isinstance(module, nn.Parameter):
            return name
        return next(self.names[id(slot.tensor)] for slot in slots(module) if slot.name == tensor)


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters' memory, in eval mode, with gradients wherever there can be any."""

    def twin(tensor: torch.Tensor, kind: str) -> torch.Tensor:
        if kind != "parameter":
            return tensor.detach().clone()
        return nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())

    with torch.inference_mode(False):
        return structural_clone(model, twin)[0].eval()
