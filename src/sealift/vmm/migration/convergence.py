"""Whether a migration's rounds get anywhere, what its user can do when they do not, and what it can do by itself."""

from __future__ import annotations

from math import ceil, isfinite

from sealift.vmm.migration.parameters import Throttling

_FRUITLESS_ROUNDS = 3
"""Rounds in a row that leave no less than the best one before them; single rounds vary with what the guest does."""

_FRUITLESS_BEFORE_THROTTLE = 2
"""Rounds that exceed the threshold before the guest is slowed (again), as in QEMU: the first may be a burst."""


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
            f"the guest writes as fast as it can be sent ({self._fruitless} rounds without progress); raise its "
            f"downtime limit to {ceil(expected_s * 1e3)} ms or more (QMP: migrate-set-parameters downtime-limit), "
            "pause it meanwhile (QMP: stop), or cancel and try again with --auto-converge"
        )


class AutoConverge:
    """Says after each round how much of their time the guest's vCPUs must rest so that rounds shrink.

    Attributes:
        settings: may be others after any round.
        percentage: now, 0 to `MAX_THROTTLE`.
    """

    def __init__(self, settings: Throttling) -> None:
        self.settings = settings
        self._exceeded = 0
        self.percentage = 0

    def after_round(self, sent: int, dirtied: int) -> int:
        """A round sent so many bytes, and meanwhile the guest wrote so many that are to be sent; the percentage."""
        allowed = sent * self.settings.trigger_threshold / 100
        if dirtied > allowed:
            self._exceeded += 1
        if self._exceeded >= _FRUITLESS_BEFORE_THROTTLE:
            self._exceeded = 0
            self.percentage = self._more(allowed / dirtied if dirtied else 1.0)
        return self.percentage

    def _more(self, bearable: float) -> int:
        """The next step; `bearable` is the part of what the guest wrote that would have been no trouble."""
        settings = self.settings
        if not self.percentage:
            return settings.initial
        step = settings.increment
        if settings.tailslow:
            runs = 100 - self.percentage
            step = min(step, max(1, ceil(runs * (1.0 - min(bearable, 1.0)))))
        return min(self.percentage + step, settings.maximum)
