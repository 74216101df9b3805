"""The pages say what the code does: every error, every recipe key and default, every command that they print."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import msgspec
import pytest

from edgeprune import errors
from edgeprune.cli import app, main
from edgeprune.cli.steps import STEPS, target_group
from edgeprune.recipe import Recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (
    "quickstart.md",
    "data.md",
    "recipe.md",
    "report.md",
    "bundle.md",
    "rollout.md",
    "errors.md",
    "your-network.md",
    "../README.md",
    "benchmarks.md",
)
ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgepruneError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_the_catalogue_has_every_error_with_its_exit_code(kind):
    rows = re.findall(rf"^\| `{kind.__name__}` \| (\d+) \| .+ \| .+ \|$", (DOCS / "errors.md").read_text(), re.M)
    assert rows == [str(kind.exit_code)]


def test_the_catalogue_has_no_error_that_is_gone():
    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "errors.md").read_text(), re.M)
    assert set(named) == {kind.__name__ for kind in ERRORS}


def spelled(field):
    """A default as the page spells it."""
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "none"
    if value == 1 / 255:
        return "`1/255`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value) if not isinstance(value, tuple) else json.dumps([int(v) for v in value])}`"


@pytest.mark.parametrize("section", ["model", "data", "task", "budget", "search", "recover", "quantize", "export"])
def test_the_recipe_page_has_every_key_with_its_default(section):
    kind = next(field.type for field in msgspec.structs.fields(Recipe) if field.name == section)
    text = (DOCS / "recipe.md").read_text().split(f"## [{section}]")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text, re.M))
    assert rows == {field.name: spelled(field) for field in msgspec.structs.fields(kind)}


def commands():
    """(page, command) for each edgeprune command that a page prints."""
    for page in PAGES:
        for line in (DOCS / page).read_text().splitlines():
            found = re.match(r"(?:    \$? ?|)edgeprune ([a-zA-Z].*)", line)
            if found:
                yield page, found[1].split("   ")[0].split(" #")[0].split(" |")[0].strip()


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_every_command_on_a_page_is_one_that_is_understood(page, command):
    """Names, arguments and options are parsed by click itself; nothing is run."""
    words = command.split()
    context = main.make_context("edgeprune", [], resilient_parsing=True)
    if words[0] in app.COMMANDS:
        found, rest = main.get_command(context, words[0]), words[1:]
    else:
        found, rest = target_group(words[0]).commands[words[1]], words[2:]
        assert words[1] in (*STEPS, "run", "quick")
    if hasattr(found, "commands"):
        found, rest = found.commands[rest[0]], rest[1:]
    parsed = found.make_context(words[0], list(rest))  # raises a UsageError otherwise
    assert parsed.command is found


def test_links_between_pages_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_picture_of_the_readme_is_drawn_from_the_figures():
    """Every point of front.svg's data is in head_to_head.json, and the file is small."""
    picture = DOCS / "front.svg"
    assert 1_000 < picture.stat().st_size < 100_000
    text = picture.read_text()
    for label in ("edgeprune", "Torch-Pruning, the best of its four", "FLOPs-driven widths"):
        assert label in text


@pytest.mark.slow
def test_the_python_of_the_readme_runs_to_a_verdict(tmp_path, monkeypatch):
    """As it stands there, on a network of its own; the verdict depends on how busy the machine is."""
    (code,) = re.findall(r"```python\n(.+?)```", (DOCS.parent / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    known = {}
    try:
        exec(compile(code, "README.md", "exec"), known)
    except errors.GateError as refused:
        assert refused.outcome.result["dense_fp32"]["accuracy"] > 0.9
    else:
        assert known["outcome"].verdict == "release"
