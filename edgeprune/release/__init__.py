"""The release: a bundle with its evidence, its signature, and the check that anyone can repeat on any machine."""

from __future__ import annotations

from edgeprune.release.bundle import bundle
from edgeprune.release.contents import Contents, contents
from edgeprune.release.device.check import statistics
from edgeprune.release.encryption import decrypt, encrypt
from edgeprune.release.policy import Policy, enforce, hold, signer
from edgeprune.release.policy import load as load_policy
from edgeprune.release.publish import publish
from edgeprune.release.rollout import check, install, installed, rollback, targets_here
from edgeprune.release.signature import check_key, sign
from edgeprune.release.signing import sign_by
from edgeprune.release.trust import Revoked, load_revoked
from edgeprune.release.verify import Check, Verified, verify

__all__ = [
    "Check",
    "Contents",
    "Policy",
    "Revoked",
    "Verified",
    "bundle",
    "check",
    "check_key",
    "contents",
    "decrypt",
    "encrypt",
    "enforce",
    "hold",
    "install",
    "installed",
    "load_policy",
    "load_revoked",
    "publish",
    "rollback",
    "sign",
    "sign_by",
    "signer",
    "statistics",
    "targets_here",
    "verify",
]
