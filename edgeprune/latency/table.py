"""The latency table: every kernel cell that was measured on one device, and the whole runs that calibrate sums of them.

A table is a text file of sorted JSON lines (docs/latency.md has the format): it diffs, merges and resumes. Cells name
no model, so one table serves every network on its device. It belongs to one device fingerprint; on another CPU, runtime
version or thread count it is refused, and the difference is said.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.errors import RunError, TargetError
from edgeprune.graph import Configuration
from edgeprune.latency.kernels import Family

VERSION = 2  # 1: of graphs whose ranges were all one, which is faster than any real one
KEPT = 9  # samples kept of a cell: the most recent ones

CellKey = tuple[str, int, int]  # family id, c_in, c_out


@dataclass(frozen=True)
class Cell:
    """Measurements of one kernel at one pair of channel counts, in the table's unit, drift divided out.

    Attributes:
        samples: medians of separate profiles, the most recent KEPT, oldest first.
        mad: median absolute deviation within the last profile.
        count: executions behind all samples ever taken.
        date: of the last one, ISO.
    """

    samples: tuple[float, ...]
    mad: float
    count: int
    date: str
    implementation: str = ""

    @property
    def median(self) -> float:
        """The cell's time."""
        return statistics.median(self.samples)

    @property
    def noise(self) -> float:
        """Relative standard error of `median`: from the scatter of samples, or from within one profile."""
        middle = max(self.median, 1e-12)
        if len(self.samples) >= 3:
            spread: float = 1.48 * statistics.median([abs(value - middle) for value in self.samples])
        else:
            spread = max(1.48 * self.mad, 0.05 * middle)
        return max(spread / middle, 0.01) / float(len(self.samples) ** 0.5)


@dataclass(frozen=True)
class Site:
    """One kernel of one network's dense artifact, and how its channels follow from the network's groups.

    Attributes:
        node: of the float graph; the layer's name for a layer.
        family: the kernel's family.
        c_in, c_out: channels of the dense network.
        layer: the layer whose channels it follows; "" when no group changes it.
        side: "both" for the layer's own kernel; "out" or "in" for one that follows the layer's output or input; "part"
            for one that stands in its place under an option.
        block: the removable block that it vanishes with, or "".
        time: as measured when it was first seen.
        option: the option of its layer that it belongs to, "" for the dense network's.
    """

    node: str
    family: Family
    c_in: int
    c_out: int
    layer: str
    side: str
    block: str
    time: float
    option: str = ""


@dataclass(frozen=True)
class Run:
    """One network measured end to end, interleaved with the anchor.

    Attributes:
        widths, removed, options: what was kept; all empty for the dense network.
        ratio: latency over the dense artifact's, by way of the anchor (`sample.py`).
        spread: median absolute deviation of the rounds' ratios over their median.
    """

    widths: Mapping[str, int]
    removed: tuple[str, ...]
    ratio: float
    spread: float
    date: str
    options: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(network: Configuration, ratio: float, spread: float, date: str) -> Run:
        """A measurement of this network."""
        return Run(dict(network.widths), tuple(network.removed), ratio, spread, date, dict(network.options))

    @property
    def configuration(self) -> Configuration:
        """The network."""
        return Configuration(self.widths, self.removed, self.options)

    @property
    def key(self) -> str:
        """Equal for equal networks."""
        return self.configuration.key


@dataclass(frozen=True)
class NetworkRuns:
    """What a table knows of one network.

    Attributes:
        dense: latency of the dense artifact when the network was first seen.
        profiler_cost: what the profiler added to each kernel then.
        sites: its kernels; runs: the networks cut from it.
        optional: kernels that stand in place of a layer's own under an option.
    """

    dense: float
    profiler_cost: float
    sites: tuple[Site, ...]
    runs: tuple[Run, ...] = ()
    optional: tuple[Site, ...] = ()


