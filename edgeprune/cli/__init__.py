"""The command line: `edgeprune TARGET STEP RECIPE`.

`main` is the root click group and the entry point. Importing it loads neither torch nor any runtime.
"""

from __future__ import annotations

from edgeprune.cli.app import main as main

__all__ = ["main"]
