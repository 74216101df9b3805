"""`python -m edgeprune`: the command line, where the `edgeprune` script is not on the path."""

from edgeprune.cli import main

if __name__ == "__main__":
    main()
