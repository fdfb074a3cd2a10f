"""The owner's log: every decision with the reason of every refusal, one JSON object a line, bounded in size.

The log has two files: when `owner.log` is full it becomes `owner.log.1`, in the place of the one before. So a VMM that
asks without end costs a fixed room, and in the worst case the older entries, never the owner's disk.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from sealift.errors import UserError
from sealift.privatefiles import Access, PrivateDirectory
from sealift.wire.packed import UNDECODABLE

LOG_FILE: Final = "owner.log"
OLDER_FILE: Final = f"{LOG_FILE}.1"

LOG_LIMIT: Final = 1 << 20
"""Bytes of one of the two files: some 3,000 decisions."""

_REASON_LIMIT: Final = 1000
"""Characters of a reason: a sentence with its causes; a VMM's own words in it are cut before."""


class Outcome(enum.Enum):
    """How the owner decided."""

    BEGAN = "began"
    """It began a launch: what it was asked for may be measured."""
    RELEASED = "released"
    """It released a secret."""
    REFUSED = "refused"
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
        with self._directory.locked(Access.CHANGE):
            if self._directory.size(LOG_FILE) + len(line) >= self._limit:
                self._directory.rename(LOG_FILE, OLDER_FILE)
            self._directory.append(LOG_FILE, line)

    def read(self) -> Iterator[Decision]:
        """Everything that is still there, the oldest first.

        Raises:
            UserError: the log cannot be read or is damaged.
        """
        with self._directory.locked(Access.USE):
            texts = [
                self._directory.read(name, self._limit) if self._directory.has(name) else b""
                for name in (OLDER_FILE, LOG_FILE)
            ]
        for line in b"".join(texts).splitlines():
            try:
                yield msgspec.json.decode(line, type=Decision)
            except UNDECODABLE as error:
                raise UserError(f"the owner's log in {self._directory.path} is damaged") from error


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the log writes them."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
