"""The owner's log: every decision with the reason of every refusal, one JSON object a line, bounded in size.

Refusals have a file of their own, for anybody can be refused as often as it likes: what a stranger pushes out by asking
without end are older refusals, never a decision that the owner took. Either file, when it is full, takes the place of
the one before it, so all of it has a fixed room.
"""

from __future__ import annotations

import enum
import heapq
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from sealift.errors import UserError
from sealift.privatefiles import Access, PrivateDirectory
from sealift.wire.packed import UNDECODABLE

LOG_FILE: Final = "owner.log"
REFUSALS_FILE: Final = "owner.refused.log"

LOG_LIMIT: Final = 1 << 20
"""Bytes of a file: some 3,000 decisions."""

_REASON_LIMIT: Final = 1000
"""Characters of a reason: a sentence with its causes; a VMM's own words in it are cut before."""


class Outcome(enum.Enum):
    """How the owner decided."""

    BEGAN = "began"
    """It began a launch: what it was asked for may be measured."""
    RELEASED = "released"
    """It released a secret."""
    REFUSED = "refused"
    RESUMED = "resumed"
    """It let a guest run on at a source whose target was lost."""
    CHANGED = "changed"
    """Its user gave it another rule."""


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision.

    Attributes:
        time: UTC, as ISO 8601 writes it.
        outcome: how it was decided.
        what: what was asked for, in words.
        reason: why it was refused, or what else there is to say.
        guest: the guest's instance id in hexadecimal, as far as it is known; so with the next two.
        host: fingerprint of the chip; of a refused one as it says of itself.
        launch: the launch's name.
    """

    time: str
    outcome: Outcome
    what: str
    reason: str = ""
    guest: str = ""
    host: str = ""
    launch: str = ""

    @property
    def sentence(self) -> str:
        """For a person, on one line."""
        parts = [f"{self.time} {self.outcome.value} {self.what}"]
        parts += [f"{name} {value}" for name, value in (("of launch", self.launch), ("for guest", self.guest)) if value]
        parts += [f"on host {self.host}"] if self.host else []
        return " ".join(parts) + (f": {self.reason}" if self.reason else "")


class DecisionLog:
    """The log in an owner's directory; several processes may write it."""

    def __init__(self, directory: PrivateDirectory, limit: int = LOG_LIMIT) -> None:
        self._directory = directory
        self._limit = limit

    def add(self, decision: Decision) -> None:
        """Write one; what a VMM put into a message cannot make it two.

        Raises:
            UserError: the log cannot be written.
        """
        reason = "".join(char if char.isprintable() else "?" for char in decision.reason[:_REASON_LIMIT])
        line = msgspec.json.encode(msgspec.structs.replace(decision, reason=reason)).decode()
        name = REFUSALS_FILE if decision.outcome is Outcome.REFUSED else LOG_FILE
        with self._directory.locked(Access.CHANGE):
            if self._directory.size(name) + len(line) >= self._limit:
                self._directory.rename(name, older(name))
            self._directory.append(name, line)

    def read(self) -> Iterator[Decision]:
        """Everything that is still there, the oldest first.

        Raises:
            UserError: the log cannot be read or is damaged.
        """
        with self._directory.locked(Access.USE):
            files = [self._lines(name) for name in (LOG_FILE, REFUSALS_FILE)]
        yield from heapq.merge(*map(self._parse, files), key=lambda decision: decision.time)

    def _lines(self, name: str) -> list[bytes]:
        parts = (older(name), name)
        return [
            line
            for part in parts
            if self._directory.has(part)
            for line in self._directory.read(part, self._limit).splitlines()
        ]

    def _parse(self, lines: list[bytes]) -> Iterator[Decision]:
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=Decision)
            except UNDECODABLE as error:
                raise UserError(f"the owner's log in {self._directory.path} is damaged") from error


@dataclass(frozen=True, slots=True)
class Repeated:
    """Decisions in a row that say the same but for their times, and for the launch that was asked for."""

    first: Decision
    last: Decision
    count: int

    @property
    def sentence(self) -> str:
        """For a person, on one line."""
        again = f" ({self.count} times until {self.last.time})" if self.count > 1 else ""
        return self.first.sentence + again


def folded(decisions: Iterable[Decision]) -> Iterator[Repeated]:
    """Refusals that repeat each other taken together; whatever else was decided stands for itself."""
    last: Repeated | None = None
    for decision in decisions:
        if last is not None and decision.outcome is Outcome.REFUSED and _subject(decision) == _subject(last.first):
            last = Repeated(last.first, decision, last.count + 1)
            continue
        if last is not None:
            yield last
        last = Repeated(decision, decision, 1)
    if last is not None:
        yield last


def _subject(decision: Decision) -> Decision:
    return msgspec.structs.replace(decision, time="", launch="")


def older(name: str) -> str:
    """The file that a full one became."""
    return f"{name}.1"


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the log writes them."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
