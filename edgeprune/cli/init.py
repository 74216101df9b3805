"""`edgeprune init FACTORY --data FOLDER`: a recipe, with what was found out about the network and the data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeprune import files
from edgeprune.cli import console
from edgeprune.cli.running import calm
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.pipeline import Drafted, Wanted

F = TypeVar("F", bound=Callable[..., Any])
OUT = Path("recipe.toml")
OWN = {  # options with a key of their own
    "FACTORY": "model.factory",
    "--data": "data.source",
    "--weights": "model.weights",
    "--argument": "model.arguments",
    "--input": "model.input",
    "--task": "task.kind",
    "--decode": "task.decode",
    "--classes": "data.classes",
    "--speedup": "budget.speedup",
    "--latency-ms": "budget.latency_ms",
    "--max-drop": "budget.max_drop",
}


def given_options(command: F) -> F:
    """What `init` and `quick` take of the network, the data and the wish."""
    options = [
        click.option("--data", default="", metavar="PATH", help="A folder, an .npz, a table, or file.py:function."),
        click.option("--weights", default="", metavar="FILE", help="Trained weights, where the factory has none."),
        click.option(
            "--argument", "arguments", multiple=True, metavar="NAME=VALUE", help="For the factory; repeatable."
        ),
        click.option("--input", "shape", default="", metavar="C,H,W", help="One example's shape; else it is tried."),
        click.option("--task", default="", metavar="KIND", help="classification, detection, ...; else it is guessed."),
        click.option("--classes", default="", metavar="A,B,...", help="In the order of the outputs; else by name."),
        click.option("--decode", default="", metavar="NAME", help="Of detection: a decoder, or file.py:function."),
        click.option("--features", default="", metavar="FUNCTION", help="Of sounds: file.py:function."),
        click.option("--tokenizer", default="", metavar="FILE", help="Of texts: tokenizer.json; else beside them."),
        click.option("--speedup", type=float, help="Over the dense INT8 artifact; 1.5 where nothing is said."),
        click.option("--latency-ms", type=float, help="Or milliseconds of one run on the device."),
        click.option("--max-drop", type=float, help="In the metric's unit; else what the test split can tell."),
        click.option(
            "--set",
            "keys",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Any other key of the recipe, such as data.mean=[0.5]; repeatable.",
        ),
        click.option("--name", default="", metavar="NAME", help="Of the run; else the network's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("init")
@click.argument("factory", default="")
@given_options
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), default=OUT, help="recipe.toml.")
@click.option("--force", is_flag=True, help="Write over a recipe that is there.")
@click.option("--yes", is_flag=True, help="Ask nothing, on a terminal too.")
@json_option
@verbose_option
def command(factory: str, out: Path, force: bool, yes: bool, **given: Any) -> None:
    """Write a recipe from a network and data; on a terminal, ask for what is missing.

    FACTORY is "path/to/file.py:callable" or "package.module:callable": what builds your trained network.

    The data is looked at first, and what was found is said. The task, the input's shape and the range of the pixels
    are tried with the network where nobody states them. What is written plans without a change.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} is there already.", "Give another name with -o, or --force to write over it.")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: no such folder.", "Make it first, or give another place with -o.")
    ask = not yes and not current().as_json and sys.stdin.isatty() and sys.stderr.isatty()
    wanted = wish(factory, ask=ask, **given)
    made = drafted(wanted, out.parent, force)
    files.write_text(out, made.text)
    if current().as_json:
        findings = [finding.to_dict() for finding in made.findings]
        echo_json({"recipe": str(out), "dense": made.dense, "findings": findings, "text": made.text})
        return
    for finding in made.findings:
        console.say(console.style("! ", fg="yellow"), f"{finding.message} {finding.remedy}")
    console.say(out)
    console.say(f"  Next: edgeprune TARGET plan {out}   (edgeprune targets lists them)", err=True)


def wish(
    factory: str,
    *,
    data: str,
    arguments: tuple[str, ...],
    shape: str,
    classes: str,
    keys: tuple[str, ...] = (),
    ask: bool = False,
    **rest: Any,
) -> Wanted:
    """What the user said, and on a terminal what the user answers; raises UsageError for what is missing."""
    if ask:
        factory = factory or click.prompt("Network (file.py:function)", err=True)
        data = data or click.prompt("Data (folder, .npz, or file.py:function)", err=True)
        if not rest["weights"]:
            rest["weights"] = click.prompt(
                "Weights (Enter: the function brings them)", "", show_default=False, err=True
            )
        if rest["speedup"] is None and rest["latency_ms"] is None:
            rest["speedup"] = click.prompt("Speed-up over the dense INT8 artifact", 1.5, type=float, err=True)
    if not factory:
        raise UsageError("the network is missing.", "edgeprune init mynet.py:build --data FOLDER")
    if not data:
        raise UsageError("--data is missing.", f"edgeprune init {factory} --data FOLDER")
    if rest["speedup"] is not None and rest["latency_ms"] is not None:
        raise UsageError("--speedup and --latency-ms are both given.", "Give one of them.")
    from edgeprune.pipeline import Wanted

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    sections = _keys(keys)
    return Wanted(factory, data, _arguments(arguments), input=_shape(shape), classes=names, sections=sections, **rest)


def drafted(wanted: Wanted, folder: Path, again: bool) -> Drafted:
    """The recipe, with what was found said on standard error."""
    from edgeprune import pipeline

    def say(about: str, text: str) -> None:
        console.say(f"{about:<9}{text}", err=True)

    with calm(current().verbose):
        return pipeline.draft(wanted, folder, say, again)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        sizes = (0,)
    if sizes and min(sizes) < 1:
        raise UsageError(f"--input {text}: not a shape.", "Give positive sizes with commas, such as --input 3,224,224.")
    return sizes


def _arguments(given: tuple[str, ...]) -> dict[str, object]:
    """NAME=VALUE, the value as TOML has it; a word without quotes is text."""
    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--argument {text}: not NAME=VALUE.", "--argument num_classes=14, for example.")
        found[name] = _value(value)
    return found


def _keys(given: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """SECTION.KEY=VALUE, by section; what may stand there is the recipe's to say."""
    found: dict[str, dict[str, object]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section.isidentifier() and key.isidentifier()):
            raise UsageError(f"--set {text}: not SECTION.KEY=VALUE.", "--set data.mean=[0.5,0.5,0.5], for example.")
        for option, path in OWN.items():
            if name.strip() == path:
                raise UsageError(f"--set {name.strip()}: that is {option}.", f"Give {option}.")
        found.setdefault(section, {})[key] = _value(value)
    return found


def _value(text: str) -> object:
    """As TOML has it; a word without quotes is text."""
    try:
        return files.parse_toml(f"value = {text}".encode(), UsageError, "--set")["value"]
    except UsageError:
        return text
