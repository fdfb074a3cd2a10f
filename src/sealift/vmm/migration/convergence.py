"""Whether a migration's rounds get anywhere, and what its user can do when they do not."""

from __future__ import annotations

from math import ceil, isfinite

_FRUITLESS_ROUNDS = 3
"""Rounds in a row that leave no less than the best one before them; single rounds vary with what the guest does."""


class Convergence:
    """Looks at what each round leaves to be sent."""

    def __init__(self) -> None:
        self._least: int | None = None
        self._fruitless = 0

    def advice(self, remaining: int, expected_s: float) -> str | None:
        """After a round: `remaining` bytes would take `expected_s` now. None while rounds get somewhere."""
        if self._least is None or remaining < self._least:
            self._least, self._fruitless = remaining, 0
        else:
            self._fruitless += 1
        if self._fruitless < _FRUITLESS_ROUNDS or not isfinite(expected_s):
            return None
        return (
            f"the guest writes as fast as it can be sent ({self._fruitless} rounds without progress); cancel and "
            f"try again with --downtime-limit {ceil(expected_s * 1e3)} or more, or pause it meanwhile (QMP: stop)"
        )
