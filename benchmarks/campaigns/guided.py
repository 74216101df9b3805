"""Fuzzing that is guided by coverage (Atheris, libFuzzer), of what reads a file in one go; where Atheris is installed.

    pip install atheris
    python benchmarks/campaigns/guided.py recipes profiles policies revoked results archives sounds --minutes 8

fuzz.py damages at random, and tries all of `plan`; here inputs that reach new lines of edgeprune are kept and changed
further, thousands a second, through the reader alone. Whatever it raises but an error on purpose ends the kind, and is
a failure; so is an input of more than thirty seconds or a gibibyte.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import project
import trying

ROOT = Path(__file__).resolve().parents[2]
POLICY = '[signature]\nkeys = ["release.pub"]\n'
REVOKED = '[[key]]\nsha256 = "606f3fd208d19d68"\nreason = "stolen"\n'
Use = Callable[[Path], Any]


def _recipe(path: Path) -> Any:
    from edgeprune import recipe

    return recipe.load(path)


def _profile(path: Path) -> Any:
    from edgeprune import target

    return target.load("quick", [path.parent.parent])


def _policy(path: Path) -> Any:
    from edgeprune import release

    return release.load_policy(path)


def _revoked(path: Path) -> Any:
    from edgeprune import release

    return release.load_revoked(path)


def _result(path: Path) -> Any:
    from edgeprune import files, report
    from edgeprune.errors import RunError

    read = files.read_json(path, RunError)
    if isinstance(read, dict):
        report.write(read, path.with_name("report.html"))


def _archive(path: Path) -> Any:
    from edgeprune import release

    return release.verify(path, rerun=False)


def _weights(path: Path) -> Any:
    from edgeprune.model import weights

    return weights.read_checkpoint(path)


def _sound(path: Path) -> Any:
    from edgeprune.workload.sources import wav

    return wav.read_wav(path, 8000)


def _tiny_archive() -> bytes:
    from edgeprune.release import archive

    with tempfile.TemporaryDirectory() as folder:
        return archive.write(
            Path(folder) / "a.tar", {"manifest.json": b'{"version": 1}', "SHA256SUMS": b""}
        ).read_bytes()


def _tiny_weights() -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return bytes(save({"a.weight": np.ones((2, 2), np.float32)}))


KINDS: dict[str, tuple[str, Use, Callable[[], bytes]]] = {
    "recipes": ("recipe.toml", _recipe, project.RECIPE.encode),
    "profiles": ("quick/profile.toml", _profile, project.PROFILE.encode),
    "policies": ("policy.toml", _policy, POLICY.encode),
    "revoked": ("revoked.toml", _revoked, REVOKED.encode),
    "results": ("result.json", _result, (ROOT / "tests/report/example.json").read_bytes),
    "archives": ("bundle.tar", _archive, _tiny_archive),
    "safetensors": ("w.safetensors", _weights, _tiny_weights),
    "sounds": ("a.wav", _sound, project.sound),
}


def tried(kind: str, folder: Path) -> Callable[[bytes], None]:
    """What one input goes through; raises what is no error on purpose."""
    from edgeprune.cli.failures import as_edgeprune_error

    name, use, seed = KINDS[kind]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(seed())
    use_of_whole(use, path, kind)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            use(path)
        except Exception as error:
            if as_edgeprune_error(error) is None:
                raise

    return one


def use_of_whole(use: Use, path: Path, kind: str) -> None:
    """What all inputs start from is read, or else the campaign would only try refusals."""
    from edgeprune.errors import BundleError

    try:
        use(path)
    except BundleError:
        if kind != "archives":  # a whole bundle has tens of thousands of bytes: bundles.py changes those
            raise


def inside(kind: str, seconds: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edgeprune"]):
        import edgeprune.cli.failures
        import edgeprune.model.weights
        import edgeprune.recipe
        import edgeprune.release
        import edgeprune.report
        import edgeprune.target
        import edgeprune.workload.sources.wav  # noqa: F401
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(KINDS[kind][2]())
    limits = [f"-max_total_time={seconds}", f"-timeout={trying.SECONDS:g}", "-rss_limit_mb=2048", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], tried(kind, folder))
    atheris.Fuzz()


def campaign(kinds: list[str], minutes: float) -> dict[str, Any]:
    """Each kind in a process of its own, for its share of the minutes."""
    book, seconds, runs, lines = trying.Book("guided", 0), int(60 * minutes / len(kinds)), {}, {}
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="guided-") as folder:
            done = subprocess.run(
                [sys.executable, __file__, kind, "--inside", folder, "--minutes", str(seconds / 60)],
                capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        found = re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        runs[kind], lines[kind] = int(found[-1]) if found else 0, int(covered[-1]) if covered else 0
        book.ends["read or refused"] += runs[kind]
        if done.returncode or not runs[kind]:
            book.fail(f"{kind}: exit {done.returncode}: {_last(done.stderr)}")
    return book.facts(runs=runs, branches_seen=lines, seconds_each=seconds)


def _last(text: str) -> str:
    at = text.find("=== Uncaught Python exception: ===")
    return text[at : at + 1500] if at >= 0 else text[-500:]


def main() -> None:
    """The command line."""
    parser = trying.arguments(__doc__, "guided", 0)
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS))
    parser.add_argument("--inside", type=Path, help="used by the campaign itself")
    given = parser.parse_args()
    if given.inside is not None:
        inside(given.kinds[0], int(60 * given.minutes), given.inside)
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("Atheris is not installed: pip install atheris (it has wheels for Linux and Python 3.11 and up).")
    facts = campaign(given.kinds, given.minutes)
    trying.write(facts, given.out)
    print(json.dumps(facts["runs"]))
    trying.ended(facts)


if __name__ == "__main__":
    main()
