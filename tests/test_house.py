"""The house stands: floors are held, nothing goes in circles, and starting it loads nothing heavy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgeprune"

# From the ground up (design: errors at the bottom, cli at the top). A room may import rooms of its own floor and below.
FLOORS = (
    {"errors", "_version", "files"},
    {"config"},
    {"target", "recipe", "stage"},
    {"result"},
    {"claims"},
    {"graph", "devices"},
    {"model", "workload", "runtimes", "report"},
    {"tasks", "engine"},
    {"recover", "quantize", "validate"},
    {"release"},
    {"latency", "compare"},
    {"search"},
    {"pipeline"},
    {"scale"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = (
    "errors",
    "_version",
    "files",
    "config",
    "target",
    "recipe",
    "result",
    "devices",
    "runtimes",
    "report",
    "release",
    "compare",
    "validate",
    "cli",
    "workload",
    "tasks",
)
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "PIL", "rich", "numpy")
SECONDS = 0.3
LINES = 450  # a file fits in one head: about 400


@dataclass(frozen=True)
class Import:
    """One import: who, what, where, and whether it happens as soon as the module is imported."""

    file: Path
    line: int
    module: str
    at_once: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def room(file: Path) -> str:
    """The room of a file: graph for edgeprune/graph/plan.py, target for edgeprune/target.py, "" for the front door."""
    part = file.relative_to(PACKAGE).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def imports(file: Path) -> Iterator[Import]:
    """Every import in a file, those under TYPE_CHECKING and inside functions too."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1]]

    def names(node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = package[: len(package) - node.level + 1] if node.level else []
        start = ".".join([*base, *([node.module] if node.module else [])])
        # `from edgeprune import target` imports the room `target`; `from edgeprune.graph import Plan` a name in it.
        return [f"{start}.{alias.name}" for alias in node.names] if start == PACKAGE.name else [start]

    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(file, child.lineno, name, at_once) for name in names(child))
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                yield from walk(child, False)
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_once and not later)

    yield from walk(ast.parse(file.read_text("utf-8")), True)


def target_room(module: str) -> str | None:
    """The room that an import leads to; None when it leads out of the house or to the front door."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name or len(parts) < 2:
        return None
    return parts[1] if parts[1] in FLOOR else None


def between_rooms() -> list[Import]:
    """Imports from one room to another. The front door (edgeprune/__init__.py) names all rooms, and is left out."""
    every = [item for file in files() if room(file) for item in imports(file)]
    return [item for item in every if target_room(item.module) not in (None, room(item.file))]


def test_every_room_has_its_floor():
    unknown = {room(file) for file in files()} - set(FLOOR) - {""}
    assert not unknown, f"give these a floor in FLOORS: {sorted(unknown)}"


@pytest.mark.long
def test_a_lower_floor_never_imports_a_higher_one():
    wrong = [str(item) for item in between_rooms() if FLOOR[target_room(item.module)] > FLOOR[room(item.file)]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
def test_there_are_no_circles_between_rooms():
    leads: dict[str, set[str]] = {}
    for item in between_rooms():
        leads.setdefault(room(item.file), set()).add(target_room(item.module))
    seen: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in seen:
            for other in sorted(leads.get(name, ())):
                visit(other, (*path, name))
            seen[name] = 1

    for name in leads:
        visit(name, ())


def modules_of(file: Path) -> str:
    """The dotted name of a file: edgeprune.graph for edgeprune/graph/__init__.py."""
    parts = [PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def between_files() -> dict[str, set[str]]:
    """Which file leads to which, by dotted names; a name taken from a package leads to its file, or to the package."""
    known = {modules_of(file) for file in files()}
    leads: dict[str, set[str]] = {name: set() for name in known}
    for file in files():
        mine = modules_of(file)
        package = mine if file.name == "__init__.py" else mine.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                wanted = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
            else:
                continue
            leads[mine].update(known.intersection(wanted) - {mine})
    return leads


@pytest.mark.long
def test_there_are_no_circles_of_files():
    """Imports under TYPE_CHECKING and inside functions count: they say that two files cannot be understood apart."""
    leads = {name: sorted(others) for name, others in between_files().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in leads[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in leads:
        visit(name, ())


@pytest.mark.long
def test_the_agent_imports_nothing_of_edgeprune():
    """It runs on devices where edgeprune is not installed; its own modules are reached relatively."""
    agent = PACKAGE / "devices" / "agent"
    inside = f"{PACKAGE.name}.devices.agent"
    wrong = []
    for file in sorted(agent.glob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and node.level == 0
                and (node.module or "").split(".")[0] == "edgeprune"
            ):
                wrong.append(f"{file.name}:{node.lineno}")
            if isinstance(node, ast.Import) and any(a.name.split(".")[0] == "edgeprune" for a in node.names):
                wrong.append(f"{file.name}:{node.lineno}")
        wrong += [
            str(item)
            for item in imports(file)
            if item.module.startswith("edgeprune") and not item.module.startswith(inside)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
def test_torch_stays_out_of_rooms_that_do_not_need_it():
    rooms = [file for file in files() if room(file) in WITHOUT_TORCH]
    wrong = [
        str(item) for file in rooms for item in imports(file) if item.at_once and item.module.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_test_files_have_one_name():
    """pytest imports them by their bare name, where their folder is no package."""
    plain = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in plain]
    assert not {name for name in names if names.count(name) > 1}


def test_no_file_is_too_long():
    long = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files()}
    assert not {name: lines for name, lines in long.items() if lines > LINES}


def loaded(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in an interpreter of its own."""
    script = f"{code}\nimport sys\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    done = python(script)
    return set(done.stdout.rpartition("LOADED")[2].split())


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


