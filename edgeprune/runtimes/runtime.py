"""What edgeprune knows of one runtime. Each has a file of its own, `runtimes/NAME.py`, that is found by its name.

A runtime is added by at most three files: this one's sibling `NAME.py` with a `RUNTIME`, its half that runs on the
device, `devices/agent/run_NAME.py`, and a target's profile. docs/runtimes.md shows one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgeprune.devices import Artifact
from edgeprune.errors import MissingDependency, UsageError, did_you_mean
from edgeprune.runtimes.dialects import Dialect
from edgeprune.target import Target

HELPERS = frozenset({"__init__", "dialects", "runtime"})  # files here that are no runtime
Build = Callable[[Path, Path, Target, str, str], Artifact]


@dataclass(frozen=True)
class Option:
    """An option of the command line that one runtime has.

    Attributes:
        flag: such as "--streams".
        key: of `Target.execution.options`, and so of the runtime; DIALECT chooses the Q/DQ scheme instead.
        text: for --help.
        choices: the allowed words; empty: a whole number of at least 1.
    """

    flag: str
    key: str
    text: str
    choices: tuple[str, ...] = ()


DIALECT = "dialect"


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        name: as profiles name it; the file's own name.
        title: for people.
        build: (float or Q/DQ graph, folder, target, artifact's name, "fp32" or "int8") -> the artifact. It raises
            MissingDependency, RunError where the folder cannot be written, ModelError where the graph is refused.
        dialects: the Q/DQ schemes that are its own.
        suffixes: of an artifact's files, the one that it opens first.
        int8_kinds, int8_words: how its profiler tells kernels that multiply integers: what their kind starts with, or
            a word in the name of their implementation.
        weights_kind: the kind of its kernel for a linear layer of which weights alone are integers.
        packages: what a device needs of PyPI to run it.
        package: its own among them, which tells its version; empty: the device brings it, and it has none here.
        extra: of edgeprune, that installs it.
        options: of the command line, under targets of this runtime.
        flavours: its release carries several Q/DQ schemes, and each is checked by a linter of its own.
        optimises_on: families of targets whose devices can write an optimised graph that is shipped beside.
        ends: artifacts may take bytes and give classes ([export]): tried on this runtime.
        from_memory: opens an artifact that lies in no folder, and leaves nothing of it in one: it may be encrypted.
        clocks: the device's clocks must be locked by hand before measuring, and a bundle's README says so.
        float_hint: its option for the type of float layers; empty: it has none, or takes no other type by itself.
        shorter: type -> features of a CPU, with any of which float layers run in it unless `float_hint` says otherwise.
    """

    name: str
    title: str
    build: Build = field(repr=False)
    dialects: tuple[Dialect, ...] = ()
    suffixes: tuple[str, ...] = (".onnx",)
    int8_kinds: tuple[str, ...] = ()
    int8_words: tuple[str, ...] = ()
    weights_kind: str = ""
    packages: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""
    options: tuple[Option, ...] = ()
    flavours: bool = False
    optimises_on: tuple[str, ...] = ()
    ends: bool = False
    from_memory: bool = False
    clocks: bool = False
    float_hint: str = ""
    shorter: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def runs_in_int8(self, kind: str, implementation: str) -> bool:
        """Whether a kernel of its profile multiplies integers."""
        return kind.startswith(self.int8_kinds) or any(word in implementation.lower() for word in self.int8_words)

    def version(self) -> str:
        """Its version on this machine; raises MissingDependency with the command that installs it."""
        if not self.package:
            raise MissingDependency(
                f"{self.title} is not needed here.", "It runs on the device: edgeprune devices probe DEVICE"
            )
        self.require()
        return importlib.metadata.version(self.package).split("-")[0]

    def require(self) -> None:
        """Raise MissingDependency unless its package can be imported here."""
        try:
            found = importlib.util.find_spec(self.package) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise MissingDependency(f"{self.package} is not installed.", f'pip install "edgeprune[{self.extra}]"')


def names() -> tuple[str, ...]:
    """Every runtime, by its file."""
    found = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(name for name in found if name not in HELPERS))


@cache
def load(name: str) -> Runtime:
    """The runtime of this name; raises UsageError for an unknown one."""
    known = names()
    if name not in known:
        raise UsageError(f"no runtime is called '{name}'.", did_you_mean(name, known) or f"Known: {', '.join(known)}.")
    module: Any = importlib.import_module(f"edgeprune.runtimes.{name}")
    runtime: Runtime = module.RUNTIME
    return runtime


def title(name: str) -> str:
    """The runtime's title; its name where nobody knows it (a result of another version)."""
    return load(name).title if name in names() else name
