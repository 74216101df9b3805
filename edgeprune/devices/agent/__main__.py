"""`python agent.pyz serve|worker|attach|daemon ...`: the ways the agent starts."""

from __future__ import annotations

import argparse
import json
import sys


def main(arguments: list[str] | None = None) -> int:
    """Start one part of the agent; returns its exit code."""
    parser = argparse.ArgumentParser(prog="edgeprune-agent")
    parser.add_argument("part", choices=["serve", "worker"])
    parser.add_argument("--home", default="", help="the folder on the device that the agent may write to")
    parser.add_argument("--worker", default="", help="JSON list: the command that starts a worker (emulation)")
    options = parser.parse_args(arguments)
    worker = json.loads(options.worker) if options.worker else [sys.executable, sys.argv[0], "worker"]
    if options.part == "worker":
        from .worker import serve

        return serve()
    from .supervisor import serve_stdio

    return serve_stdio(options.home, worker)


if __name__ == "__main__":
    raise SystemExit(main())
