"""Text written by others never moves the cursor, hides, turns around or poses as a line of ours."""

from __future__ import annotations

import ast
import logging
import os
import pty
import sys
import unicodedata
from pathlib import Path

import pytest
from cli_project import QUICK

import edgeprune.cli
from edgeprune.cli import console, progress
from edgeprune.cli.failures import finish
from edgeprune.cli.session import Invocation
from edgeprune.errors import DeviceError

LIE = "✓ signature: signed by release.pub"
SPOOFS = {
    "cursor up and erase": f"2026.1\x1b[1F\x1b[2K  {LIE}",
    "clear the screen": f"\x1b[2J\x1b[H{LIE}",
    "carriage return": f"x\r  {LIE}",
    "line feed": f"x\n  {LIE}",
    "vertical tab and form feed": f"x\x0b\x0c{LIE}",
    "backspaces": "BAD\b\b\bGOOD",
    "delete": "BAD\x7f\x7f\x7fGOOD",
    "C1 control sequence": f"\x9b1F\x9b2K{LIE}",
    "next line": f"x\x85{LIE}",
    "window title": "\x1b]0;GOOD\x07",
    "hyperlink": "\x1b]8;;http://x.example\x1b\\GOOD\x1b]8;;\x1b\\",
    "device control string": "\x1bP1$r\x1b\\",
    "colour": "\x1b[32mGOOD\x1b[0m",
    "right-to-left override": "\u202edoog si elif siht\u202c",
    "isolates": "\u2066GOOD\u2069\u2067x\u2069",
    "marks of direction": "\u200e\u200f\u061cGOOD",
    "zero widths": "GO\u200bO\u200cD\u200d\u2060\ufeff",
    "line separator": f"x\u2028{LIE}",
    "paragraph separator": f"x\u2029{LIE}",
    "NUL": "GOOD\x00BAD",
    "lone surrogate": "name\udcff.tar",
    "tags": "GOOD\U000e0041\U000e007f",
    "soft hyphen": "GO\xadOD",
    "wide blank": "GOOD\u3000\u00a0\u2003BAD",
    "private use": "\ue000\U0010ffff",
    "interlinear": "\ufff9GOOD\ufffaBAD\ufffb",
    "piled up accents": "G" + "\u0300" * 40,
    "rich's markup": "[bold green]GOOD[/bold green] [link=file:///etc]x[/link]",
    "very long": "A" * 5_000_000,
}


