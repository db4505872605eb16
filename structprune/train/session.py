"""Hooks, pruning and resumption in a training loop of one's own, which stays as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from structprune.budget import Budget
from structprune.errors import InputError
from structprune.pipeline import PruneResult, prune
from structprune.plan import PruningPlan, plans_from_json, plans_to_json
from structprune.refit import transfer
from structprune.surgery import apply_plan
from structprune.tensors import require_module
from structprune.train.evaluation import measured
from structprune.train.hooks import RUN_STATE, Hook, Metrics, Run, listed, require_state
from structprune.train.optimizer_state import cut_optimizer
from structprune.train.optimizers import require_optimizer_of

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["Session"]


class Session:
    """A training run whose loop is yours: inside `with`, the hooks follow the optimiser's steps and the epochs.

    `after_backward` runs at the beginning of `optimizer.step()` and `after_step` at its end, whoever calls it (a
    gradient scaler too); `before_step` is not called. `model` is the module itself, not what wraps it for several
    processes. `schedule` is only kept for `state_dict`; step it yourself. `steps` is the number of all steps, for hooks
    that need it; `hooks` is one or several.

    Raises `InputError` for what is no module, no optimiser or no hook, for an optimiser without a parameter of the
    model, and where `epochs` or `loss` is called outside of `with` though there are hooks.

    >>> import torch
    >>> net, data = nn.Linear(4, 2), torch.randn(8, 4)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with Session(net, optimizer) as session:
    ...     for epoch in session.epochs(3):
    ...         loss = net(data).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         session.log(loss=float(loss.detach()))
    >>> [entry["epoch"] for entry in session.run.history], session.run.step
    ([1.0, 2.0, 3.0], 3)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        hooks: Hook | Sequence[Hook] = (),
        schedule: LRScheduler | None = None,
        steps: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        require_module(model)
        require_optimizer_of(model, optimizer, "optimizer")
        self.model, self.optimizer, self._entered = model, optimizer, False
        self.plans: tuple[PruningPlan, ...] = ()
        self.run = Run(model, optimizer, steps, accelerator, schedule, hooks=listed(hooks))
        self._metrics: Metrics = {}

    def __enter__(self) -> Session:
        self.run.at_exit(self.optimizer.register_step_pre_hook(self._before).remove)
        self.run.at_exit(self.optimizer.register_step_post_hook(self._after).remove)
        try:
            for hook in self.run.hooks:
                hook.on_start(self.run)
        except BaseException:
            self.run.close()
            raise
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for hook in self.run.hooks if kind is None else ():
                hook.on_end(self.run)
        finally:
            self.run.close()

    def _require_entered(self) -> None:
        if self.run.hooks and not self._entered:
            raise InputError("the session's hooks only run inside it: with Session(...) as session: ...")

    def _before(self, *_: Any) -> None:
        for hook in self.run.hooks:
            hook.after_backward(self.run)

    def _after(self, *_: Any) -> None:
        self.run.step += 1
        for hook in self.run.hooks:
            hook.after_step(self.run)

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs that are left of `count`, from 1, until a hook stops the run.

        Where the body of the loop is through, the epoch counts as done: its metrics are those given to `log`.
        """
        self._require_entered()
        run = self.run
        while run.epoch < count and not run.stopped:
            run.epoch += 1
            lr, self._metrics = run.lr, {}
            yield run.epoch
            metrics: Metrics = {"epoch": float(run.epoch), "lr": lr, **self._metrics}
            run.history.append(metrics)
            for hook in run.hooks:
                hook.after_epoch(run, metrics)

    def log(self, **metrics: float) -> None:
        """Adds to the metrics of the epoch under way; raises `InputError` for what is no number."""
        self._metrics.update({name: measured(value, f"log({name}=...)") for name, value in metrics.items()})

    def loss(self, loss: Tensor, inputs: Any, output: Any, targets: Any = None) -> Tensor:
        """The loss with what the hooks make of it (`on_loss`): call it before `backward()` to train by distillation."""
        self._require_entered()
        for hook in self.run.hooks:
            loss = hook.on_loss(self.run, loss, inputs, output, targets)
        return loss

    def prune(self, example_inputs: Any, budget: Budget, **options: Any) -> PruneResult:
        """The result of `structprune.prune` on the model, which is cut in place, and the optimiser's state with it.

        `options` are those of `prune`. Call it between two steps; gradients are gone afterwards. A wrapper for several
        processes (DistributedDataParallel) holds the old parameters: put it around the model anew. Raises what `prune`
        and `cut_optimizer` raise, with model and optimiser as they were.
        """
        if options.pop("inplace", False) or options.pop("rewrite", False):
            raise InputError("a session cuts its own model in place: inplace= and rewrite= are not for it")
        result = prune(self.model, example_inputs, budget, **options)
        self._cut(result.plan, result.model)
        return PruneResult(self.model, result.plan, result.report)

    def _cut(self, plan: PruningPlan, small: nn.Module) -> None:
        """Cuts model and optimiser in place; `small` is what comes of it, made first to see that all can be cut."""
        cut_optimizer(self.optimizer, self.model, small, plan)
        before = dict(self.model.named_parameters())
        apply_plan(self.model, plan, inplace=True)
        with torch.no_grad():
            transfer(small, self.model)
        cut_optimizer(self.optimizer, before, self.model, plan, inplace=True)
        self.plans = (*self.plans, plan)
        for hook in self.run.hooks:
            hook.after_cut(self.run, plan)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on (see `Run.state_dict`), and the plans that cut the model."""
        return {**self.run.state_dict(), "plans": plans_to_json(self.plans) if self.plans else ""}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the epoch in which `state_dict` was taken; to be called before `epochs`.

        A model that the script has built anew in full size is cut by the plans first. Raises `InputError` for what is
        no such state and where the model was cut otherwise, `PlanError` where the plans are not its own.
        """
        require_state(state, (*RUN_STATE, "plans"))
        plans = plans_from_json(state["plans"]) if state["plans"] else ()
        if self.plans != plans[: len(self.plans)]:
            raise InputError("the model of this session was cut otherwise than the one that the state is of")
        for plan in plans[len(self.plans) :]:
            self._cut(plan, apply_plan(self.model, plan))
        self.run.load_state_dict(state)
