"""Pipelines as data: a recipe in YAML or JSON, checked before it is run, and taken up again wherever it was stopped."""

from __future__ import annotations

from structprune.recipes.recipe import Recipe
from structprune.recipes.run import Progress, RecipeResult, run_recipe

__all__ = ["Progress", "Recipe", "RecipeResult", "run_recipe"]