@dataclass(frozen=True)
class Table:
    """See the module's docstring. `families` is id -> family; `networks` is `ArtifactBuilder.network` -> record."""

    fingerprint: Mapping[str, object]
    unit: str = "ms"
    families: Mapping[str, Family] = field(default_factory=dict)
    cells: Mapping[CellKey, Cell] = field(default_factory=dict)
    networks: Mapping[str, NetworkRuns] = field(default_factory=dict)

    def with_cells(self, found: Iterable[tuple[Family, int, int, Cell]]) -> Table:
        """A table with these measurements added to what is there."""
        families, cells = dict(self.families), dict(self.cells)
        for family, c_in, c_out, cell in found:
            families[family.id] = family
            key = (family.id, c_in, c_out)
            cells[key] = _join(cells[key], cell) if key in cells else cell
        return dataclasses.replace(self, families=families, cells=cells)

    def with_network(self, name: str, record: NetworkRuns) -> Table:
        """A table with this record in place of the network's old one."""
        return dataclasses.replace(self, networks={**self.networks, name: record})

    def with_runs(self, name: str, runs: Iterable[Run]) -> Table:
        """A table with these runs added; a network measured again replaces its older run."""
        record = self.networks[name]
        merged = {run.key: run for run in (*record.runs, *runs)}
        return self.with_network(name, dataclasses.replace(record, runs=tuple(merged.values())))

    def with_optional(self, name: str, sites: Iterable[Site]) -> Table:
        """A table with these kernels of options added; one that is known already stays."""
        record = self.networks[name]
        known = {(site.node, site.option): site for site in (*sites, *record.optional)}
        return self.with_network(name, dataclasses.replace(record, optional=tuple(known.values())))

    def merge(self, other: Table) -> Table:
        """Both tables' measurements; raises TargetError when they are of different devices."""
        check_device(self, other.fingerprint, other.unit, "the other table")
        merged = self
        for (family, c_in, c_out), cell in other.cells.items():
            if self.cells.get((family, c_in, c_out)) != cell:
                merged = merged.with_cells([(other.families[family], c_in, c_out, cell)])
        for name, record in other.networks.items():
            if name in merged.networks:
                merged = merged.with_runs(name, record.runs).with_optional(name, record.optional)
            else:
                merged = merged.with_network(name, record)
        return merged

    def save(self, path: Path) -> None:
        """Write the file whole or not at all; raises RunError."""
        lines = "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in _rows(self))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, lines)
        except OSError as cause:
            raise RunError(
                f"{path}: the latency table cannot be written ({cause}).", "Free space, or choose another folder."
            ) from None

    @classmethod
    def load(cls, path: Path, fingerprint: Mapping[str, object] | None = None, unit: str | None = None) -> Table:
        """Read a table.

        Args:
            fingerprint: of the device that it is to be used for; None reads it for looking at only.

        Raises:
            RunError: not readable, damaged, or written by another version of edgeprune.
            TargetError: it was measured on another device, runtime version or with other threads.
        """
        try:
            lines = files.read(path, RunError, "Build it: edgeprune TARGET profile RECIPE.").splitlines()
            where, again = f"{path}: not a latency table of version {VERSION}", "Delete it and profile again."
            table = _parse([files.parse_json(line, RunError, where, again) for line in lines if line])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as cause:
            raise RunError(
                f"{path}: not a latency table of version {VERSION} ({cause}).", "Delete it and profile again."
            ) from None
        if fingerprint is not None:
            check_device(table, fingerprint, unit or table.unit, str(path))
        return table


def check_device(table: Table, fingerprint: Mapping[str, object], unit: str, what: str) -> None:
    """Refuse a table that was not measured on the device of this fingerprint; raises TargetError."""
    differences = [
        f"{key} is {table.fingerprint.get(key, 'unknown')!r} there and {fingerprint.get(key, 'unknown')!r} here"
        for key in sorted({*table.fingerprint, *fingerprint})
        if table.fingerprint.get(key) != fingerprint.get(key)
    ]
    if table.unit != unit:
        differences.insert(0, f"it counts {table.unit}, the device {unit}")
    if differences:
        raise TargetError(
            f"{what}: a latency table of another device: {'; '.join(differences[:3])}.",
            "Latency does not carry over. Build a table here: edgeprune TARGET profile RECIPE.",
        )


