"""Between what was too little and what was too much: what closure asks the solver for next."""

from __future__ import annotations

NEARER = 0.25  # what is asked for keeps so far from both sides, as a share of what lies between


class Enclosed:
    """What to ask a solver for, when what its answers measure is near what it was asked for but not equal.

    Attributes:
        below, above: the most that was too little, the least that was too much.
    """

    def __init__(self) -> None:
        self.below, self.above = 0.0, float("inf")
        self._least, self._under, self._over = 0.005, 0.0, 0.0  # the last two: what was measured there

    @property
    def apart(self) -> float:
        """How far the two sides are from each other, relative; 0 where one of them is not known."""
        return self.above / self.below - 1 if self.below > 0 and self.above < float("inf") else 0.0

    def after(self, asked: float, measured: float, wanted: float) -> float:
        """The next latency to ask for: in proportion, and between what was too little and too much once both are known.

        `wanted`: the measured latency to arrive at.
        """
        if measured <= wanted and asked > self.below:
            self.below, self._under = asked, measured
        elif measured > wanted and asked < self.above:
            self.above, self._over = asked, measured
        if self.apart > 0:  # answers come in steps, so a line through two of them may not be trusted to its ends
            share = (wanted - self._under) / max(self._over - self._under, 1e-12)
            return self.below + min(max(share, NEARER), 1 - NEARER) * (self.above - self.below)
        following = asked * wanted / measured
        least, self._least = self._least, 2 * self._least  # answers come in steps: go further each time
        return max(following, asked * (1 + least)) if measured <= wanted else min(following, asked * (1 - least))