HELP = """
from edgeprune.cli import main
try:
    main({arguments!r})
except SystemExit as done:
    assert done.code in (0, None), done.code
"""


@pytest.mark.parametrize(
    "code",
    ["import edgeprune", HELP.format(arguments=["--help"]), HELP.format(arguments=["intel-cpu", "run", "--help"])],
    ids=["import edgeprune", "edgeprune --help", "edgeprune intel-cpu run --help"],
)
def test_starting_loads_nothing_heavy(code):
    assert not loaded(code) & set(HEAVY)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(WITHOUT_TORCH)))
def test_importing_a_light_room_loads_no_torch(name):
    folder = PACKAGE / name
    parts = sorted(folder.glob("*.py")) if folder.is_dir() else []
    modules = [f"edgeprune.{name}", *(f"edgeprune.{name}.{path.stem}" for path in parts if path.stem[:2] != "__")]
    assert "torch" not in loaded("\n".join(f"import {module}" for module in modules))


def cpu_seconds(script: str) -> float:
    """The least processor time of five runs: what this machine's other work cannot stretch."""
    best = float("inf")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best


@pytest.mark.long
@pytest.mark.parametrize(
    "code", ["import edgeprune", HELP.format(arguments=["--help"])], ids=["import edgeprune", "edgeprune --help"]
)
def test_starting_is_quick(code):
    taken = cpu_seconds(code) - cpu_seconds("pass")
    assert taken < SECONDS, f"{taken:.2f} s"


def test_these_checks_can_fail(tmp_path, monkeypatch):
    """A room that imports upwards, under TYPE_CHECKING and inside a function too, is found."""
    here = sys.modules[__name__]
    house = tmp_path / "edgeprune"
    (house / "graph").mkdir(parents=True)
    monkeypatch.setattr(here, "ROOT", tmp_path)
    monkeypatch.setattr(here, "PACKAGE", house)
    for text in (
        "from edgeprune.search import x",
        "if TYPE_CHECKING:\n    from edgeprune.pipeline import x",
        "def f():\n    from edgeprune import cli",
        "from ..latency import table",
        "import edgeprune.quantize.ranges.ranges",
    ):
        (house / "graph" / "bad.py").write_text(text + "\n")
        with pytest.raises(AssertionError, match=r"graph.bad\.py"):
            test_a_lower_floor_never_imports_a_higher_one()
    (house / "graph" / "bad.py").write_text("from edgeprune import devices\n")
    (house / "devices").mkdir()
    (house / "devices" / "worse.py").write_text("from edgeprune.graph import Plan\n")
    with pytest.raises(AssertionError, match=r"(devices|graph) -> (graph|devices) -> "):
        test_there_are_no_circles_between_rooms()


def test_a_circle_of_files_is_found(tmp_path, monkeypatch):
    here = sys.modules[__name__]
    house = tmp_path / "edgeprune"
    (house / "graph").mkdir(parents=True)
    monkeypatch.setattr(here, "ROOT", tmp_path)
    monkeypatch.setattr(here, "PACKAGE", house)
    (house / "__init__.py").write_text("")
    (house / "graph" / "__init__.py").write_text("from edgeprune.graph.top import x\n")
    (house / "graph" / "low.py").write_text("")
    for text in (
        "from edgeprune.graph.low import x",
        "if TYPE_CHECKING:\n    from edgeprune.graph import low",
        "def f():\n    from . import low",
        "import edgeprune.graph.low",
    ):
        (house / "graph" / "top.py").write_text(text + "\n")
        (house / "graph" / "low.py").write_text("")
        test_there_are_no_circles_of_files()
        for back in ("from edgeprune.graph import x", "from .top import x"):
            (house / "graph" / "low.py").write_text(back + "\n")
            with pytest.raises(AssertionError, match=r"edgeprune\.graph\.low -> edgeprune"):
                test_there_are_no_circles_of_files()
