"""The release: a bundle with its evidence, its signature, and the check that anyone can repeat on any machine."""

from __future__ import annotations

from edgeprune.release.bundle import bundle
from edgeprune.release.signature import check_key, sign
from edgeprune.release.verify import Check, Verified, verify

__all__ = ["Check", "Verified", "bundle", "check_key", "sign", "verify"]
