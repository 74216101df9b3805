"""Tables that travel: a place where a fleet keeps what it has measured, found by the device's fingerprint.

A place is a folder, or any address that fsspec opens: s3://bucket/tables, gs://..., sftp://... . Below it a folder a
device (a hash of its fingerprint and unit), and in it tables that are called by the hash of their content:

    PLACE/1f2e3d4c5b6a7980/0a1b2c3d4e5f6071.jsonl

Who adds to it writes a new file with all that is there and its own, and then removes the files that went into it. So
two machines that write at once lose nothing of each other's, and a reader takes all files together. What lies there was
written by others: size and structure are bounded, and figures that are no latencies are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import files
from edgeprune.errors import EdgepruneError, MissingDependency, RunError, TargetError, UsageError
from edgeprune.latency.table import VERSION, Table, check_device

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

VARIABLE = "EDGEPRUNE_TABLES"
SUFFIX = ".jsonl"
GRADE = 0.15  # how far the dense latency here may be from a table's: further is another speed grade
MOST, LARGEST, HEADER = 1_000, 64 << 20, 1 << 20  # tables of one device, bytes of one and of its first line
WRAPPED = (OSError, ValueError, RuntimeError, NotImplementedError)  # what the libraries under fsspec raise


def identity(fingerprint: Mapping[str, object], unit: str) -> str:
    """The folder of a device's tables of this version: 16 hexadecimal digits. Those of other versions lie beside it."""
    plain = json.dumps([dict(fingerprint), unit, VERSION], sort_keys=True, default=str)
    return files.sha256(plain.encode())[:16]


@dataclass(frozen=True, eq=False)
class TableStore:
    """A place, opened.

    Attributes:
        address: as the user gave it.
    """

    address: str
    system: AbstractFileSystem
    root: str

    @staticmethod
    def open(address: str) -> TableStore:
        """Open a place; what is wrong with it beyond its address shows when it is used.

        Raises:
            UsageError: it is no address.
            MissingDependency: what opens this kind of address is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            system, root = url_to_fs(address if "://" in address else str(Path(address).absolute()))
        except ImportError as cause:
            raise MissingDependency(
                f"{address}: {str(cause)[:300]}.", "Install what opens it: pip install s3fs, for s3:// for example."
            ) from None
        except WRAPPED as cause:
            raise UsageError(f"{address}: not a place for tables ({files.reason(cause)}).", "Give a folder.") from None
        return TableStore(address, system, str(root).rstrip("/"))

    def find(self, fingerprint: Mapping[str, object], unit: str) -> Table | None:
        """All that is known of this very device; None without anything."""
        found: Table | None = None
        for name in self._names(identity(fingerprint, unit)):
            table = self._read(name)
            check_device(table, fingerprint, unit, f"{self.address}: {name}")
            found = table if found is None else joined(found, table)
        return found

    def put(self, table: Table) -> str:
        """Add a table to what is there; return the new file's address."""
        folder = identity(table.fingerprint, table.unit)
        before = self._names(folder)
        for name in before:
            other = self._read(name)
            check_device(other, table.fingerprint, table.unit, f"{self.address}: {name}")
            table = joined(table, other)
        with tempfile.TemporaryDirectory(prefix="edgeprune-table-") as scratch:
            table.save(Path(scratch) / "table")
            data = (Path(scratch) / "table").read_bytes()
        name = f"{self.root}/{folder}/{files.sha256(data)[:16]}{SUFFIX}"
        with self._reached():
            self._write(name, data)
            for other_name in before:
                if other_name != name:
                    with contextlib.suppress(FileNotFoundError):  # somebody else has joined it too
                        self.system.rm_file(other_name)
        return name

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Every table of every device, with its name; those of other versions are passed by."""
        with self._reached():
            folders = sorted(self._listed(self.root))
        for folder in (path.rpartition("/")[2] for path in folders):
            if re.fullmatch("[0-9a-f]{16}", folder):  # what else lies there is none of ours
                for name in self._names(folder):
                    if self._version(name) in (VERSION, None):
                        yield name, self._read(name)

    def _version(self, name: str) -> object:
        """That a table says it is of; None where it says nothing."""
        with self._reached():
            first = self.system.cat_file(name, start=0, end=HEADER).partition(b"\n")[0]
        try:
            header = files.parse_json(first, RunError, name, "Remove it.")
        except RunError:
            return None
        return header.get("version") if isinstance(header, dict) else None

    def _write(self, name: str, data: bytes) -> None:
        local = "file" in self.system.protocol
        if local or name.startswith("/"):  # else its first part is a bucket, which a slip of the pen must not make
            self.system.makedirs(name.rpartition("/")[0], exist_ok=True)
        if local:
            files.write_bytes(Path(name), data)  # whole or not at all; an object of a bucket always is
        else:
            self.system.pipe_file(name, data)

    def _names(self, folder: str) -> list[str]:
        with self._reached():
            names = sorted(name for name in self._listed(f"{self.root}/{folder}") if name.endswith(SUFFIX))
        if len(names) > MOST:
            raise RunError(f"{self.address}: more than {MOST:,} tables of one device.", "Merge them: table merge.")
        return names

    def _listed(self, folder: str) -> list[str]:
        self.system.invalidate_cache()
        try:
            return [str(name) for name in self.system.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _read(self, name: str) -> Table:
        with self._reached():
            data = self.system.cat_file(name, start=0, end=LARGEST + 1)
        if len(data) > LARGEST:
            raise RunError(f"{self.address}: {name} is larger than {LARGEST:,} bytes.", "Remove it.")
        with tempfile.TemporaryDirectory(prefix="edgeprune-table-") as scratch:
            path = Path(scratch) / "table.jsonl"
            path.write_bytes(data)
            try:
                return sound(Table.load(path), name)
            except RunError as cause:
                raise RunError(cause.message.replace(str(path), f"{self.address}: {name}"), "Remove it.") from None

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever a place raises is said in one sentence: no rights, no network, no such bucket."""
        try:
            yield
        except EdgepruneError:
            raise
        except Exception as cause:  # the libraries under fsspec have errors of their own: botocore's, paramiko's, ...
            what = files.reason(cause) if isinstance(cause, WRAPPED) else f"{type(cause).__name__}: {cause}"[:300]
            raise RunError(
                f"{self.address}: the tables cannot be read or written ({what}).",
                f"Check the address, your rights and the network; or unset {VARIABLE}.",
            ) from None


