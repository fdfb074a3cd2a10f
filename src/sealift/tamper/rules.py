"""What is to be done to which message, as a user writes it.

::

    drop:final                      VERB:MESSAGE           the first of its kind, once
    repeat:record#3                 …#N                    the third of its kind on its connection
    drop:record#3..20               …#N..M                 one of these, which the seed chooses
    delay:ram#*=50ms                …#*                    each of them, on every connection; =TIME to wait
    drop:record/2#5                 …/CHANNEL              on the connection of channel 2 (0: the stream, the default)
    flip:record#10@bit=77           …@bit=N or @byte=N     a place in its content; else the seed chooses one
    cut:target>started              source> or target>     who sends it, where both could
    reorder:record#4,record#5       two of one connection  the first goes behind the second
    cut:source>bytes@byte=9000      bytes                  whatever lies there; all that can be said of TLS
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from sealift.errors import UserError
from sealift.tamper.messages import BYTES, KINDS, Side
from sealift.wire.record import MAX_CHANNELS

TIME_LIMIT_S: Final = 3600.0
"""Longer than any side of a migration waits."""

_DIGITS: Final = 15
"""Of any number in a rule."""

_SELECTOR: Final = re.compile(
    r"(?:(?P<side>[^>]*)>)?(?P<name>[^>/#]*)(?:/(?P<channel>[^#]*))?(?:#(?P<number>.*))?", re.DOTALL
)
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII)
_UNITS_S: Final = {"ms": 0.001, "s": 1.0}


class Verb(enum.Enum):
    """What can be done to a message; the words complete "the message …"."""

    DROP = "drop"
    DELAY = "delay"
    REPEAT = "repeat"
    REORDER = "reorder"
    FLIP = "flip"
    CUT = "cut"

    @property
    def words(self) -> str:
        """What it does."""
        return _WORDS[self]


_WORDS: Final = {
    Verb.DROP: "does not arrive",
    Verb.DELAY: "waits, and all behind it on its connection",
    Verb.REPEAT: "arrives twice",
    Verb.REORDER: "arrives behind another one",
    Verb.FLIP: "arrives with one bit changed",
    Verb.CUT: "does not arrive; every connection that is open ends instead of it, or behind @byte=N of it",
}

_OF_BYTES: Final = (Verb.DELAY, Verb.FLIP, Verb.CUT)
_WITH_PLACE: Final = (Verb.FLIP, Verb.CUT)


@dataclass(frozen=True, slots=True)
class Selector:
    """A message.

    Attributes:
        side: who sends it.
        name: a key of `KINDS`.
        channel: of the connection it comes on.
        first: its number among those of its name on its connection, from 1; of a range the lowest.
        last: the highest of the range; None: each from `first` on, and on every connection.
    """

    side: Side
    name: str
    channel: int = 0
    first: int = 1
    last: int | None = 1

    def __str__(self) -> str:
        number = "" if (self.first, self.last) == (1, 1) else f"#{self.first}"
        if self.last is None:
            number = "#*"
        elif self.last != self.first:
            number = f"#{self.first}..{self.last}"
        channel = f"/{self.channel}" if self.channel else ""
        return f"{self.side.value}>{self.name}{channel}{number}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: as its user wrote it.
        behind: for `reorder`, the message that goes first.
        bit: for `flip`, which bit of the content; None: the seed chooses.
        byte: for `flip`, in which byte; for `cut`, behind how many; for `bytes`, the place in the connection.
        pause_s: for `delay`.
    """

    text: str
    verb: Verb
    what: Selector
    behind: Selector | None = None
    bit: int | None = None
    byte: int | None = None
    pause_s: float = 0.0


