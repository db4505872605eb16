"""`structprune schema`: what a recipe may say, as a JSON schema that editors check it against."""

from __future__ import annotations

import sys

import structprune as sp
from structprune.cli.output import write_document

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON schema of recipes."""
    write_document(sp.Recipe.model_json_schema(), sys.stdout)
