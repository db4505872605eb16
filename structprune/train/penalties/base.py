"""What all penalties share: which channels, how strong, and when in a step of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from structprune.engines import trace
from structprune.errors import InputError
from structprune.graph import ChannelGroup, DependencyGraph
from structprune.importance.groups import MemberTensor
from structprune.selection.units import Constraints, candidate_groups
from structprune.train.hooks import Hook, Metrics, Run
from structprune.train.penalties.channels import Channels, channels_of, is_traced

__all__ = ["Penalty", "step_sizes"]


class _Part(Protocol):
    @property
    def parameters(self) -> tuple[nn.Parameter, ...]: ...


Part = TypeVar("Part", bound=_Part)
Placed = list[tuple[nn.Parameter, torch.device]]


class Penalty(Hook, ABC, Generic[Part]):
    """A term beside the loss that draws the channels of a traced network to zero while it trains.

    It acts on the channels that `select` would cut: those of free groups, or of the groups that `only` names, without
    those that `keep` names (names of groups, layers or tensors, globs, kinds). Frozen groups and parameters that do not
    require a gradient are neither counted nor changed. In `finetune(hooks=[penalty])`, or with `value` or `shrink` in a
    loop of your own.

    With `proximal=True` it acts after each step of the optimiser, by its proximal operator, which leaves exact zeros;
    the operator's step is the learning rate, and as much more of it as the optimiser's momentum makes of a gradient, so
    that what training comes to rest at is a minimum of loss and penalty together. Beside Adam and its like, whose steps
    are not of the gradient's size, it is as strong as AdamW's decoupled weight decay. With `proximal=False` the
    penalty's gradient is added to the loss's: small weights, no exact zeros. `growth` is the share of the steps over
    which the strength grows from zero, in proportion to the steps done. With `example_inputs` a network that has been
    cut since (between the steps of `prune_gradually`) is traced again; without, it is refused.

    Raises `InputError` for a graph that is none, a strength or a growth out of range, and names that match nothing;
    when it first acts, before the first step of a training, for a model that is not the one that was traced, and where
    nothing of it is penalised.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        strength: float,
        *,
        only: str | Iterable[str] = (),
        keep: str | Iterable[str] = (),
        proximal: bool = True,
        growth: float = 0.0,
        example_inputs: Any = None,
    ) -> None:
        if not isinstance(graph, DependencyGraph):
            raise InputError(f"graph is a {type(graph).__name__}; expected what structprune.trace returns")
        if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
            raise InputError(f"{strength=}: a penalty's strength is a finite number of 0 or more")
        if not isinstance(growth, int | float) or not 0 <= growth <= 1:
            raise InputError(f"{growth=}: expected the share of the steps, in [0, 1]")
        if not isinstance(proximal, bool):
            raise InputError(f"{proximal=}: expected True, for proximal steps, or False, for gradients")
        self._bounds = Constraints(keep=_listed("keep", keep), only=_listed("only", only))
        self._example_inputs = example_inputs
        self.strength, self.proximal, self.growth = float(strength), proximal, float(growth)
        self.groups: tuple[ChannelGroup, ...] = self._chosen(graph)
        self._bound: tuple[Placed, tuple[Channels, ...], tuple[Part, ...]] | None = None

    # -- what each penalty says of itself --------------------------------------------------------------------------

    @abstractmethod
    def _belongs(self, member: MemberTensor) -> bool:
        """Whether the penalty counts this member of a group."""

    @abstractmethod
    def _parts(self, groups: tuple[Channels, ...]) -> tuple[Part, ...]:
        """The parts of which the penalty is the sum."""

    @abstractmethod
    def _value(self, part: Part) -> Tensor:
        """The penalty of one part at strength 1: a scalar, differentiable."""

    @abstractmethod
    def _shrink(self, part: Part, amount: float) -> None:
        """The proximal operator of `amount` times the value, in place."""

    # -- in a loop of one's own ------------------------------------------------------------------------------------

    def value(self, model: nn.Module) -> Tensor:
        """The penalty on `model`, a scalar to add to the loss: differentiable, strength included.

        Raises InputError where the model is not the one that was traced, or nothing of it is penalised.
        """
        values = [self._value(part) for part in self._of(model)[1]]
        return self.strength * torch.stack([value.to(values[0]) for value in values]).sum()

    def add_gradients(self, model: nn.Module, *, share: float = 1.0) -> None:
        """Add the gradient of `share` of the penalty to that of the parameters."""
        parameters = list(dict.fromkeys(p for part in self._of(model)[1] for p in part.parameters))
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.value(model) * share, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.detach()
            else:
                parameter.grad += gradient

    def shrink(self, model: nn.Module, step: float | Optimizer, *, share: float = 1.0) -> None:
        """The proximal step, after the optimiser's: `step` is its size, or the optimiser itself.

        Where an optimiser has several learning rates, each weight goes by its own, and weights that shrink together by
        the largest among them. `share` is that of the strength. Raises InputError for a size that is negative or not
        finite, and for an optimiser that holds none of the penalised weights: a cut makes new parameters.
        """
        parts = self._of(model)[1]
        sizes = step_sizes(step) if isinstance(step, Optimizer) else {}
        if isinstance(step, Optimizer):
            if not any(id(parameter) in sizes for part in parts for parameter in part.parameters):
                raise InputError(
                    f"the optimizer holds none of the weights that {type(self).__name__} is for: a cut makes new "
                    "parameters, so it has to be made, or cut along (cut_optimizer), after it"
                )
        elif isinstance(step, bool) or not isinstance(step, Real) or not 0 <= float(step) < math.inf:
            raise InputError(f"{step=}: a step's size is a finite number of 0 or more, or the optimizer")
        if not 0 <= share < math.inf:
            raise InputError(f"{share=}: expected a finite number of 0 or more")
        for part in parts:
            if isinstance(step, Optimizer):
                size = max((sizes.get(id(parameter), 0.0) for parameter in part.parameters), default=0.0)
            else:
                size = step
            if size * self.strength * share > 0:
                self._shrink(part, size * self.strength * share)

    def zeros(self, model: nn.Module) -> dict[str, Tensor]:
        """By group, which of its channels have no weight but zeros: bool, `[size]` or `[rows, size]`."""
        with torch.no_grad():
            return {group.name: (group.norms() == 0).reshape(group.shape) for group in self._of(model)[0]}

    def describe(self) -> dict[str, Any]:
        """The strength, how it acts, and for which groups."""
        names = {"keep": self._bounds.keep, "only": self._bounds.only}
        return {"strength": self.strength, "proximal": self.proximal, "growth": self.growth, **names}

    # -- as a hook -------------------------------------------------------------------------------------------------

    def on_start(self, run: Run) -> None:
        """Find the weights; raises InputError where the model is not the one that was traced, or is in shards."""
        run.require_whole(type(self).__name__)
        self._of(run.model)

    def after_backward(self, run: Run) -> None:
        """Add the penalty's gradient, unless it acts by proximal steps."""
        if not self.proximal:
            self.add_gradients(run.model, share=self._share(run.step + 1, run.steps))

    def after_step(self, run: Run) -> None:
        """Take the proximal step."""
        if self.proximal:
            self.shrink(run.model, run.optimizer, share=self._share(run.step, run.steps))

    def after_epoch(self, run: Run, metrics: Metrics) -> None:
        """Add "penalty", its value, to the metrics, and "zero_channels", how many are exactly zero."""
        with torch.no_grad():
            metrics["penalty"] = metrics.get("penalty", 0.0) + float(self.value(run.model))
        metrics["zero_channels"] = float(sum(int(zero.sum()) for zero in self.zeros(run.model).values()))

    def _share(self, step: int, steps: int) -> float:
        """The share of its strength that the penalty has in a step, counted from 1."""
        whole = self.growth * steps
        return min(1.0, step / whole) if whole > 0 else 1.0

    def _of(self, model: nn.Module) -> tuple[tuple[Channels, ...], tuple[Part, ...]]:
        """The model's channels and the penalty's parts, found anew where its trainable parameters are others, or lie
        elsewhere.
        """
        trainable = [(p, p.device) for p in model.parameters() if p.requires_grad]
        if self._bound is None or not _same(self._bound[0], trainable):
            if self._example_inputs is not None and not is_traced(model, self.groups):
                self.groups = self._chosen(trace(model, self._example_inputs))
            groups = channels_of(model, self.groups, self._belongs)
            self._bound = (trainable, groups, self._parts(groups))
            if not self._bound[2]:
                self._bound = None
                raise InputError(
                    f"{type(self).__name__} has nothing to act on: no group that it is for has trainable "
                    "weights that it counts; print(graph) lists the groups, and why some must stay"
                )
        return self._bound[1], self._bound[2]

    def _chosen(self, graph: DependencyGraph) -> tuple[ChannelGroup, ...]:
        return tuple(graph.groups[position] for position in candidate_groups(graph.groups, self._bounds))


def step_sizes(optimizer: Optimizer) -> Mapping[int, float]:
    """By the id of each parameter, how far a gradient that stays the same moves it in each step, per unit.

    That is the learning rate, divided by one less the momentum: the buffer of an optimiser with momentum m sums
    1 + m + m ** 2 + ... of it.
    """
    sizes = {}
    for group in optimizer.param_groups:
        gain = (1 - group.get("dampening", 0.0)) / (1 - group.get("momentum", 0.0))
        sizes.update({id(parameter): float(group["lr"]) * gain for parameter in group["params"]})
    return sizes


def _same(before: Placed, now: Placed) -> bool:
    """Whether these are the same tensors in the same places."""
    return len(before) == len(now) and all(
        p is q and old == new for (p, old), (q, new) in zip(before, now, strict=True)
    )


def _listed(name: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    listed = tuple(patterns) if isinstance(patterns, Iterable) else ()
    if not isinstance(patterns, Iterable) or not all(isinstance(each, str) for each in listed):
        raise InputError(f"{name}={patterns!r}: expected names of groups, layers or tensors, globs, or kinds")
    return listed
