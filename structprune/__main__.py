"""`python -m structprune` is the command line."""

from structprune.cli import main

main()