def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        UserError: it is none; the message says which part is wrong, and what could stand there.
    """
    try:
        return _parse(text)
    except UserError as error:
        raise UserError(f"rule {text!r}: {error}") from None


def _parse(text: str) -> Rule:
    word, colon, rest = text.partition(":")
    if word not in [verb.value for verb in Verb]:
        known = ", ".join(verb.value for verb in Verb)
        raise UserError(f"{word!r} is nothing that can be done to a message; that is one of {known}")
    if not colon or not rest:
        raise UserError(f"which message is {word!r} about? write {word}:MESSAGE")
    verb, pause_s = Verb(word), 0.0
    if verb is Verb.REORDER:
        return _reorder(text, rest)
    if verb is Verb.DELAY:
        rest, equals, time = rest.rpartition("=")
        if not equals:
            raise UserError("how long is it to wait? write =TIME behind the message, like =2s or =50ms")
        pause_s = _time(time)
    rest, at, place = rest.partition("@")
    what = _selector(rest)
    if what.name == BYTES:
        _check_bytes(verb, what, place)
    elif at and verb not in _WITH_PLACE:
        raise UserError(f"{verb.value} does something to the whole message; a place in it (@{place}) means nothing")
    bit, byte = _place(verb, place) if at else (None, None)
    return Rule(text, verb, what, bit=bit, byte=byte, pause_s=pause_s)


def _reorder(text: str, rest: str) -> Rule:
    first, comma, second = rest.partition(",")
    if not comma:
        raise UserError("behind which message is it to go? write two, like reorder:record#4,record#5")
    what, behind = _selector(first), _selector(second)
    if BYTES in {what.name, behind.name}:
        raise UserError("bytes have no order that could be changed without knowing what they are")
    if (what.side, what.channel) != (behind.side, behind.channel):
        raise UserError(f"{what} and {behind} are not on one connection, so neither is behind the other")
    if what.last is None or behind.last is None:
        raise UserError("#* is no single message; name two by their numbers")
    if what.name == behind.name and what.last >= behind.first:
        raise UserError(f"{behind} does not come behind {what}; write the earlier one first")
    return Rule(text, Verb.REORDER, what, behind)


def _check_bytes(verb: Verb, what: Selector, place: str) -> None:
    if verb not in _OF_BYTES:
        raise UserError(
            f"{verb.value} needs a message that is understood; of bytes one can be flipped, or the link cut"
        )
    if not place:
        raise UserError("where? write @byte=N, counted from the first byte of its side's connection")
    if (what.channel, what.first, what.last) != (0, 1, 1):
        raise UserError("bytes have a place, but neither number nor channel")


def _selector(text: str) -> Selector:
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is no message; write it like record, record#3 or target>started")
    name = match["name"]
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no message {name!r}; {meant}`sealift tamper --help` lists them")
    side = _side(match["side"], name)
    first, last = _numbers(match["number"])
    channel = 0
    if match["channel"] is not None:
        channel = _number(match["channel"], "channel")
        if channel >= MAX_CHANNELS:
            raise UserError(f"there is no channel {channel}; they are 0 to {MAX_CHANNELS - 1}")
    return Selector(side, name, channel, first, last)


def _side(text: str | None, name: str) -> Side:
    sender = KINDS[name].side
    if text is None:
        if sender is None:
            raise UserError(f"who sends these {name}? write source>{name} or target>{name}")
        return sender
    if text not in [side.value for side in Side]:
        raise UserError(f"{text!r} is no side of a migration; write source> or target>")
    if sender not in {None, Side(text)}:
        raise UserError(f"{name} is never sent by the {text}, but by the {sender.value if sender else ''}")
    return Side(text)


def _numbers(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 1, 1
    if text == "*":
        return 1, None
    low, dots, high = text.partition("..")
    first = _number(low, "number of a message", least=1)
    last = _number(high, "number of a message", least=1) if dots else first
    if last < first:
        raise UserError(f"{text!r} is no range of numbers; write the lower one first")
    return first, last


def _place(verb: Verb, text: str) -> tuple[int | None, int | None]:
    unit, equals, number = text.partition("=")
    if unit not in {"bit", "byte"} or not equals:
        raise UserError(f"{text!r} is no place in a message; write @bit=N or @byte=N")
    if unit == "byte":
        return None, _number(number, "byte")
    if verb is not Verb.FLIP:
        raise UserError(f"{verb.value} has no use for a single bit; write @byte=N")
    return _number(number, "bit"), None


def _number(text: str, what: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS) or int(text) < least:
        raise UserError(f"{text!r} is no {what}; these count from {least}")
    return int(text)


def _time(text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is no time; write it like 2s or 50ms")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > TIME_LIMIT_S:
        raise UserError(f"nobody waits for {text}; the longest time is {TIME_LIMIT_S:.0f}s")
    return seconds


class Chances:
    """What is left to chance, which a seed decides: the same seed and rules, the same choices.

    Attributes:
        seed: for whoever wants to see it again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def settled(self, rules: tuple[Rule, ...]) -> Iterator[tuple[int, int]]:
        """For every rule the number of the message, and of the one it goes behind (0: none, or each)."""
        for place, rule in enumerate(rules):
            yield self._one_of(rule.what, f"{place} {rule.text}"), self._one_of(rule.behind, f"{place} {rule.text},")

    def bit(self, rule: Rule, count: int, bits: int) -> int:
        """A bit below `bits` for the rule's `count`th flip; of a message a little longer, one a little further on."""
        return int(self._random(f"{rule.text} {count}").random() * bits)

    def _one_of(self, selector: Selector | None, key: str) -> int:
        if selector is None or selector.last is None:
            return 0
        return self._random(key).randint(selector.first, selector.last)

    def _random(self, key: str) -> Random:
        return Random(f"{self.seed} {key}")  # noqa: S311  # to be repeated, not to be kept secret
