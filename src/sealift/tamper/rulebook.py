"""Which rules are due for what passes: each once, unless it is about every message of its kind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sealift.tamper.events import RuleOutcome
from sealift.tamper.messages import BYTES, Side
from sealift.tamper.rules import Chances, Rule, Selector


@dataclass(slots=True)
class _Entry:
    """A rule, the numbers that the seed chose for its messages, and what became of it."""

    rule: Rule
    number: int
    behind: int
    met: bool = False
    times: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """A rule that is to be carried out now; `behind` is name and number of the message that is to go first."""

    rule: Rule
    behind: tuple[str, int]


class Rulebook:
    """All rules; for threads of many connections.

    Attributes:
        seed: what decides where a rule leaves something open.
    """

    def __init__(self, rules: Sequence[Rule], chances: Chances) -> None:
        self.seed = chances.seed
        self._chances = chances
        self._lock = threading.Lock()
        self._entries = [
            _Entry(rule, *numbers) for rule, numbers in zip(rules, chances.settled(tuple(rules)), strict=True)
        ]

    def due(self, name: str, side: Side, channel: int, number: int) -> tuple[Due, ...]:
        """The rules for one message, in the order in which they were given."""
        with self._lock:
            return tuple(
                Due(entry.rule, (entry.rule.behind.name if entry.rule.behind else "", entry.behind))
                for entry in self._entries
                if _is(entry, Selector(side, name, channel), number) and self._meet(entry)
            )

    def within(self, side: Side, begin: int, end: int) -> tuple[Rule, ...]:
        """The rules for bytes from `begin` up to `end` of a connection's side, in the order of their places."""
        with self._lock:
            found = [
                entry
                for entry in self._entries
                if (entry.rule.what.name, entry.rule.what.side) == (BYTES, side)
                and not entry.met
                and begin <= place_of(entry.rule) < end
            ]
            for entry in found:
                entry.met = True
            return tuple(sorted((entry.rule for entry in found), key=place_of))

    def chance(self, rule: Rule, bits: int) -> int:
        """One of so many bits, which the seed chooses anew each time that the rule is carried out."""
        with self._lock:
            return self._chances.bit(rule, self._of(rule).times, bits)

    def done(self, rule: Rule) -> None:
        """It was carried out."""
        with self._lock:
            self._of(rule).times += 1

    def outcomes(self) -> tuple[RuleOutcome, ...]:
        """What became of every rule."""
        with self._lock:
            return tuple(RuleOutcome(entry.rule.text, entry.times) for entry in self._entries)

    def _of(self, rule: Rule) -> _Entry:
        return next(entry for entry in self._entries if entry.rule is rule)

    @staticmethod
    def _meet(entry: _Entry) -> bool:
        met, entry.met = entry.met, True
        return entry.rule.what.last is None or not met


def place_of(rule: Rule) -> int:
    """The byte that a rule is about."""
    return (rule.bit or 0) >> 3 if rule.byte is None else rule.byte


def _is(entry: _Entry, message: Selector, number: int) -> bool:
    what = entry.rule.what
    if (what.side, what.name) != (message.side, message.name):
        return False
    return what.last is None or (what.channel, entry.number) == (message.channel, number)
