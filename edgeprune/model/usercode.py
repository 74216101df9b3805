"""Import and call what users wrote: factories and data functions.

A file's neighbours can be imported from it at any time: while it is imported, while its callable runs, and later.
Modules of two projects may share a name: those of the project whose code runs are the ones that are found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import InputError, ModelError, did_you_mean

_projects: dict[str, dict[str, ModuleType]] = {}  # folder -> its modules, while another project's have their names


def load_callable(
    spec: str, what: str, base: Path | None = None, error: type[InputError] = ModelError
) -> Callable[..., Any]:
    """The callable that `spec` names.

    Args:
        spec: "path/to/file.py:name" or "package.module:name". Paths are tried from the current folder, then `base`.
        what: said in errors, such as "[model] factory".
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise error(f"{what}: '{spec[:200]}' is not of the form 'file.py:callable' or 'package.module:callable'.")
    file = _file(place, what, base, error) if place.endswith(".py") else None
    module = _load_file(file, what, error) if file else _load_module(place, what, error)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise error(f"{what}: '{place}' has no '{name}'.", did_you_mean(name, known))
        found = getattr(found, part)
    if not callable(found):
        raise error(f"{what}: '{spec}' is not callable.")
    return _at_home(found, file.parent) if file else found


def call(
    function: Callable[..., Any], what: str, error: type[InputError], arguments: Mapping[str, object] | None = None
) -> Any:
    """`function(**arguments)`; whatever it raises is an `error`, and what it prints goes to standard error."""
    given = ", ".join(f"{key}={value!r}"[:60] for key, value in (arguments or {}).items())
    called = f"It is called with {given}." if given else "It is called without arguments."
    with _explained(f"{what}({given}) failed", error, called):
        return function(**(arguments or {}))


@contextlib.contextmanager
def _explained(what: str, error: type[InputError], remedy: str = "") -> Iterator[None]:
    """Raise `error` for everything that the user's code raises, sys.exit() too; only Ctrl-C goes through."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for what edgeprune itself says
            yield
    except KeyboardInterrupt:
        raise
    except SystemExit as cause:
        raise error(
            f"{what}: it called sys.exit({str(cause.code)[:80]}).",
            "A script that does its work when it is imported needs 'if __name__ == \"__main__\":' around that.",
        ) from cause
    except BaseException as cause:
        raise error(f"{what}: {short(cause)}.", remedy) from cause


def short(cause: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return f"{type(cause).__name__}: {text[:200]}".rstrip(".")


def _file(place: str, what: str, base: Path | None, error: type[InputError]) -> Path:
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        for path in (Path(place), *([base / place] if base else [])):
            if path.is_file():
                return path.resolve()
    remedy = "The path is relative to the folder you are in, then to the recipe."
    raise error(f"{what}: {place[:300]}: no such file.", remedy)


def _load_file(path: Path, what: str, error: type[InputError]) -> ModuleType:
    name = f"_edgeprune_user_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _explained(f"{what}: {path} failed while it was imported", error), _home(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_module(place: str, what: str, error: type[InputError]) -> ModuleType:
    missing: str | None = place[:200]
    with _explained(f"{what}: module '{place[:200]}' failed while it was imported", error):
        try:
            if all(part.isidentifier() for part in place.split(".")):
                return importlib.import_module(place)
        except ModuleNotFoundError as cause:
            missing = cause.name
    raise error(f"{what}: no module named '{missing}'.", "Install it, or name a file: 'path/to/file.py:callable'.")


def _at_home(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`function`, run with the modules of its own folder in reach."""

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        with _home(folder):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Let imports find the modules of `folder` first, whatever other projects have called theirs.

    Afterwards the folder stays at the end of the path, so that a forward pass may import a neighbour too.
    """
    here = str(folder)
    for other in [place for place in _projects if place != here]:
        _give_way(other, folder)
    for name, module in _projects.setdefault(here, {}).items():
        sys.modules[name] = module
    _projects[here] = {}
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _give_way(other: str, folder: Path) -> None:
    """Put modules of the project in `other` aside whose names `folder` has as well."""
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        inside = str(where).startswith(other + os.sep) and not top.startswith("_edgeprune_user_")
        both = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
        if inside and both and not str(where).startswith(str(folder) + os.sep):
            _projects[other][name] = sys.modules.pop(name)
