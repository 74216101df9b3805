"""`python agent.pyz serve|worker|attach|daemon ...`: the ways the agent starts."""

from __future__ import annotations

import argparse
import json
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Start one part of the agent; returns its exit code."""
    parser = argparse.ArgumentParser(prog="edgeprune-agent")
    parser.add_argument("part", choices=["serve", "worker", "attach", "daemon"])
    parser.add_argument("--home", default="", help="the folder on the device that the agent may write to")
    parser.add_argument("--session", default="default", help="attach, daemon: which conversation to go on with")
    parser.add_argument("--worker", default="", help="JSON list: the command that starts a worker (emulation)")
    options = parser.parse_args(arguments)
    archive = os.path.abspath(sys.argv[0])
    worker = json.loads(options.worker) if options.worker else [sys.executable, archive, "worker"]
    home = os.path.abspath(os.path.expanduser(options.home))
    if options.part == "worker":
        from .worker import serve

        return serve()
    if options.part == "serve":
        from .supervisor import serve_stdio

        return serve_stdio(home, worker)
    from . import detached

    if options.part == "attach":
        return detached.attach(home, options.session, worker, archive)
    return detached.daemon(home, options.session, worker)


if __name__ == "__main__":
    raise SystemExit(main())
