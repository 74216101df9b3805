"""How far the boards of a fleet differ: the dense and the released network on every board, beside the validation."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.devices import Artifact, Device, Fleet, Loaded, Timing
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.result import FleetBoard, FleetInfo

COMPARED = ("dense-int8", "pruned-int8")


def compare(bench: Bench, voice: Voice, artifacts: Mapping[str, Artifact]) -> dict[str, FleetInfo]:
    """{"fleet": ...} for measured.json; {} where there is one device."""
    fleet = bench.device
    if not isinstance(fleet, Fleet):
        return {}
    lead, protocol = fleet.lead, bench.target.protocol
    voice.say("validate", f"validated on {lead}; now on every board of the fleet ({', '.join(fleet.boards)})")

    def measure(_: str, board: Device) -> list[Timing]:
        loaded: list[Loaded] = []
        try:
            loaded += [board.load(artifacts[name]) for name in COMPARED]
            return board.measure(loaded, protocol)
        finally:
            for one in loaded:
                board.unload(one)

    found = fleet.each(measure)
    boards = []
    for state in fleet.states:
        made = FleetBoard(name=state.name, where=state.where, why=state.gone)
        if state.name in found:
            dense, pruned = found[state.name]
            why = next((reason for one in (dense, pruned) if not one.valid for reason in one.reasons), "")
            valid = dense.valid and pruned.valid
            made = FleetBoard(
                name=state.name, where=state.where, dense_int8=dense.median, pruned_int8=pruned.median, valid=valid,
                why=why if not valid else "",
            )  # fmt: skip
        boards.append(made)
    info = FleetInfo(validated_on=lead, boards=tuple(boards))
    voice.say("validate", info.text)
    return {"fleet": info}
