"""Tables that travel: found by fingerprint, joined without counting twice, and another device's refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from click.testing import CliRunner

from edgeprune.cli import main
from edgeprune.errors import MissingDependency, RunError, TargetError, UsageError
from edgeprune.latency import Table, TableStore, joined, same_grade
from edgeprune.latency.kernels import Family
from edgeprune.latency.table import Cell, NetworkRuns, Run
from edgeprune.pipeline import warm

HERE = {
    "machine": "aarch64",
    "cpus": ["cortex-a76"],
    "runtime": "onnxruntime",
    "runtime_version": "1.31.1",
    "threads": 1,
}


@pytest.fixture
def family():
    return Family("onnxruntime 1.31.1", "conv")


def table(family, samples=(1.0, 1.1), fingerprint=HERE, dense=2.0):
    made = Table(fingerprint).with_cells([(family, 8, 8, Cell(tuple(samples), 0.01, 10, "2026-11-28"))])
    return made.with_network("net", NetworkRuns(dense, 0.0, (), (Run({}, (), 1.0, 0.01, "2026-11-28"),)))


def test_a_place_gives_back_what_is_of_this_device_and_nothing_else(family, tmp_path):
    store = TableStore.open(str(tmp_path / "place"))
    assert store.find(HERE, "ms") is None
    store.put(table(family))
    other = {**HERE, "runtime_version": "1.32.0"}
    store.put(table(family, (5.0,), other))
    found = store.find(HERE, "ms")
    assert found is not None and found.cells == table(family).cells and found.networks == table(family).networks
    assert store.find({**HERE, "threads": 2}, "ms") is None and store.find(HERE, "instructions") is None
    assert len(list(store.tables())) == 2


def test_tables_of_another_version_are_passed_by(family, tmp_path, monkeypatch):
    place = tmp_path / "place"
    store = TableStore.open(str(place))
    with monkeypatch.context() as patch:
        for module in ("edgeprune.latency.store", "edgeprune.latency.table"):
            patch.setattr(f"{module}.VERSION", 1)
        old = store.put(table(family))
    assert store.find(HERE, "ms") is None and list(store.tables()) == []
    new = store.put(table(family, (2.0,)))
    found = store.find(HERE, "ms")
    assert found is not None and found.cells == table(family, (2.0,)).cells
    assert Path(old).is_file() and [name for name, _ in store.tables()] == [new]
    with pytest.raises(RunError, match="not a latency table of version 2"):
        Table.load(Path(old))


def test_two_that_write_at_once_lose_nothing_and_count_nothing_twice(family, tmp_path):
    store = TableStore.open(f"memory://{tmp_path.name}")
    store.put(table(family, (1.0,)))
    first, second = (store.find(HERE, "ms") for _ in range(2))
    mine = first.with_cells([(family, 16, 8, Cell((2.0,), 0.01, 5, "2026-11-28"))])
    theirs = second.with_cells([(family, 8, 8, Cell((1.2,), 0.01, 5, "2026-11-28"))])
    store.put(mine)
    store.put(theirs)
    found = store.find(HERE, "ms")
    assert {key[1:]: sorted(cell.samples) for key, cell in found.cells.items()} == {(8, 8): [1.0, 1.2], (16, 8): [2.0]}
    assert len(list(store.tables())) == 1  # what went into it is gone
    assert joined(found, found).cells == found.cells


def test_another_speed_grade_is_told_apart(family):
    same_grade(table(family, dense=2.0), "net", 2.2, "there")
    same_grade(table(family, dense=2.0), "another", 9.0, "there")
    with pytest.raises(TargetError, match=r"another speed grade.*2\.6 ms here and 2 there"):
        same_grade(table(family, dense=2.0), "net", 2.6, "there")


def test_what_lies_there_is_checked(family, tmp_path):
    store = TableStore.open(str(tmp_path))
    path = Path(store.put(table(family)))
    text = path.read_text()
    for bad, says in ((text.replace("1.1", "-1.1"), "no latency"), (text[:-40], "not a latency table"), ("", "table")):
        path.write_text(bad)
        with pytest.raises(RunError, match=says):
            store.find(HERE, "ms")


def test_a_place_that_cannot_be_used(family, tmp_path):
    with pytest.raises(MissingDependency, match="s3"):
        TableStore.open("s3://bucket/tables")
    with pytest.raises(UsageError, match="not a place"):
        TableStore.open("nonsense://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be read or written"):
        TableStore.open(str(tmp_path / "file" / "under")).put(table(family))

    class Forbidden:
        """A bucket without rights, as fsspec's libraries say it."""

        protocol = ("s3",)

        def invalidate_cache(self):
            pass

        def ls(self, *_, **__):
            raise PermissionError("Access Denied")

    with pytest.raises(RunError, match=r"s3://b.*Access Denied"):
        TableStore("s3://b", Forbidden(), "b").find(HERE, "ms")