def sound(table: Table, where: str) -> Table:
    """A table whose figures can be latencies; raises RunError."""
    cells = [value for cell in table.cells.values() for value in cell.samples]
    runs = [run.ratio for record in table.networks.values() for run in record.runs]
    dense = [record.dense for record in table.networks.values()]
    if not all(math.isfinite(value) and value > 0 for value in (*runs, *dense)) or not all(
        math.isfinite(value) and value >= 0 for value in cells
    ):
        raise RunError(f"{where}: a latency table with a figure that is no latency.", "Remove it.")
    return table


def joined(one: Table, other: Table) -> Table:
    """Both tables' measurements; what went into both from a third counts once. Raises TargetError."""
    check_device(one, other.fingerprint, other.unit, "the other table")
    fresh = {
        key: cell
        for key, cell in other.cells.items()
        if key not in one.cells or not set(cell.samples) <= set(one.cells[key].samples)
    }
    kept = {
        key: cell
        for key, cell in one.cells.items()
        if key not in fresh or not set(cell.samples) <= set(fresh[key].samples)
    }
    left = dataclasses.replace(one, cells=kept)
    return left.merge(dataclasses.replace(other, cells=fresh))


def same_grade(table: Table, network: str, dense: float, where: str) -> None:
    """Refuse a table whose dense latency of this network is not what the device shows now.

    A board of another speed grade, or one that is throttled, names the same cores and runtime.

    Args:
        dense: the dense INT8 artifact's latency as it was measured here, in the table's unit.

    Raises:
        TargetError: another pace.
    """
    record = table.networks.get(network)
    if record is None or abs(dense / record.dense - 1) <= GRADE:
        return
    raise TargetError(
        f"{where}: a table of another speed grade, or of a device in another state: dense INT8 takes {dense:.4g} "
        f"{table.unit} here and {record.dense:.4g} there.",
        "Measure this device by itself: unset " + VARIABLE + ".",
    )
