"""Read TOML into frozen structs; errors name the file, the key, what was expected and the nearest valid key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from edgeprune import files
from edgeprune.errors import RecipeError, UsageError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[T], error: type[UsageError]) -> T:
    """Read `path` as `kind`.

    Args:
        path: a TOML file.
        kind: a msgspec struct declared with `frozen=True, forbid_unknown_fields=True`.
        error: raised when the file is missing, is not TOML, or does not fit `kind`.
    """
    data = files.read_toml(path, error, missing="Check the path; it is relative to the folder you are in.")
    return convert(data, kind, error, str(path))


def convert(data: Any, kind: type[T], error: type[UsageError], where: str) -> T:
    """Check `data` (as parsed from TOML) against `kind`; `where` names its origin in errors."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as cause:
        message, remedy = _explain(str(cause), kind, "docs/recipe.md" if error is RecipeError else "")
        raise error(f"{where}: {message}", remedy) from None


def _explain(text: str, kind: type[msgspec.Struct], page: str) -> tuple[str, str]:
    """Turn msgspec's message into ours: `[budget] speedup: expected a number, got text`; `page` has all keys."""
    reason, _, pointer = text.partition(" - at `$")
    keys: list[str] = re.findall(r"\.([\w-]+)", pointer)
    unknown = re.match(r"Object contains unknown field `(.+)`", reason)
    if unknown:
        known = _fields(kind, keys)
        return f"unknown key {_spell([*keys, unknown[1]])}.", did_you_mean(unknown[1], known)
    missing = re.match(r"Object missing required field `(.+)`", reason)
    if missing:
        return f"{_spell([*keys, missing[1]])} is missing.", "It has no default; add it."
    choice = re.match(r"Invalid enum value '?(.*?)'?$", reason, re.DOTALL)
    values = _choices(kind, keys) if choice else []
    more = f"See {page}, [{keys[0]}]." if page and len(keys) > 1 else ""
    if choice and values:
        near = did_you_mean(choice[1], values)
        hint = f"{near} " if near.startswith("Did") else ""
        return (
            f"{_spell(keys)} is '{choice[1][:100]}'; it may be {', '.join(filter(None, values))}.",
            f"{hint}{more}".strip(),
        )
    return f"{_spell(keys)}: {reason[0].lower()}{reason[1:]}.", more


def _choices(kind: Any, keys: list[str]) -> list[str]:
    """The values that the field which `keys` lead to may have, where its type lists them."""
    for key in keys:
        parts = [kind, *get_args(kind)]
        struct = next((part for part in parts if _is_struct(part)), None)
        known = {f.encode_name: f.type for f in msgspec.structs.fields(struct)} if struct is not None else {}
        kind = known.get(key, get_args(kind)[-1] if struct is None and get_args(kind) else None)
    return sorted(set(_literals(kind)))


def _literals(kind: Any) -> list[str]:
    """The texts of every Literal in a type."""
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if isinstance(value, str)]
    return [value for part in get_args(kind) for value in _literals(part)]


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
