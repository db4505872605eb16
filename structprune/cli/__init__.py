"""The command line, `structprune demo | inspect | prune | ...`: a face over the Python API."""

from __future__ import annotations

from structprune.cli.app import app, main

__all__ = ["app", "main"]