def test_a_bucket_that_is_not_there_is_not_made(family):
    """Under fsspec making a folder makes its bucket too: a slip of the pen would have the fleet measure anew."""

    class Buckets:
        """What s3fs does, in short."""

        protocol = ("s3",)

        def __init__(self):
            self.made = {"team": {}}

        def invalidate_cache(self):
            pass

        def ls(self, path, detail):
            return [name for name in self.made.get(path.split("/")[0], {}) if name.startswith(f"{path}/")]

        def makedirs(self, path, exist_ok):
            self.made.setdefault(path.split("/")[0], {})

        def pipe_file(self, path, data):
            if path.split("/")[0] not in self.made:
                raise FileNotFoundError("The specified bucket does not exist")
            self.made[path.split("/")[0]][path] = data

        def cat_file(self, path, start, end):
            return self.made[path.split("/")[0]][path][start:end]

    system = Buckets()
    TableStore("s3://team/tables", system, "team/tables").put(table(family))
    assert TableStore("s3://team/tables", system, "team/tables").find(HERE, "ms").cells == table(family).cells
    with pytest.raises(RunError, match=r"s3://tema/tables.*bucket does not exist"):
        TableStore("s3://tema/tables", system, "tema/tables").put(table(family))
    assert list(system.made) == ["team"]


class Denied(fsspec.AbstractFileSystem):
    """A bucket that may neither be read nor written."""

    protocol = "denied"

    def ls(self, path, detail=True, **_):
        raise PermissionError("Access Denied")


class Shown(fsspec.AbstractFileSystem):
    """A bucket that may be read, and holds nothing."""

    protocol = "shown"

    def ls(self, path, detail=True, **_):
        return []

    def pipe_file(self, path, value, **_):
        raise PermissionError("Access Denied")


def test_a_run_with_a_bucket_without_rights(family, tmp_path, monkeypatch):
    """Reading is refused before anything is measured; what cannot be written is not shared, and a line says so."""
    for one in (Denied, Shown):
        fsspec.register_implementation(one.protocol, one, clobber=True)
    bench = SimpleNamespace(
        probe=SimpleNamespace(fingerprint=HERE), target=SimpleNamespace(protocol=SimpleNamespace(unit="ms"))
    )
    said: list[str] = []
    voice = SimpleNamespace(say=lambda stage, message: said.append(message))
    monkeypatch.setenv("EDGEPRUNE_TABLES", "denied://team/tables")
    with pytest.raises(RunError, match=r"denied://team/tables.*Access Denied"):
        warm.fleet(bench, tmp_path, voice, "net")
    monkeypatch.setenv("EDGEPRUNE_TABLES", "shown://team/tables")
    assert warm.fleet(bench, tmp_path, voice, "net") == Table(HERE, "ms") and not said
    warm.tell_fleet(voice, "latency", table(family))
    assert len(said) == 1 and "not added to shown://team/tables" in said[0] and "Access Denied" in said[0]


def command(*arguments, **environment):
    return CliRunner(env=environment).invoke(main, ["table", *map(str, arguments)], prog_name="edgeprune")


@pytest.mark.long
def test_the_commands(family, tmp_path):
    run = tmp_path / "run"
    (run / "latency").mkdir(parents=True)
    table(family).save(run / "latency" / "table.jsonl")
    place = tmp_path / "place"
    assert command("export", run).exit_code == 2
    done = command("export", run, EDGEPRUNE_TABLES=str(place))
    assert done.exit_code == 0, done.stderr
    facts = json.loads(command("info", place, "--json").stdout)["tables"]
    assert [(one["device"], one["runtime"], one["cells"]) for one in facts] == [("cortex-a76", "onnxruntime 1.31.1", 1)]
    assert command("import", place, "--into", tmp_path / "mine").exit_code == 0
    refused = command("import", place, "--into", tmp_path / "no", "--target", "x86-onnxruntime")
    assert refused.exit_code == 2 and "a latency table of another device" in refused.stderr
    assert not (tmp_path / "no").exists()
    table(family, fingerprint={**HERE, "threads": 4}).save(tmp_path / "other.jsonl")
    mixed = command("merge", run, tmp_path / "other.jsonl", "--out", tmp_path / "both.jsonl")
    assert (mixed.exit_code == 2 and "threads is 1 there and 4 here" in mixed.stderr) or "threads" in mixed.stderr
    assert not (tmp_path / "both.jsonl").exists()
    assert command("merge", run, place, "--out", tmp_path / "both.jsonl").exit_code == 0
    assert command("info", tmp_path / "empty").exit_code == 11
    (run / "latency" / "table.jsonl").unlink()  # a run that has none has other files called so
    (run / "events.jsonl").write_text('{"event": "begin"}\n')
    done = command("export", run, "--into", tmp_path / "no")
    assert done.exit_code == 11 and "no tables there" in done.stderr and "Remove" not in done.stderr
