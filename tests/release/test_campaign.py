"""The campaigns, each a small one; benchmarks/campaigns/ runs the large ones and writes the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import release

CAMPAIGNS = Path(__file__).resolve().parents[2] / "benchmarks" / "campaigns"


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """The campaigns' modules are beside each other."""
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.long
def test_no_crafted_bundle_is_accepted_wrongly_and_every_flipped_bit_is_found(made, tmp_path):
    import bundles

    run, result = made
    bundle = release.bundle(run, result, tmp_path)
    assert release.verify(bundle, rerun=False).state == "intact"
    found = bundles.campaign(bundle, 40, 0)
    assert found["wrong"] == []
    assert sum(found["ends"].values()) == 40 and found["ends"]["intact"] and found["ends"]["bad"] > 20
    assert found["counts"]["other_weights: bad"] == 1
    flipped = bundles.flips(bundle, 40, 0)
    assert flipped["ends"] == {"refused": 40}


def test_a_resealed_bundle_agrees_with_itself(made, tmp_path):
    """Else the campaign would only show that its own forgeries are bad."""
    import bundles

    from edgeprune.release import archive

    run, result = made
    held = archive.read(release.bundle(run, result, tmp_path))
    members = bundles.reseal({name: held.read(name) for name in held.members})
    assert release.verify(archive.write(tmp_path / "again.tar", members), rerun=False).state == "intact"


@pytest.mark.long
def test_networks_that_must_not_be_released_are_refused_each_by_the_right_gate():
    import refused

    found = refused.campaign(2, 0, ("binary", "segmentation"))
    assert found["wrong"] == []
    assert found["must_not_be_released"] == found["refused"] and found["must_not_be_released"]["released"] >= 19
    assert found["honest_refused_by_chance"]["gates_refused"] <= 1


@pytest.mark.slow
def test_fuzzed_inputs_races_and_power_cuts_end_well(tmp_path):
    """In processes of their own: tries are forked, which a process with the threads of other tests must not be."""
    environment = {**os.environ, "PYTHONPATH": str(CAMPAIGNS.parents[1]), "EDGEPRUNE_CACHE": str(tmp_path / "cache")}
    kinds = ("sounds", "tables", "answers")
    for command in (("fuzz.py", *kinds, "--tries", "6"), ("locks.py", "--tries", "200"), ("power.py", "--tries", "8")):
        script, *arguments = command
        out = tmp_path / f"{script}.json"
        done = subprocess.run(
            [sys.executable, str(CAMPAIGNS / script), *arguments, "--out", str(out)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name, tries in (*((f"fuzz-{kind}", 6) for kind in kinds), ("locks.py", 200), ("power.py", 8)):
        facts = json.loads((tmp_path / f"{name}.json").read_text())
        assert facts["tries"] == tries and facts["failures"] == 0
