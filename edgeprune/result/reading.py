"""result.json as it lies there -> `Result`: strict for who decides by it, lenient for who only shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgeprune.errors import RunError
from edgeprune.result.records import (
    AGAIN,
    NAMES,
    VERSION,
    BudgetInfo,
    ClaimInfo,
    Network,
    ProofInfo,
    Record,
    Result,
    RuntimeInfo,
    SearchInfo,
    TaskInfo,
)

Data = Mapping[str, Any]  # plain data as JSON has it
T = TypeVar("T", bound=Record)


def read(data: Data) -> Result:
    """A result.json of version 1 or 2; raises RunError that names the part which is none."""
    return _read(data, strict=True)


def glance(data: Any) -> Result:
    """The same, for the page and the terminal: a part that is none is left out, so that the rest is shown."""
    return _read(data if isinstance(data, Mapping) else {}, strict=False)


def _read(data: Data, *, strict: bool) -> Result:
    version = data.get("version", 1)
    if strict and version not in (1, VERSION):
        raise RunError(f"result.json has version {version!r}; 1 and {VERSION} are known.", "Update edgeprune.")
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Result):
        given = data.get(field.name)
        if given is None or field.name in ("version", "others"):
            continue
        try:
            found[field.name] = msgspec.convert(given, field.type)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as cause:
            if strict:
                raise RunError(f"result.json has no {field.name.replace('_', ' ')}: {cause}.", AGAIN) from None
            found |= _salvaged(field.name, given)
    return Result(version=version if version in (1, VERSION) else VERSION, others=_others(data, strict), **found)


def _others(data: Data, strict: bool) -> dict[str, Network]:
    """Networks of further flavours, such as pruned_int8_b."""
    known = {field.name for field in msgspec.structs.fields(Result)}
    found = {}
    for name, given in data.items():
        if name in known or not isinstance(given, Mapping) or not ("accuracy" in given or "score" in given):
            continue
        try:
            found[str(name)] = msgspec.convert(given, Network)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as cause:
            if strict:
                raise RunError(f"result.json has no {name}: {cause}.", AGAIN) from None
    return found


def _salvaged(name: str, given: Any) -> dict[str, Any]:
    """Of a part that does not fit, what does: a network's figures one by one, a list's whole entries."""
    if isinstance(given, Mapping) and name in NAMES:
        return {name: _fitting(given, Network)}
    kinds: dict[str, type[Record]] = {
        "proof": ProofInfo,
        "claim": ClaimInfo,
        "runtime": RuntimeInfo,
        "budget": BudgetInfo,
        "search": SearchInfo,
        "task": TaskInfo,
    }
    if isinstance(given, Mapping) and name in kinds:
        return {name: _fitting(given, kinds[name])}
    return {}


def _fitting(given: Data, kind: type[T]) -> T:
    found = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in given:
            try:
                found[field.name] = msgspec.convert(given[field.encode_name], field.type)
            except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
                continue
    return kind(**found)
