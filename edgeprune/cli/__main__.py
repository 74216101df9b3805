"""`python -m edgeprune.cli`: the same as the command `edgeprune`."""

from edgeprune.cli.app import main

main(prog_name="edgeprune")
