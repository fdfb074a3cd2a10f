"""What a tamperer saw and did, for people and for programs."""

from __future__ import annotations

import enum

import msgspec


class Event(enum.Enum):
    """What happened."""

    CONNECTED = "connected"
    MESSAGE = "message"
    NOT_UNDERSTOOD = "not-understood"
    TAMPERED = "tampered"
    ENDED = "ended"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the log.

    Attributes:
        time_s: since the tamperer began.
        connection: its number, from 1 in the order in which they came.
        side: who sent the message; with `message` and `number`, its name and place among those on its connection.
        length: of the message with its framing, in bytes.
        rule: by which it was tampered with.
        words: what was done, or what happened.
    """

    event: Event
    time_s: float
    connection: int
    side: str = ""
    message: str = ""
    channel: int = 0
    number: int = 0
    length: int = 0
    rule: str = ""
    words: str = ""

    def line(self) -> str:
        """For a person."""
        when = f"{self.time_s:9.3f} s  connection {self.connection}  "
        if not self.message:
            return f"{when}{self.words}"
        channel = f"/{self.channel}" if self.channel else ""
        number = f"#{self.number}" if self.number else ""
        name = f"{self.side}>{self.message}{channel}{number}"
        said = f": {self.words} ({self.rule})" if self.rule else ""
        return f"{when}{name}, {self.length} bytes{said}"


class RuleOutcome(msgspec.Struct, frozen=True):
    """How often a rule was carried out."""

    rule: str
    times: int


class Summary(msgspec.Struct, frozen=True):
    """All of it, at the end; bytes are those that were passed on."""

    seed: int
    connections: int
    messages: int
    bytes: int
    rules: tuple[RuleOutcome, ...]

    def lines(self) -> list[str]:
        """For a person."""
        counted = ((self.connections, "connection"), (self.messages, "message"), (self.bytes, "byte"))
        first = ", ".join(f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in counted)
        words = {0: "not carried out", 1: "done once"}
        return [
            f"{first}, seed {self.seed}",
            *(f"  {done.rule}: {words.get(done.times, f'done {done.times} times')}" for done in self.rules),
        ]
