"""An agent that answers what it is told to: `python hostile.py ... ` in the place of the device's interpreter.

HOSTILE names a JSON file {op: raw line with %d for the id, or [lines]}; what is not named is answered well.
"""

import json
import os
import sys
from pathlib import Path

HOME = os.environ["HOSTILE_HOME"]
DIGEST = "0" * 64
SUMMARY = {
    "median": 2e6, "p90": 2.5e6, "p99": 2.6e6, "minimum": 1.5e6, "mean": 2e6, "spread": 0.0, "count": 10,
    "rounds": [2e6, 2e6], "drift": 0.0,
}  # fmt: skip
FINGERPRINT = {
    "machine": "x86_64", "cpus": ["AMD EPYC"], "features": [], "model": "", "governor": "", "kernel": "6.1",
    "python": "3.11.2", "libc": "glibc-2.36", "l4t": "", "power_mode": "",
}  # fmt: skip
STATE = {
    "temperatures_c": {}, "frequencies_khz": {}, "load": "0.1", "cpus": 4, "throttled": 0, "throttle_events": 0,
    "memory_bytes": {"MemTotal": 1 << 30}, "uptime_s": 10.0, "affinity": [0, 1], "oom_kills": 0,
}  # fmt: skip
GOOD = {
    "hello": {"runtime": "onnxruntime", "version": "1.31.1", "protocol": 1, "home": HOME, "pid": 1},
    "missing": {"missing": []},
    "adopt": {},
    "probe": {"fingerprint": FINGERPRINT, "state": STATE},
    "load": {"shape": [1, 3, 16, 16], "outputs": ["output"], "info": {"load_s": 0.1}, "handle": DIGEST},
    "unload": {},
    "infer": {"path": HOME + "/outgoing/result.npz", "sha256": DIGEST, "reused": False},
    "measure": {"summaries": [SUMMARY], "reasons": [], "notes": [], "pinned": [0]},
    "profile": {
        "kernels": [{"name": "a", "kind": "Conv", "layers": [], "median": 1e6, "mad": 0.0, "count": 5,
                     "implementation": "CPU"}],
        "fused": "", "sha256": "",
    },
    "optimise": {"path": HOME + "/outgoing/optimised.onnx", "sha256": DIGEST},
    "timing_cache": {"path": HOME + "/outgoing/timing.cache", "sha256": DIGEST},
    "forget": {},
}  # fmt: skip


def main() -> None:
    planned = json.loads(Path(os.environ["HOSTILE"]).read_text())
    for line in sys.stdin:
        request = json.loads(line)
        raw = planned.get(request["op"])
        if raw is None:
            raw = json.dumps({"protocol": 1, "id": request["id"], "ok": True, "result": GOOD[request["op"]]})
        for one in [raw] if isinstance(raw, str) else raw:
            sys.stdout.write(one.replace("%d", str(request["id"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
