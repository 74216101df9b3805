"""Seeded damage: to bytes, to text, and to plain data."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

WORDS = [
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80",
    b"\1\0\0\0", b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f",
]  # fmt: skip
ODD = (
    None, True, False, -1, 0, 1, 1.5, -0.0, 1e300, 1e-300, float("nan"), float("inf"), float("-inf"), 2**31, 2**63,
    2**64, 10**30, -(2**63), "", "x", "\x1b[2K", "../x", "/etc/passwd", "/dev/zero", "a\nb", "\0", "\ud800", "9" * 5000,
    "nan", [], {}, [[]], [None], [-1], [0, 0, 0], {"": ""}, {"x": {"y": []}}, [1e300], ["x"] * 100,
)  # fmt: skip
TOML = (
    "nan", "inf", "-inf", "-1", "0", "1", "1.5", "1e300", "1e-300", "true", "false", '""', '"x"', '"../x"',
    '"/dev/zero"', '"/etc/passwd"', '"\\u0000"', '"\\u001b[2K"', '"a\\nb"', "[]", "{}", "[[]]", "[0]", "[-1]",
    "[0, 0, 0]", "[nan]", "[1e300, 1]", '["x"]', "{x = 1}", '{"" = ""}', "9223372036854775807", "99999999999999999999",
    "9" * 5000,
    "[" * 200 + "]" * 200, '"' + "x" * 5000 + '"', "1979-05-27", "07:32:00", "0x10", "'''\n'''",
    "[1, 2, 3, 4, 5, 6, 7, 8]",
    '"quick"', '"local"', '"ssh"', '"auto"', '"os:getcwd"', '"sys:exit"', '"net.py:missing"', '"."', '"data.npz"',
)  # fmt: skip

TOKENS = (
    "", "0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "99999999999999999999", "9" * 5000, "0.5", "1.5", "²", "١",
    "\u202e", "../../x", "/etc/passwd", "a.png", "x" * 300, "None", "true",
)  # fmt: skip


class Whole(random.Random):
    """In the place of a source of chance: nothing is damaged. What a campaign starts from must be accepted."""


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """One to four damages; never the same bytes."""
    if isinstance(chance, Whole):
        return data
    made = data
    while made == data:
        for _ in range(chance.randint(1, 4)):
            made = _damage(bytearray(made), chance)
    return made


def _damage(data: bytearray, chance: random.Random) -> bytes:
    if not data:
        return chance.randbytes(chance.randint(1, 64))
    at, kind = _place(data, chance), chance.randrange(9)
    end = min(len(data), at + chance.choice((1, 4, 16, 256)))
    if kind < 2:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[at] = chance.randrange(256)
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at:end]
    elif kind == 5:
        data[at:at] = data[at:end]
    elif kind == 6:
        data[at:end] = bytes(end - at)
    elif kind == 7:
        data[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
    else:
        word = chance.choice(WORDS)
        data[at : at + len(word)] = word
    return bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    """Headers and ends are where readers go wrong: every second damage is there."""
    where = chance.randrange(4)
    if where == 0:
        return chance.randrange(min(len(data), 128))
    if where == 1:
        return len(data) - 1 - chance.randrange(min(len(data), 64))
    return chance.randrange(len(data))


def text_of(data: bytes, chance: random.Random) -> bytes:
    """A text with one to three numbers or words replaced, doubled or left out, so that it still parses."""
    if isinstance(chance, Whole):
        return data
    made = data.decode("utf-8", "replace")
    for _ in range(chance.randint(1, 3)):
        found = list(re.finditer(r"-?\d+(\.\d+)?|[A-Za-z]{2,}", made))
        if not found:
            break
        one = chance.choice(found)
        other = chance.choice((*TOKENS, one[0] * 2, chance.choice(found)[0]))
        made = made[: one.start()] + other + made[one.end() :]
    return made.encode("utf-8", "surrogatepass")


def toml_of(text: str, chance: random.Random) -> bytes:
    """A TOML text with one to three odd values, keys, tables or bytes."""
    if isinstance(chance, Whole):
        return text.encode()
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        kind, at = chance.randrange(10), chance.randrange(len(lines))
        if kind < 6:
            keyed = [n for n, line in enumerate(lines) if "=" in line] or [at]
            at = chance.choice(keyed)
            lines[at] = f"{lines[at].partition('=')[0]}= {chance.choice(TOML)}"
        elif kind == 6:
            lines[at] = re.sub(r"^\[?\w", lambda found: found[0] + "x", lines[at])
        elif kind == 7:
            lines.insert(at, f"{chance.choice(('x', 'path', 'name', 'inputs'))} = {chance.choice(TOML)}")
        elif kind == 8:
            lines.insert(at, chance.choice((lines[at], "[x]", "[[model]]", "[model.inputs.x]", "]", "\ufeff", "\r")))
        else:
            del lines[at]
            lines = lines or [""]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return bytes_of(data, chance) if chance.random() < 0.1 else data


def data_of(given: Any, chance: random.Random, odd: tuple[Any, ...] = ODD) -> Any:
    """Plain data with one to three values replaced, left out, or doubled somewhere inside."""
    made = copy.deepcopy(given)
    if isinstance(chance, Whole):
        return made
    for _ in range(chance.randint(1, 3)):
        place = made
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
                place = place[key]
                continue
            _change(place, key, chance, odd)
            break
    return made


def _change(place: Any, key: Any, chance: random.Random, odd: tuple[Any, ...]) -> None:
    kind = chance.randrange(8)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.append(copy.deepcopy(place[key]))
    elif kind == 1:
        place["x" * chance.choice((1, 300))] = chance.choice(odd)
    elif kind == 2 and isinstance(place[key], int | float) and not isinstance(place[key], bool):
        place[key] = place[key] * chance.choice((-1, 2, 1000, 1e12))
    else:
        place[key] = copy.deepcopy(chance.choice(odd))
