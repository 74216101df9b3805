"""Releases on a device: the one in use, the one before it, and a switch between them that is one rename.

    FOLDER/NAME/
      current -> store/0007-1a2b3c4d/release     what the application opens; a link that is replaced as a whole
      store/0007-1a2b3c4d/release/               the unpacked bundle
      store/0007-1a2b3c4d/accepted.json          what it was held against, and which release was there before it
      store/.part-*                              being made, or being deleted: never in use
      trusted.json                               whose signature a release must have
      lock

A new release is made beside the one in use, brought to the disk, tested there, and only then is the link replaced. So a
power cut or a kill at any moment leaves the old release or the new one, whole; what was left half made is removed by
the next installation.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from typing import Any, Callable, Iterator

from . import selftest
from .unpack import SUMS, Bundle, sums, sync
from .wire import Failure

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
NUMBERED = re.compile(r"([0-9]{4,9})-[0-9a-f]{8}")
LINK = re.compile(r"store/([0-9]{4,9}-[0-9a-f]{8})/release")
PART = ".part-"
Test = Callable[[str, "dict[str, Any]"], "dict[str, Any]"]  # (folder, manifest) -> what was found


class Releases:
    """All releases of one network on this device."""

    def __init__(self, folder: str, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Failure("release", "'%s' cannot be a release's name here: letters, digits and _.+- only" % name[:100])
        self.name, self.folder = name, os.path.join(folder_of(folder), name)
        self.store = os.path.join(self.folder, "store")

    @contextlib.contextmanager
    def locked(self, wait_s: float) -> Iterator[None]:
        """One installation at a time; a killed one lets go by itself."""
        os.makedirs(self.store, exist_ok=True)
        with open(os.path.join(self.folder, "lock"), "a") as stream:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise Failure("busy", "another host is installing %s" % self.name) from None
                    time.sleep(0.05)
            yield

    # What there is.

    def current(self) -> str:
        """Which release is in use, such as 0007-1a2b3c4d; empty: none."""
        try:
            found = LINK.fullmatch(os.readlink(os.path.join(self.folder, "current")))
        except OSError:
            return ""
        return found.group(1) if found and os.path.isdir(self.path(found.group(1))) else ""

    def path(self, release: str) -> str:
        """Where a release lies unpacked."""
        return os.path.join(self.store, release, "release")

    def accepted(self, release: str) -> dict[str, Any]:
        """What was written down when it was taken; empty where it never was."""
        try:
            with open(os.path.join(self.store, release, "accepted.json")) as stream:
                found = json.load(stream)
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def before(self, release: str) -> str:
        """The release that was in use before this one, if it is still here."""
        found = str(self.accepted(release).get("previous", "")) if release else ""
        return found if NUMBERED.fullmatch(found) and self.accepted(found) else ""

    def damage(self, release: str) -> str:
        """What is wrong with the files of a release; empty: nothing."""
        if not release:
            return "no release"
        folder = self.path(release)
        try:
            with open(os.path.join(folder, SUMS), "rb") as stream:
                listed = sums(stream.read())
            for name, wanted in listed.items():
                if _sha256(os.path.join(folder, *name.split("/"))) != wanted:
                    return "'%s' is damaged or altered" % name
        except Failure as failure:
            return failure.message
        except OSError as error:
            return "%s cannot be read (%s)" % (os.path.basename(str(error.filename)), error.strerror)
        return "" if self.accepted(release) else "accepted.json is missing"

    def report(self) -> dict[str, Any]:
        """What `edgeprune device status` shows."""
        current = self.current()
        return {"name": self.name, "folder": self.folder, "current": self._entry(current),
                "previous": self._entry(self.before(current))}  # fmt: skip

    def _entry(self, release: str) -> dict[str, Any] | None:
        if not release:
            return None
        facts = self.accepted(release)
        kept = ("bundle", "signed_by", "samples", "latency", "claimed", "unit", "judged", "at")
        return dict({key: facts[key] for key in kept if key in facts}, release=release, damage=self.damage(release))

    # What changes it.

    def install(self, bundle: Bundle, asked: dict[str, Any], test: Test) -> dict[str, Any]:
        """Take a release that passes its test; raises Failure, and the one in use stays."""
        bundle.check()
        trusted, signer = self._whose(bundle, asked)
        current = self.current()
        self.sweep()
        digest = hashlib.sha256(bundle.read(SUMS)).hexdigest()
        part = os.path.join(self.store, "%s%d" % (PART, os.getpid()))
        os.mkdir(part)
        try:
            bundle.unpack(os.path.join(part, "release"))
            found = test(os.path.join(part, "release"), bundle.json("manifest.json"))
            same = self.accepted(current).get("bundle") == digest
            previous = self.before(current) if same or self.damage(current) else current  # a way back that leads there
            facts = dict(found, bundle=digest, signed_by=signer.hex(), previous=previous, at=int(time.time()))
            _write(os.path.join(part, "accepted.json"), facts)
            sync(part)
            release = "%04d-%s" % (self._next(), digest[:8])
            if trusted != self.trusted():
                self._replace("trusted.json", {"keys": trusted})
            os.rename(part, os.path.join(self.store, release))
            sync(self.store)
            self.switch(release)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.sweep()
        return self.report()

    def rollback(self, test: Test) -> dict[str, Any]:
        """Go back to the release before, if it is whole and passes its test; raises Failure, and all stays."""
        current = self.current()
        previous = self.before(current)
        if not previous:
            raise Failure("release", "there is no release of %s to go back to" % self.name)
        self.tested(previous, test)
        self.switch(previous)
        return self.report()

    def tested(self, release: str, test: Test) -> dict[str, Any]:
        """Hold a release that lies here against its hashes and its test; raises Failure."""
        wrong = self.damage(release)
        if wrong:
            raise Failure("selftest", "release %s: %s" % (release, wrong))
        with open(os.path.join(self.path(release), "manifest.json"), "rb") as stream:
            return test(self.path(release), json.loads(stream.read().decode()))

    def check(self, test: Test, back: Test) -> dict[str, Any]:
        """Test the release in use again; where it fails, go back to the one before if that passes `back`."""
        current = self.current()
        if not current:
            raise Failure("release", "there is no release of %s" % self.name)
        try:
            found = self.tested(current, test)
        except Failure as failure:
            if failure.kind != "selftest" or not self.before(current):
                raise
            self.rollback(back)
            text = "release %s failed its self-test, and %s is in use again: %s"
            raise Failure("selftest", text % (current, self.current(), failure.message)) from None
        report = self.report()
        report["current"].update(found)
        return report

    def switch(self, release: str) -> None:
        """From now on this release is in use: one rename, brought to the disk."""
        fresh = os.path.join(self.folder, PART + "link")
        with contextlib.suppress(FileNotFoundError):
            os.remove(fresh)
        os.symlink("store/%s/release" % release, fresh)
        os.replace(fresh, os.path.join(self.folder, "current"))
        sync(self.folder)

    def sweep(self) -> None:
        """Remove what is neither in use nor the release before it; where nothing is in use, only what never was."""
        current = self.current()
        kept = {current, self.before(current)}
        for name in os.listdir(self.store):
            whole = NUMBERED.fullmatch(name) and (name in kept or (not current and self.accepted(name)))
            if whole:
                continue
            gone = os.path.join(self.store, "%sgone-%s" % (PART, name.replace(PART, "")))
            if not name.startswith(PART):
                os.rename(os.path.join(self.store, name), gone)
                name = os.path.basename(gone)
            shutil.rmtree(os.path.join(self.store, name), ignore_errors=True)

    def trusted(self) -> list[str]:
        """Public keys (hexadecimal) of which one must have signed a release; empty: none was asked for yet."""
        try:
            with open(os.path.join(self.folder, "trusted.json")) as stream:
                return [str(key) for key in json.load(stream)["keys"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise Failure("unsigned", "%s/trusted.json is damaged: whom to trust is not known" % self.folder) from None

    def _whose(self, bundle: Bundle, asked: dict[str, Any]) -> tuple[list[str], bytes]:
        """(the keys that are trusted from now on, the key that signed it); raises Failure("unsigned")."""
        given = [str(key) for key in asked.get("keys") or []]
        known = [] if asked.get("new_keys") else self.trusted()
        signer = bundle.signer()
        trusted = known or given
        if trusted and signer.hex() not in trusted:
            by = "signed by %s" % _short(signer) if signer else "not signed"
            raise Failure("unsigned", "%s; %s takes releases of %s only" % (by, self.name, ", ".join(
                _short(bytes.fromhex(key)) for key in trusted[:3])))  # fmt: skip
        if known and given and signer.hex() not in given:
            raise Failure("unsigned", "signed by %s, which is not the key that was given" % _short(signer))
        if not trusted and not asked.get("unsigned"):
            raise Failure("unsigned", "no key says whose releases %s may be" % self.name)
        return trusted, signer

    def _next(self) -> int:
        numbers = [NUMBERED.fullmatch(name) for name in os.listdir(self.store)]
        return 1 + max((int(found.group(1)) for found in numbers if found), default=0)

    def _replace(self, name: str, data: dict[str, Any]) -> None:
        fresh = os.path.join(self.folder, PART + name)
        _write(fresh, data)
        os.replace(fresh, os.path.join(self.folder, name))
        sync(self.folder)


def do(
    asked: dict[str, Any], bundle: str, home: str, ask: Any, spawn: Any, alive: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What the host asks for: install a bundle, check the release in use, or roll back; the releases afterwards."""

    def test(folder: str, manifest: dict[str, Any]) -> dict[str, Any]:
        return selftest.of_release(folder, manifest, dict(asked, home=home), ask, spawn)

    def outputs_only(folder: str, manifest: dict[str, Any]) -> dict[str, Any]:  # a busy device must be able to go back
        return selftest.of_release(folder, manifest, dict(asked, home=home, unit=""), ask, spawn)

    releases = Releases(asked["folder"], asked["name"])
    with releases.locked(float(asked.get("lock_wait_s", 60))):
        if asked["action"] == "install":
            return releases.install(Bundle(bundle, alive), asked, test)
        if asked["action"] == "check":
            return releases.check(test, outputs_only)
        return releases.rollback(outputs_only)


def folder_of(asked: str) -> str:
    """Where releases lie: the folder that was asked for, or one in the user's own."""
    general = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.abspath(os.path.expanduser(asked)) if asked else os.path.join(general, "edgeprune", "releases")


def names(folder: str) -> list[str]:
    """Networks that have a release in this folder."""
    try:
        found = sorted(os.listdir(folder_of(folder)))
    except OSError:
        return []
    return [name for name in found if NAME.fullmatch(name) and os.path.isdir(os.path.join(folder_of(folder), name))]


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _short(key: bytes) -> str:
    """As `edgeprune verify` shows a key."""
    return hashlib.sha256(key).hexdigest()[:16]


def _write(path: str, data: dict[str, Any]) -> None:
    with open(path, "w") as stream:
        json.dump(data, stream)
        stream.flush()
        os.fsync(stream.fileno())
