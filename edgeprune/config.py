"""Read TOML into frozen structs; errors name the file, the key, what was expected and the nearest valid key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from edgeprune.errors import UsageError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[T], error: type[UsageError]) -> T:
    """Read `path` as `kind`.

    Args:
        path: a TOML file.
        kind: a msgspec struct declared with `frozen=True, forbid_unknown_fields=True`.
        error: raised when the file is missing, is not TOML, or does not fit `kind`.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file.", "Check the path; it is relative to the folder you are in.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read ({cause}).") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{path}: not valid TOML: {cause}.") from None
    return convert(data, kind, error, str(path))


def convert(data: Any, kind: type[T], error: type[UsageError], where: str) -> T:
    """Check `data` (as parsed from TOML) against `kind`; `where` names its origin in errors."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as cause:
        message, remedy = _explain(str(cause), kind)
        raise error(f"{where}: {message}", remedy) from None


def _explain(text: str, kind: type[msgspec.Struct]) -> tuple[str, str]:
    """Turn msgspec's message into ours: `[budget] speedup: expected a number, got text`."""
    reason, _, pointer = text.partition(" - at `$")
    keys: list[str] = re.findall(r"\.([\w-]+)", pointer)
    unknown = re.match(r"Object contains unknown field `(.+)`", reason)
    if unknown:
        known = _fields(kind, keys)
        return f"unknown key {_spell([*keys, unknown[1]])}.", did_you_mean(unknown[1], known)
    missing = re.match(r"Object missing required field `(.+)`", reason)
    if missing:
        return f"{_spell([*keys, missing[1]])} is missing.", "It has no default; add it."
    return f"{_spell(keys)}: {reason[0].lower()}{reason[1:]}.", ""


def _spell(keys: list[str]) -> str:
    return f"[{'.'.join(keys[:-1])}] {keys[-1]}" if len(keys) > 1 else (f"'{keys[0]}'" if keys else "the file")


def _fields(kind: Any, keys: list[str]) -> list[str]:
    """Names of the fields of the struct that `keys` lead to, starting at `kind`."""
    for key in keys:
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        kind = next(
            (part for part in (fields.get(key), *get_args(fields.get(key))) if _is_struct(part)),
            None,
        )
        if kind is None:
            return []
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
