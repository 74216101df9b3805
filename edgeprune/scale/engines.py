"""Who does the tasks of a sweep: this process, in order; or Ray, on this machine or on a cluster.

Ray schedules: a task is handed the references of those that it waits for, devices are resources of which there is one
each, and a task whose worker dies, or whose node goes, is done again. There is no scheduler here. What a task has made
is in its run directory, so nothing is kept in Ray's memory but how it ended.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.errors import DeviceBusy, DeviceUnreachable, MissingDependency, UsageError
from edgeprune.pipeline import Event, Listener
from edgeprune.scale.spec import SweepResources
from edgeprune.scale.tasks import TRAINS, SweepTask, TaskDone, in_worker, perform

PREFIX = "edgeprune:"  # of a device, as a resource
CARRIED = ("EDGEPRUNE_", "PYTHONPATH", "OMP_NUM_THREADS")
REACHED_S = 10.0  # for a connection to a cluster
SETTINGS = 4  # HTTP/2's first frame
LOOK_S = 0.2  # between two looks at which tasks have ended
STORE = 128 << 20  # bytes of Ray's object store: endings are small
Engine = Callable[[Sequence[SweepTask]], Iterator[TaskDone]]


def installed() -> bool:
    """Is Ray here?"""
    return importlib.util.find_spec("ray") is not None


def in_order(resources: SweepResources, events: Listener) -> Engine:
    """One after the other in this process; the order of `plan_tasks` is one in which nothing waits."""

    def run(tasks: Sequence[SweepTask]) -> Iterator[TaskDone]:
        ended: dict[str, TaskDone] = {}
        for task in tasks:
            bad = next((ended[name] for name in task.after if name in ended and ended[name].ending != "done"), None)
            if bad is not None:
                ended[task.name] = TaskDone(task.name, "skipped", f"{bad.name} ended: {bad.why or bad.ending}")
            else:
                events(Event("line", "sweep", task.name))
                ended[task.name] = _tried(task, resources.retries, events)
            yield ended[task.name]

    return run


def _tried(task: SweepTask, retries: int, events: Listener) -> TaskDone:
    for attempt in range(retries + 1):
        try:
            return perform(task, events)
        except (DeviceUnreachable, DeviceBusy) as cause:
            events(Event("line", "sweep", f"{task.name}: {cause.message}"))
            if attempt == retries:
                return TaskDone(task.name, "failed", f"{type(cause).__name__}: {cause.message} {cause.remedy}".strip())
    raise AssertionError


def on_ray(resources: SweepResources, address: str, devices: Sequence[str]) -> Engine:
    """Through Ray.

    Args:
        address: of a cluster that is there, such as "auto" or "ray://HOST:10001"; empty: one of this process's own.
        devices: what tasks hold, each once. A cluster must have been started with them as resources.

    Raises:
        MissingDependency: Ray is not installed.
        UsageError: there is no such cluster, or it does not have the devices.
    """
    if not installed():
        raise MissingDependency(
            "a sweep on Ray needs it.", "Install: pip install 'edgeprune[ray]', or leave out --address."
        )
    _answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    named = {f"{PREFIX}{name}": 1.0 for name in devices}
    _start(ray, address, named)

    def run(tasks: Sequence[SweepTask]) -> Iterator[TaskDone]:
        try:
            yield from _on_ray(ray, tasks, resources)
        finally:
            ray.shutdown()

    return run


def _answers(address: str) -> None:
    """Raise UsageError where no gRPC server is at HOST:PORT; Ray itself tries for minutes before it says so."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", and what only Ray knows
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S) as link:
            why = "" if os.environ.get("RAY_USE_TLS") == "1" or _is_grpc(link) else "what answers there is not Ray"
    except (OSError, OverflowError, UnicodeError) as cause:
        why = files.reason(cause)
    if why:
        raise UsageError(
            f"no Ray cluster at {address} ({why}).",
            "Start one: ray start --head, which names its address (port 6379); or leave out --address.",
        )


def _is_grpc(link: socket.socket) -> bool:
    """Does HTTP/2 answer (RFC 9113, 3.4), as the dashboard does not? A frame is length[3], type, flags, stream[4]."""
    link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0)))
    head = b""
    while len(head) < 9 and (part := link.recv(9 - len(head))):
        head += part
    return len(head) == 9 and head[3] == SETTINGS


def _start(ray: Any, address: str, named: dict[str, float]) -> None:
    quiet: Any = {"include_dashboard": False, "object_store_memory": STORE, "resources": named}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            ignore_reinit_error=True,
            **({} if address else quiet),
        )
    except Exception as cause:  # ConnectionError, ValueError, RuntimeError, and Ray's own
        where = f"no Ray cluster at {address}" if address else "Ray does not start here"
        text = " ".join(str(cause).split())[:300]
        raise UsageError(f"{where} ({text}).", "Start one: ray start --head; or leave out --address.") from None
    if address:
        have = ray.cluster_resources()
        missing = [name for name in named if have.get(name, 0) < 1]
        if missing:
            ray.shutdown()
            wanted = ", ".join(f'"{name}": 1' for name in missing)
            raise UsageError(
                f"the cluster at {address} has no node with {', '.join(missing)}.",
                f"On the machine that has it or reaches it: ray start --resources='{{{wanted}}}'",
            )


def _on_ray(ray: Any, tasks: Sequence[SweepTask], resources: SweepResources) -> Iterator[TaskDone]:
    from ray.exceptions import RayError

    whole = max(1.0, min(float(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]))
    place = str(Path.cwd())
    environment = {key: value for key, value in os.environ.items() if key.startswith(CARRIED)}
    remote = ray.remote(_remote)
    waiting: dict[Any, SweepTask] = {}
    refs: dict[str, object] = {}
    for task in tasks:
        # what measures on this machine takes all of it: a training beside it would be measured too
        cpus = whole if task.device == "local" else min(whole, resources.cpus) if task.phase in TRAINS else 1.0
        options: dict[str, object] = {
            "num_cpus": cpus,
            "num_gpus": resources.gpus if task.phase in TRAINS else 0,
            "resources": {f"{PREFIX}{name}": 1 for name in task.holds},
            "max_retries": resources.retries,
            "retry_exceptions": [DeviceUnreachable, DeviceBusy],
            "name": task.name,
        }
        ref = remote.options(**options).remote(
            task, place, environment, *(refs[name] for name in task.after if name in refs)
        )
        refs[task.name], waiting[ref] = ref, task
    while waiting:
        # all that ended within a moment: asking for one at a time goes through all that wait, for each task
        ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=LOOK_S)
        for ref in ready:
            task = waiting.pop(ref)
            try:
                yield ray.get(ref)
            except (DeviceUnreachable, DeviceBusy) as cause:
                yield TaskDone(task.name, "failed", f"{type(cause).__name__}: {cause.message} {cause.remedy}".strip())
            except RayError as cause:
                text = " ".join(str(cause).split())[:300]
                yield TaskDone(task.name, "failed", f"{type(cause).__name__}: {text}")


def _remote(task: SweepTask, place: str, environment: dict[str, str], *before: TaskDone) -> TaskDone:
    return in_worker(task, place, environment, before)


__all__ = ["Engine", "in_order", "installed", "on_ray"]