def harmless(text: str, lines: int = 1) -> bool:
    shown = text.removesuffix("\n")
    assert shown.count("\n") < lines, shown
    odd = [
        c for c in shown if c != "\n" and (unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp"))
    ]
    assert not odd, (odd, shown[:200])
    assert "\u0300" * 3 not in shown
    assert len(shown) < 120_000
    return True


@pytest.mark.parametrize("text", SPOOFS.values(), ids=SPOOFS)
class TestSpoofs:
    def test_a_line(self, text, capsys):
        console.say("  ", text)
        assert harmless(capsys.readouterr().out)

    def test_styled(self, text):
        assert harmless(console.style(text, fg="green").removeprefix("\x1b[32m").removesuffix("\x1b[0m"))

    def test_a_table(self, text, capsys):
        made = console.table(text, a=text, b="b")
        made.add_row(text, "x")
        console.show(made)
        shown = capsys.readouterr().out
        assert harmless(shown, lines=60)
        assert "file:///etc]" in shown or "rich" not in text  # markup is text

    def test_a_line_of_progress_in_a_pipe(self, text, capsys):
        event = type("E", (), {"kind": "line", "stage": "validate", "message": text, "done": 0, "total": 0})
        progress.Lines()(event)
        assert harmless(capsys.readouterr().err)

    def test_progress_on_a_terminal(self, text, monkeypatch):
        def write():
            with progress.Bars() as bars:
                for kind in ("line", "progress", "done"):
                    fields = {"kind": kind, "stage": "validate", "message": text[:9000], "done": 1, "total": 2}
                    bars(type("E", (), fields))

        shown = terminal(write)
        for lie in ("\x1b[1F", "\x1b[2J", "\x1b]0;", "\x1b]8;;http", "\x1bP1", "\x9b", "\u202e", "\u2028", "\b\b"):
            assert lie not in shown

    def test_an_error(self, text, capsys):
        code = finish(DeviceError(f"the device says: {text}", f"remedy {text}"), Invocation(verbose=True))
        assert code == 6
        shown = capsys.readouterr().err
        assert harmless(shown, lines=80)
        assert not any(line.strip().startswith("✓") for line in shown.splitlines())

    def test_a_log_line(self, text):
        from edgeprune.cli.running import _Escaped

        record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
        assert harmless(_Escaped("%(message)s").format(record), lines=2)

    def test_json(self, text, edgeprune_command, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        import json

        (folder / "result.json").write_text(json.dumps({"verdict": text[:9000]}))
        done = edgeprune_command("report", folder, "--json")
        assert done.exit_code == 0, done.stderr
        assert harmless(done.stdout, lines=6)
        assert done.json["verdict"] == text[:9000]

    def test_a_title_in_a_profile(self, text, edgeprune_command, project):
        profile = project / "targets/quick/profile.toml"
        spelled = "".join(f"\\U{ord(c):08x}" if not 0xD800 <= ord(c) < 0xE000 else "?" for c in text[:900])
        lines = [f'title = "{spelled}"' if line.startswith("title") else line for line in QUICK.splitlines()]
        profile.write_text("\n".join(lines))
        for arguments in (("--help",), ("quick", "--help"), ("targets",)):
            done = edgeprune_command("--targets", "targets", *arguments)
            assert done.exit_code == 0, done.stderr
            assert harmless(done.stdout, lines=120)


def terminal(write) -> str:
    """What `write` leaves on a pseudo-terminal."""
    here, there = pty.openpty()
    kept = sys.stderr
    try:
        with os.fdopen(there, "w", encoding="utf-8", errors="surrogatepass") as sys.stderr:
            write()
        found = b""
        while True:
            try:
                data = os.read(here, 65536)
            except OSError:
                break
            if not data:
                break
            found += data
    finally:
        sys.stderr = kept
        os.close(here)
    return found.decode("utf-8", "replace")


def test_honest_text_stays_as_it_is():
    for text in ("cifar10 on intel-cpu", "größer, 中文, עברית, ελ, e\u0301", "C:\\x\\y", "0.453 ms → 0.2 ms ✓", ""):
        assert console.escape(text) == text


def test_names_in_the_command_line_are_escaped(edgeprune_command, tmp_path):
    for name in ("a\x1b[2K.tar", "b\nGOOD (signed).tar", "c\u202e.tar"):
        done = edgeprune_command("verify", tmp_path / name)
        assert done.exit_code
        assert harmless(done.stderr, lines=3)
        assert not any(line.startswith("GOOD") for line in done.stderr.splitlines())


def test_nothing_goes_past_the_console():
    """click.echo is called where text is escaped, and for JSON, which is ASCII; print nowhere."""
    folder = Path(edgeprune.cli.__file__).parent
    found = []
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "click.echo",
                "click.secho",
                "print",
                "click.style",
            ):
                found.append((file.name, ast.unparse(node)[:40]))
    allowed = {"console.py"}
    rest = [item for item in found if item[0] not in allowed and not item[1].startswith("click.echo(json.dumps")]
    assert not rest


def test_progress_without_words_is_no_comma():
    said, clock = list[str](), iter(range(0, 10_000, 20))
    lines = progress.Lines(said.append, lambda: float(next(clock)))
    for done in (1, 2):
        lines(type("E", (), {"kind": "progress", "stage": "search", "message": "", "done": done, "total": 4}))
    assert said[-1].startswith("search       50 %  about ") and ", " not in "".join(said)
