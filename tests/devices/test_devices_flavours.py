"""A Jetson bundle carries two flavours of one network; run.py opens the one that the device's TensorRT takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprune.release.device import run

ARTIFACT: dict[str, Any] = {
    "runtime": "tensorrt",
    "files": ["pruned-int8.onnx"],
    "options": {"precision": "int8"},
    "threads": 1,
    "flavours": [
        {"dialect": "tensorrt-c", "files": ["c.onnx"], "options": {}, "since": ""},  # travels along, never chosen
        {
            "dialect": "tensorrt-b",
            "files": ["pruned-int8-b.onnx"],
            "options": {"precision": "int8", "strongly_typed": True},
            "since": "11",
        },
    ],
}
RUNNER = """
opened = []
def version(): return {version!r}
class Model:
    shape = (1, 3, 8, 8)
    def __init__(self, files, options, threads, home):
        opened.append((files, options, threads, home))
"""


@pytest.mark.parametrize(
    ("version", "file", "typed"),
    [
        ("8.5.2.2", "pruned-int8.onnx", False),
        ("10.3.0", "pruned-int8.onnx", False),
        ("10.16.2", "pruned-int8.onnx", False),
        ("11.4.1", "pruned-int8-b.onnx", True),
        ("12.0", "pruned-int8-b.onnx", True),
    ],
)
def test_run_py_opens_the_flavour_for_this_tensorrt(
    version: str, file: str, typed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").touch()
    (tmp_path / "agent" / "run_tensorrt.py").write_text(RUNNER.format(version=version))
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "agent"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        run.open_model({"artifact": ARTIFACT})
        ((files, options, threads, home),) = sys.modules["agent.run_tensorrt"].opened
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "agent"]:
            del sys.modules[name]
    assert files == {file: str(tmp_path / "artifact" / file)} and threads == 1
    assert bool(options.get("strongly_typed")) == typed and (Path(home) / "engines").is_dir()


def test_a_bundle_of_one_flavour_is_opened_as_it_is() -> None:
    for more in ({}, {"flavours": []}):
        alone = {key: value for key, value in ARTIFACT.items() if key != "flavours"} | more
        assert run.flavour({"flavours": [], **alone}, "11.4.1")["files"] == ["pruned-int8.onnx"]
