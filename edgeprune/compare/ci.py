"""What build servers read: JUnit's XML, GitHub's annotations and its page of a job.

JUnit: https://github.com/testmoapp/junitxml. Annotations: "Workflow commands for GitHub Actions", whose values escape
%, CR and LF, and in properties also : and the comma.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from edgeprune import files
from edgeprune.compare.aspects import Aspect
from edgeprune.compare.bundles import Compared
from edgeprune.errors import EdgepruneError

KINDS = {"regression": "error", "unknown": "warning", "worse": "warning"}


def junit(
    path: Path, found: Sequence[Aspect], *, suite: str, strict: bool = False, error: EdgepruneError | None = None
) -> None:
    """Write a suite with one test an aspect: failed, skipped where it is not known, or passed.

    Args:
        error: why nothing could be compared: one test, in error.

    Raises:
        OSError: it cannot be written.
    """
    failing = {"regression", "unknown"} if strict else {"regression"}
    root = ElementTree.Element("testsuites")
    failed = [one for one in found if one.word in failing]
    skipped = [one for one in found if one.word == "unknown" and one not in failed]
    counts = {"tests": len(found) + bool(error), "failures": len(failed), "errors": int(error is not None)}
    facts = {"name": suite, **{key: str(count) for key, count in counts.items()}, "skipped": str(len(skipped))}
    made = ElementTree.SubElement(root, "testsuite", {key: _plain(value) for key, value in facts.items()})
    for one in found:
        case = ElementTree.SubElement(made, "testcase", {"classname": _plain(suite), "name": one.name})
        if one in failed:
            ElementTree.SubElement(case, "failure", {"message": _plain(one.message), "type": one.word})
        elif one in skipped:
            ElementTree.SubElement(case, "skipped", {"message": _plain(one.message)})
        else:
            ElementTree.SubElement(case, "system-out").text = _plain(one.message)
    if error is not None:
        case = ElementTree.SubElement(made, "testcase", {"classname": _plain(suite), "name": "bundles"})
        ElementTree.SubElement(case, "error", {"message": _plain(str(error)), "type": type(error).__name__})
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def github_annotations(compared: Compared) -> list[str]:
    """Workflow commands that GitHub shows beside the change."""
    told = [one for one in compared.aspects if one.word in KINDS]
    return [
        f"::{KINDS[one.word]} title={_property(f'{compared.name} on {compared.target}: {one.name}')}::"
        f"{_value(one.message)}"
        for one in told
    ]


def github_summary(compared: Compared) -> str:
    """A table in Markdown for $GITHUB_STEP_SUMMARY."""
    rows = [f"| {one.name} | {one.word} | {_cell(one.message)} |" for one in compared.aspects]
    title = f"### {_cell(compared.name)} on {_cell(compared.target)}: {_cell(compared.new.name)}"
    return "\n".join([title, "", "| | | |", "|---|---|---|", *rows, ""])


def _value(text: str) -> str:
    return _plain(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _value(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    for mark in "\\`*_[]<>|&":
        text = text.replace(mark, f"&#{ord(mark)};") if mark != "&" else text
    return " ".join(_plain(text).split())


def _plain(text: str) -> str:
    """Without what XML forbids and terminals obey; a bundle's strings are somebody else's."""
    return "".join(one if one.isprintable() else " " for one in text)
