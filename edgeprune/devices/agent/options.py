"""What a runtime may be told: names and values that change how it computes, never where it reads or writes.

Options come from a profile or from a bundle that somebody else made. OpenVINO would write a cache wherever CACHE_DIR
says, and ONNX Runtime a graph wherever a session entry says; so what is not listed is refused. Each `run_NAME.py` has
the list of its runtime: OPTIONS, name -> allowed values (a tuple, or a range of whole numbers). The one list is used on
the host (profiles, `verify`), by the agent and by a bundle's run.py.
"""

from __future__ import annotations

import importlib
from typing import Any

YES_NO = (True, False, "YES", "NO")
SWITCH = (True, False, "0", "1", 0, 1)
COUNT = range(1025)


def runtime_half(name: Any) -> Any:
    """The module `run_NAME` that opens artifacts of this runtime; None where there is none."""
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        return None
    try:
        return importlib.import_module(".run_%s" % name, __package__)
    except ModuleNotFoundError as error:
        if error.name == "%s.run_%s" % (__package__, name):
            return None
        raise


def wrong(runtime: str, options: Any) -> str:
    """What is wrong with the options for a runtime, as a sentence that names the known ones; empty: nothing."""
    half = runtime_half(runtime)
    if half is None:
        return "there is no runtime %r." % (runtime,)
    if not isinstance(options, dict):
        return "options are names with values, not %s." % type(options).__name__
    known = half.OPTIONS
    for name, value in options.items():
        if name not in known:
            return "%s has no option %s here; known: %s." % (half.TITLE, str(name)[:80], ", ".join(sorted(known)))
        if not _fits(value, known[name]):
            return "%s's option %s cannot be %.80r; it may be %s." % (half.TITLE, name, value, _spell(known[name]))
    return ""


def _fits(value: Any, allowed: Any) -> bool:
    """1 is not True here, nor "1.0" a number; a whole number may be written as text."""
    if isinstance(allowed, range):
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            value = int(value)
        return type(value) is int and value in allowed
    return any(type(value) is type(one) and value == one for one in allowed)


def _spell(allowed: Any) -> str:
    if isinstance(allowed, range):
        return "a whole number from %d to %d" % (allowed[0], allowed[-1])
    return " or ".join(str(one) for one in dict.fromkeys(map(str, allowed)))
