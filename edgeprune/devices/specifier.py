"""Whether a runtime's version fits a profile's `requires`."""

from __future__ import annotations


def satisfies(version: str, requires: str) -> bool:
    """Whether a version such as "1.31.1" fits a specifier such as ">=1.20,<2"; an empty one fits all."""
    for clause in filter(None, (part.strip() for part in requires.split(","))):
        operator = clause[:2] if clause[:2] in (">=", "<=", "==", "!=") else clause[:1]
        have, want = _numbers(version), _numbers(clause[len(operator) :])
        size = max(len(have), len(want))
        have, want = have + (0,) * (size - len(have)), want + (0,) * (size - len(want))
        if not {">=": have >= want, "<=": have <= want, "==": have == want, "!=": have != want}.get(
            operator, have > want if operator == ">" else have < want
        ):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.strip().split("+")[0].split("."):
        digits = "".join(char for char in part if char.isdigit())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)
