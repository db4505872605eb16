"""What the command lines of benchmarks have in common: help from the docstring, and figures that go into a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structprune.archive import write_text

__all__ = ["append", "appended", "parser_of", "write"]


def parser_of(name: str, told: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.<name>`, with what the file's docstring tells as its help.

    >>> parser_of("latency", "Latency of a network.\\n\\nUsage:").description
    'Latency of a network.'
    """
    summary, _, details = (told or "").partition("\n")
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def write(path: Path | None, document: Mapping[str, Any]) -> None:
    """Writes the document as JSON over what the file held, whole or not at all; nothing without a path."""
    if path is not None:
        write_text(path, json.dumps(document, indent=1) + "\n")


def append(path: Path | None, row: Mapping[str, Any]) -> None:
    """Appends the row to the file as a line of JSON, so that what was measured outlives an interrupted run."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def appended(path: Path | None) -> list[dict[str, Any]]:
    """The rows that `append` wrote to the file: none without a path or a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
