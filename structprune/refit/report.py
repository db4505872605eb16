"""What refitting did: to each layer, and to the network's outputs after each step."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LayerRefit", "RefitReport", "StepReport"]

_WEIGHTS = ("consumers", "lstsq")  # the steps that set weights; "fold" only sets constants


@dataclass(frozen=True)
class StepReport:
    """How far the network's outputs are from the original's once a step is done, on held-back batches.

    ``error`` is the size of the difference over the size of the original's outputs, ``cosine`` the mean over the
    samples of the cosine between both. ``step`` is "cut" (before all), or one of `STEPS`. A step that makes the
    error larger is taken back: ``taken`` is false, and the next step starts from what was before.
    """

    step: str
    error: float
    cosine: float
    taken: bool = True

    def __str__(self) -> str:
        back = "" if self.taken else ", taken back"
        return f"{self.step} {self.error:.3g} (cosine {self.cosine:.4f}{back})"


@dataclass(frozen=True)
class LayerRefit:
    """What a step did to one layer, named by its weight.

    ``before`` and ``after`` are the relative errors of its outputs on held-back data, ``tried`` that of the new
    weights: where that is not below ``before``, they are not taken, and ``after`` is ``before``.
    """

    name: str
    step: str
    before: float
    tried: float

    @property
    def taken(self) -> bool:
        """Whether the new weights are in place."""
        return self.tried < self.before

    @property
    def after(self) -> float:
        """The relative error of the weights that are in place."""
        return min(self.before, self.tried)


@dataclass(frozen=True)
class RefitReport:
    """What `refit` did: the outputs' error after each step, each layer in each step, the norms whose statistics were
    estimated anew, and the cut's consumers that could not be refitted, with the reason.
    """

    steps: tuple[StepReport, ...]
    layers: tuple[LayerRefit, ...]
    norms: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    batches: str

    @property
    def before(self) -> StepReport:
        """How far the outputs were from the original's after the cut alone."""
        return self.steps[0]

    @property
    def after(self) -> StepReport:
        """How far they are at the end: after the last step that was taken."""
        return [step for step in self.steps if step.taken][-1]

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        done = [*self._counted("folded", "fold"), *self._counted("refitted", *_WEIGHTS)]
        lines = [
            f"refit on {self.batches}: output error after {steps}",
            ", ".join([*done, f"{len(self.norms)} batch norms estimated anew"]),
        ]
        if self.left:
            shown = "; ".join(f"{name} ({why})" for name, why in self.left[:3])
            more = f" and {len(self.left) - 3} more" if len(self.left) > 3 else ""
            lines.append(f"not refitted: {shown}{more}")
        return "\n".join(lines)

    def _counted(self, what: str, *steps: str) -> list[str]:
        """How many layers these steps have changed, of those that they were for; nothing where they were not run."""
        ran = [step for step in self.steps if step.step in steps]
        tried = [layer for layer in self.layers if layer.step in steps]
        kept = {step.step for step in ran if step.taken}
        taken = {layer.name for layer in tried if layer.taken and layer.step in kept}
        known = {layer.name for layer in tried} | {name for name, _ in self.left}
        return [f"{len(taken)} of {len(known)} layers {what}"] if ran else []
