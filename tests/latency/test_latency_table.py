from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.errors import RunError, TargetError
from edgeprune.latency.kernels import Family
from edgeprune.latency.table import KEPT, Cell, NetworkRuns, Run, Site, Table

HERE = {"cpu": "one", "runtime": "onnxruntime", "runtime_version": "1.2", "threads": 1}
FAMILY = Family("onnxruntime 1.2", "conv", "u8.s8.u8", size=(8, 8), kernel=(3, 3), stride=(1, 1))


def cell(*times: float) -> Cell:
    return Cell(times, 0.01, 20 * len(times), "2026-01-01")


def filled() -> Table:
    site = Site("a.conv", FAMILY, 16, 32, "a.conv", "both", "a", 0.5)
    run = Run({"g": 8}, ("a",), 0.5, 0.01, "2026-01-01")
    table = Table(HERE).with_cells([(FAMILY, 16, 32, cell(0.5)), (FAMILY, 8, 32, cell(0.3))])
    return table.with_network("net int8", NetworkRuns(1.25, 0.01, (site,), (run,)))


def test_round_trip_and_stable_bytes(tmp_path: Path) -> None:
    table = filled()
    table.save(tmp_path / "a.jsonl")
    again = Table.load(tmp_path / "a.jsonl", HERE, "ms")
    assert again == table
    again.save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_a_kernel_that_only_the_whole_network_showed_is_read_again(tmp_path: Path) -> None:
    """Red before: its family was not written, so that the search could not read its own table."""
    other = replace(FAMILY, kind="gemm")
    known = filled()
    name, record = next(iter(known.networks.items()))
    site = replace(record.sites[0], node="head", family=other)
    known = known.with_network(name, replace(record, sites=(*record.sites, site)))
    assert other.id not in known.families
    known.save(tmp_path / "a.jsonl")
    again = Table.load(tmp_path / "a.jsonl")
    assert again.networks == known.networks and again.cells == known.cells
    assert again.families[other.id] == other


def test_one_more_cell_is_one_more_line(tmp_path: Path) -> None:
    filled().save(tmp_path / "a.jsonl")
    filled().with_cells([(FAMILY, 24, 32, cell(0.4))]).save(tmp_path / "b.jsonl")
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("a.jsonl", "b.jsonl"))
    assert len(set(after) - set(before)) == 1 and set(before) < set(after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runtime_version": "1.3"}, "runtime_version is '1.2' there and '1.3' here"),
        ({"cpu": "two"}, "cpu is 'one' there and 'two' here"),
        ({"threads": 4}, "threads is 1 there and 4 here"),
    ],
)
def test_a_table_of_another_device_is_refused_with_the_reason(tmp_path: Path, change: dict, words: str) -> None:
    filled().save(tmp_path / "a.jsonl")
    with pytest.raises(TargetError, match="another device") as caught:
        Table.load(tmp_path / "a.jsonl", {**HERE, **change}, "ms")
    assert words in str(caught.value)


def test_instructions_are_never_read_as_milliseconds(tmp_path: Path) -> None:
    filled().save(tmp_path / "a.jsonl")
    with pytest.raises(TargetError, match="it counts ms, the device instructions"):
        Table.load(tmp_path / "a.jsonl", HERE, "instructions")


@pytest.mark.parametrize(
    "text",
    ["", "not json\n", '{"row":"header","version":99,"unit":"ms","fingerprint":{}}\n', '{"row":"cell"}\n'],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(RunError, match="not a latency table"):
        Table.load(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    filled().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError):
        Table.load(path)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="profile"):
        Table.load(tmp_path / "none.jsonl")


def test_merging_joins_cells_of_two_models_and_refuses_another_device() -> None:
    other = Table(HERE).with_cells([(FAMILY, 16, 32, cell(0.7)), (FAMILY, 64, 64, cell(2.0))])
    merged = filled().merge(other.with_network("other int8", NetworkRuns(3.0, 0.0, ())))
    assert merged.cells[FAMILY.id, 16, 32].samples == (0.5, 0.7)
    assert merged.cells[FAMILY.id, 16, 32].count == 40
    assert set(merged.networks) == {"net int8", "other int8"}
    assert merged.merge(merged) == merged
    with pytest.raises(TargetError):
        merged.merge(Table({**HERE, "cpu": "two"}))


def test_a_cell_keeps_its_latest_samples_and_a_network_measured_again_replaces_its_run() -> None:
    table = Table(HERE)
    for i in range(KEPT + 4):
        table = table.with_cells([(FAMILY, 1, 1, cell(float(i)))])
    assert table.cells[FAMILY.id, 1, 1].samples == tuple(float(i) for i in range(4, KEPT + 4))
    again = filled().with_runs("net int8", [Run({"g": 8}, ("a",), 0.6, 0.01, "2026-01-02")])
    assert [run.ratio for run in again.networks["net int8"].runs] == [0.6]
