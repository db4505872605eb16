"""`python -m structprune.cli`: the same as the `structprune` script."""

from __future__ import annotations

from structprune.cli.app import main

if __name__ == "__main__":
    main()
