"""What an encrypted artifact costs: bytes more, and CPU time to encrypt it and to open it as run.py does.

    python benchmarks/encryption.py

Bytes stand in for a network: the cost does not depend on what they say. CPU seconds of this process, the least of five:
a busy machine makes them longer, never shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage

SIZES_MB = (0.1, 1, 10, 100)
REPEATS = 5
OUT = Path(__file__).resolve().parent / "results" / "encryption.json"


def least(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU milliseconds, and what it returned."""
    times, made = [], None
    for _ in range(REPEATS):
        began = time.process_time()
        made = work()
        times.append(time.process_time() - began)
    return 1000 * min(times), made


def opened(data: bytes, key: Any) -> int:
    """As run.py: decrypted, its hash taken, and written to memory; the bytes."""
    plain = pyrage.decrypt(data, [key])
    hashlib.sha256(plain).hexdigest()
    handle = os.memfd_create("artifact")
    with os.fdopen(handle, "wb") as memory:
        return memory.write(plain)


def main() -> None:
    """Measure and write the JSON."""
    key, rows = pyrage.x25519.Identity.generate(), []
    for size in SIZES_MB:
        plain = os.urandom(int(size * 1e6))
        encrypt_ms, made = least(lambda plain=plain: pyrage.encrypt(plain, [key.to_public()]))  # type: ignore[misc]
        open_ms, _ = least(lambda made=made: opened(made, key))  # type: ignore[misc]
        rows.append({
            "megabytes": size, "more_bytes": len(made) - len(plain), "encrypt_ms": round(encrypt_ms, 2),
            "open_ms": round(open_ms, 2),
        })  # fmt: skip
        print(rows[-1])
    machine = {"machine": platform.machine(), "python": platform.python_version(), "cpus": os.cpu_count()}
    OUT.write_text(json.dumps({"rows": rows, "load": os.getloadavg()[0], "on": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
