"""`edgeprune inspect`: groups, frozen parts and costs of any network, and a clear word where it cannot be built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

BROKEN = """
def registry():
    return {}["resnet999"]

def plain():
    return 3
"""


@pytest.mark.long
def test_groups_layers_and_costs_as_a_table_and_as_json(project, edgeprune_command):
    shown = edgeprune_command("inspect", "net.py:net", "--input", "3,16,16")
    assert shown.exit_code == 0, shown.stderr
    assert "layers" in shown.stdout and "parameters" in shown.stdout
    found = json.loads(edgeprune_command("inspect", "net.py:net", "--input", "3,16,16", "--json").stdout)
    assert found["groups"] and all(group["size"] >= 1 for group in found["groups"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("factory", "sizes", "wanted"),
    [
        ("broken.py:registry", "3,16,16", "broken.py:registry() failed: KeyError: 'resnet999'"),
        ("broken.py:plain", "3,16,16", "gave int, not a torch.nn.Module"),
        ("broken.py:nothing", "3,16,16", "nothing"),
        ("net.py:net", "3,0,16", "not a shape"),
        ("net.py:net", "5,16,16", "5"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(project, edgeprune_command, factory, sizes, wanted):
    Path("broken.py").write_text(BROKEN)
    failed = edgeprune_command("inspect", factory, "--input", sizes)
    assert failed.exit_code not in (0, 70)
    assert wanted in failed.stderr and "Traceback" not in failed.stderr and "defect" not in failed.stderr