def _join(old: Cell, new: Cell) -> Cell:
    return dataclasses.replace(new, samples=(*old.samples, *new.samples)[-KEPT:], count=old.count + new.count)


def _rows(table: Table) -> Iterable[dict[str, object]]:
    yield {"row": "header", "version": VERSION, "unit": table.unit, "fingerprint": dict(table.fingerprint)}
    records = table.networks.values()
    sites = {site.family.id: site.family for record in records for site in (*record.sites, *record.optional)}
    for name, family in sorted({**sites, **table.families}.items()):  # a site's own time may be all that is known
        yield {"row": "family", "id": name, **asdict(family)}
    for (name, c_in, c_out), cell in sorted(table.cells.items()):
        samples = [_short(value) for value in cell.samples]
        yield {
            "row": "cell",
            "family": name,
            "c_in": c_in,
            "c_out": c_out,
            **asdict(cell),
            "samples": samples,
            "mad": _short(cell.mad),
        }
    for name, record in sorted(table.networks.items()):
        yield {
            "row": "network",
            "id": name,
            "dense": _short(record.dense),
            "profiler_cost": _short(record.profiler_cost),
        }
        for site in (*record.sites, *record.optional):
            fields = {**_set(asdict(site), "option"), "family": site.family.id, "time": _short(site.time)}
            yield {"row": "site", "network": name, **fields}
        for run in sorted(record.runs, key=lambda run: run.key):
            yield {
                "row": "run",
                "network": name,
                **_set(asdict(run), "options"),
                "ratio": _short(run.ratio),
                "spread": _short(run.spread),
            }


def _set(fields: dict[str, object], name: str) -> dict[str, object]:
    """The fields without this one where it is empty: a table without options is as it was before there were any."""
    return fields if fields[name] else {key: value for key, value in fields.items() if key != name}


def _short(value: float) -> float:
    """Five significant digits: more is noise, and would make every diff long."""
    return float(f"{value:.5g}")


def _parse(rows: list[dict[str, Any]]) -> Table:
    header = rows[0]
    if header.get("row") != "header" or header.get("version") != VERSION:
        raise ValueError(f"its first line says version {header.get('version')}")
    families: dict[str, Family] = {}
    cells: dict[CellKey, Cell] = {}
    dense: dict[str, tuple[float, float]] = {}
    sites: dict[str, list[Site]] = {}
    runs: dict[str, list[Run]] = {}
    for row in rows[1:]:
        kind = row.pop("row")
        if kind == "family":
            name = row.pop("id")
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            families[name] = Family(**fields)
        elif kind == "cell":
            key = (row.pop("family"), int(row.pop("c_in")), int(row.pop("c_out")))
            if not row["samples"]:
                raise ValueError(f"cell {key} has no samples")
            cells[key] = Cell(**{**row, "samples": tuple(map(float, row["samples"]))})
        elif kind == "network":
            dense[row["id"]] = (float(row["dense"]), float(row["profiler_cost"]))
        elif kind == "site":
            name, family = row.pop("network"), families[row.pop("family")]
            sites.setdefault(name, []).append(Site(family=family, **row))
        elif kind == "run":
            name = row.pop("network")
            runs.setdefault(name, []).append(Run(**{**row, "removed": tuple(row["removed"])}))
        else:
            raise ValueError(f"a line of kind {kind!r}")
    networks = {
        name: NetworkRuns(
            *value,
            tuple(site for site in sites.get(name, ()) if not site.option),
            tuple(runs.get(name, ())),
            tuple(site for site in sites.get(name, ()) if site.option),
        )
        for name, value in dense.items()
    }
    return Table(header["fingerprint"], header["unit"], families, cells, networks)
