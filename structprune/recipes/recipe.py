"""`Recipe`: a pipeline as data, read from YAML or JSON; what is wrong with it is said with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from structprune.errors import InputError
from structprune.inputs import parse_inputs
from structprune.recipes.cuts import Cutting, PruneGradually
from structprune.recipes.data import DataSource, OwnData
from structprune.recipes.fields import Seed, Strict
from structprune.recipes.functions import functions_in
from structprune.recipes.places import Document, explained, read
from structprune.recipes.steps import Evaluate, Export, Sparsify, Step, Train, kind_of, trainings

__all__ = ["Recipe"]


class Recipe(Strict):
    """A pipeline: a model, example inputs, data, and steps that are done in order.

    `model` is package.module:factory or file.py:factory, `input` sizes as on the command line, `data` digits, a mapping
    that names a data set, or file.py:function. A share `validation` of the training data is never trained on; every
    training step then reports the accuracy on it. Files are looked for beside the recipe. Raises InputError, from
    `load` and `parse`, for what no recipe can be: unknown keys, values out of range, steps that lack their data.

    >>> recipe = Recipe.parse('''
    ... version: 1
    ... model: nets.py:small
    ... input: 1x1x16x16
    ... data: digits
    ... steps:
    ...   - {step: train, epochs: 2, lr: 0.05}
    ...   - {step: prune, budget: {macs: 0.5}}
    ... ''')
    >>> [step.step for step in recipe.steps]
    ['train', 'prune']
    """

    version: Literal[1]
    model: str
    input: list[str]
    rewrite: bool = False
    data: DataSource | None = None
    validation: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    seed: Seed = 0
    steps: Annotated[list[Step], Field(min_length=1)]
    _base: Path = PrivateAttr(default_factory=Path)
    _document: Document = PrivateAttr(default_factory=lambda: Document(None, "recipe"))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a file, YAML or, if it ends in .json, JSON."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        return Recipe.parse(text, str(file), file.parent, as_json=file.suffix == ".json")

    @staticmethod
    def parse(text: str, name: str = "recipe", base: Path = Path(), *, as_json: bool = False) -> Recipe:
        """The recipe in a text; `name` goes into messages, and files are looked for in `base`."""
        return Recipe.of(read(text, name, as_json), base)

    @staticmethod
    def of(document: Document | dict[str, Any], base: Path = Path()) -> Recipe:
        """The recipe of plain data."""
        given = document if isinstance(document, Document) else Document(document, "recipe")
        try:
            recipe = Recipe.model_validate(given.content)
        except ValidationError as error:
            raise InputError(explained(error, given)) from None
        recipe._base, recipe._document = base, given
        return recipe

    @property
    def base(self) -> Path:
        """The folder beside which files are looked for."""
        return self._base

    def at(self, *place: str | int) -> str:
        """The file, the line and the place, with which a message about a part of the recipe begins."""
        return self._document.at(*place)

    def files(self) -> set[Path]:
        """The Python files that it names: they are its writer's."""
        named = [self.model, *(name for step in self.steps for _, name in functions_in(step))]
        named += [self.data.function] if isinstance(self.data, OwnData) else []
        files = (name.rpartition(":")[0] for name in named)
        return {(self.base / file).resolve() for file in files if file.endswith(".py")}

    def to_json(self) -> str:
        """The recipe as JSON with all that was left out filled in."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @field_validator("input", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        several = [given] if isinstance(given, str) else given
        if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
            raise ValueError(f"expected sizes such as 1x3x224x224, or a list of such; got {given}")
        return several

    @field_validator("input")
    @classmethod
    def _sizes(cls, given: list[str]) -> list[str]:
        parse_inputs(given)
        return given

    @field_validator("data", mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        return {"name": "own", "function": given} if ":" in given else {"name": given}

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for number, step in enumerate(self.steps):
            problem = self._problem(step, self.steps[:number])
            if problem is not None:
                raise PydanticCustomError(
                    "misplaced",
                    "{problem}",
                    {"place": ["steps", number], "problem": f"{kind_of(step)} {problem}"},
                )
        return self

    def _problem(self, step: Any, before: list[Any]) -> str | None:
        """Why a step cannot be done after those before it, with the data that the recipe names."""
        drawn = isinstance(step, Cutting) and (step.data or step.calibration)
        if self.data is None and (drawn or trainings(step) or isinstance(step, Evaluate)):
            return "needs data, and the recipe names none"
        if isinstance(step, Export) and any(isinstance(e, Export) and e.file == step.file for e in before):
            return f"writes {step.file}, and an earlier step writes it too"
        if isinstance(step, PruneGradually) and any(isinstance(each, Sparsify) for each in before):
            return "comes after sparsify, whose masks it would lose: sparsify after it"
        if isinstance(step, Train) and step.distillation is not None and not any(map(_cuts, before)):
            return "has the network before its first cut for a teacher: nothing is cut before it"
        if not self.validation:
            return self._unmeasured(step)
        return None

    def _unmeasured(self, step: Any) -> str | None:
        """What a step would measure on validation data, of which there are none."""
        none = "on validation data, but validation: is 0; hold some back"
        if isinstance(step, Evaluate) and step.data == "validation":
            return f"is {none}"
        if isinstance(step, PruneGradually) and step.measures:
            return f"has a floor for what is measured {none}"
        for _, training in trainings(step):
            if training.metric is not None:
                return f"has a metric {none}"
            if training.measures:
                return f"stops by the accuracy {none}, or say metric: loss"
        return None


def _cuts(step: Any) -> bool:
    return isinstance(step, (Cutting, Sparsify))
