"""How the house is kept, in numbers: `python tests/house_counts.py [PACKAGE]`. `test_house_counts.py` holds them down.

runtime names      files outside runtimes/ and the agent's run_*.py that name a runtime in a string
lists of stages    tuples, lists and dicts that spell out three or more names of stages
writers            functions that give a finished file its name (os.replace, Path.replace, Path.rename) by themselves
untyped            lines with dict[str, Any] or Mapping[str, Any] outside the agent
long functions     of more than 60 lines
names twice        class names that stand for several classes
past the door      imports of another room's inner file instead of the room
whole runs         functions that take a whole run (`Context`) and not the parts of it that they need
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "edgeprune"
RUNTIMES = {"openvino", "onnxruntime", "tensorrt"}
STAGES = {"graph", "precision", "plan", "dense", "latency", "search", "recover", "quantize", "artifacts", "validate"}
STAGES.add("release")
LONG = 60
Files = dict[Path, ast.Module]


def read(package: Path) -> Files:
    """Every source file of the package, parsed."""
    paths = sorted(path for path in package.rglob("*.py") if "_data" not in path.parts)
    return {path.relative_to(package): ast.parse(path.read_text("utf-8")) for path in paths}


def in_agent(path: Path) -> bool:
    return path.parts[:2] == ("devices", "agent")


def runtime_names(files: Files) -> list[str]:
    found = []
    for path, tree in files.items():
        if path.parts[0] == "runtimes" or (in_agent(path) and path.name.startswith("run_")):
            continue
        if any(isinstance(node, ast.Constant) and node.value in RUNTIMES for node in ast.walk(tree)):
            found.append(str(path))
    return found


def lists_of_stages(files: Files) -> list[str]:
    found = []
    for path, tree in files.items():
        for node in ast.walk(tree):
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
                names = [part.value for part in parts if isinstance(part, ast.Constant) and part.value in STAGES]
                if len(set(names)) >= 3 and len(names) == len(parts):
                    found.append(f"{path}:{node.lineno}")
    return found


def writers(files: Files) -> list[str]:
    """A `.replace(x)` with one argument is a path's (a string's has two)."""
    found = []
    for path, tree in files.items():
        if in_agent(path) or path == Path("files.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                one = len(node.args) == 1 and not node.keywords
                if (node.func.attr in ("replace", "rename") and one) or ast.unparse(node.func) == "os.replace":
                    found.append(f"{path}:{node.lineno}")
    return found


def untyped(package: Path) -> list[str]:
    wanted = re.compile(r"\b(dict|Mapping)\[str, Any\]")
    found = []
    for path in sorted(package.rglob("*.py")):
        if not in_agent(path.relative_to(package)) and "_data" not in path.parts:
            lines = path.read_text("utf-8").splitlines()
            found += [f"{path.relative_to(package)}:{n}" for n, line in enumerate(lines, 1) if wanted.search(line)]
    return found


def long_functions(files: Files) -> list[str]:
    found = []
    for path, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONG:
                    found.append(f"{path}:{node.name} ({lines})")
    return found


def names_twice(files: Files) -> list[str]:
    names: Counter[str] = Counter()
    for path, tree in files.items():
        if not in_agent(path):
            names.update(node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name[0] != "_")
    return sorted(name for name, count in names.items() if count > 1)


def past_the_door(package: Path, files: Files) -> list[str]:
    rooms = {path.parts[0] for path in files if len(path.parts) > 1}

    def inner(module: str) -> str:
        parts = module.split(".")
        return parts[1] if parts[0] == package.name and len(parts) > 2 and parts[1] in rooms else ""

    found = []
    for path, tree in files.items():
        own = path.parts[0]
        for node in ast.walk(tree):
            modules: Iterator[str] = iter(())
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = iter([node.module])
            elif isinstance(node, ast.Import):
                modules = (alias.name for alias in node.names)
            found += [f"{path}:{node.lineno} {module}" for module in modules if inner(module) not in ("", own)]
    return found


def whole_runs(files: Files) -> list[str]:
    found = []
    for path, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [one.annotation for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if any(one is not None and ast.unparse(one).strip("'\"") == "Context" for one in taken):
                    found.append(f"{path}:{node.lineno} {node.name}")
    return found


def measure(package: Path = PACKAGE) -> dict[str, list[str]]:
    """Each count's places."""
    files = read(package)
    return {
        "runtime names": runtime_names(files),
        "lists of stages": lists_of_stages(files),
        "writers": writers(files),
        "untyped": untyped(package),
        "long functions": long_functions(files),
        "names twice": names_twice(files),
        "past the door": past_the_door(package, files),
        "whole runs": whole_runs(files),
    }


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "-v"]
    for title, places in measure(Path(arguments[0]).resolve() if arguments else PACKAGE).items():
        print(f"{title:16} {len(places):4}", *(f"\n    {place}" for place in places if "-v" in sys.argv), sep="")
