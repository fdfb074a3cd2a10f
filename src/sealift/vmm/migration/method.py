"""A migration method: how private pages, state and the right to run get from here to there.

The engine (`sending`, `receiving`) works with these Protocols and never asks which method it has; `methods` is the one
place that knows them all. Blobs are the method's own; the engine carries them::

    start() ─ offer ─► admit(offer), enter(machine), answer(offer) ─ answer ─►
    agree(answer) ─ confirm ─► agreed(confirm)
    { begin_round() ─ records() … ─► space() … take() } …
    stop(), a last round, end_records() ─ … ─► settle()
    prepared() ─► fence(prepared) ─ final ─► ready(final), started() ─► release(started)
    receipt() of both sides

A snapshot goes through the same rounds to a file, and from there to a machine that asks nobody but the owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from sealift.pageset import PageSet
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.memory import Buffer


@dataclass(frozen=True, slots=True)
class Record:
    """One piece for the wire; its `parts` stay valid until the next one is asked for, `pages` are in it.

    Records of one `channel` are to arrive in their order; those of different ones may overtake each other within a
    round.
    """

    parts: tuple[Buffer, ...]
    pages: int
    channel: int = 0


class RoundsMethod(Protocol):
    """What leaves a guest, wherever it goes. Whatever fails raises an error of the tree."""

    def identity(self) -> bytes:
        """The migration's or snapshot's id, 16 bytes, for people; known once the keys are."""

    def excluded(self) -> PageSet:
        """Shared pages that never travel: each side keeps its own."""

    def begin_round(self) -> int:
        """Take what was written since the last round; pages to send in this one."""

    def records(self) -> Iterator[Record]:
        """The round's records, to the last one that closes it."""

    def unsent(self) -> int:
        """Private pages that another round would have now."""

    def stop(self) -> None:
        """The guest is stopped, and stays so until `cancel`: the next round is the last."""

    def end_records(self) -> Iterator[Record]:
        """The machine's state, and what ends the stream."""

    def cancel(self) -> None:
        """Give up (of a migration: before `fence`): the guest may run here."""


class SourceMethod(RoundsMethod, Protocol):
    """A migration's source."""

    def start(self) -> bytes:
        """Begin; the offer for the target."""

    def agree(self, answer: bytes) -> bytes:
        """Take the target's answer; the confirmation for the target."""

    def fence(self, prepared: bytes) -> bytes:
        """The target is prepared: give up the right to run the guest; the message that passes it on."""

    def release(self, answer: bytes) -> bool:
        """Take the target's last word: True, it runs the guest; False, it never will, and this side may again.

        The guest's owner may say the latter of a target that is lost.

        Raises:
            SealiftError: the word is not authentic; nothing has changed.
        """

    def receipt(self) -> bytes:
        """After `release`: this side's half of the migration's receipt; empty if the method has none."""

    def resume_request(self) -> bytes:
        """While fenced: what the guest's owner must see to let the guest run here, should the target be lost.

        Raises:
            UserError: it is not, or the method knows no owner.
        """

    def fenced(self) -> bool:
        """Whether `fence` has taken effect and nothing has taken it back."""

    def resumable(self) -> LegMethod | None:
        """The connections were lost, and what was underway is given up: this, if the migration can go on over others.

        None: the method knows no such thing, or the guest was stopped already.
        """

    def way_out(self, name: str) -> str:
        """What is left to the user of guest `name` when the target fell silent after `fence`; half a sentence."""

    def late(self) -> LateSource | None:
        """This, if it can leave pages for after the switch (post-copy)."""


class LegMethod(SourceMethod, Protocol):
    """A migration's source that can go on over new connections (`resumable` gave it)."""

    def ask_for_leg(self) -> bytes:
        """Begin again; the offer for the target. Nothing is lost if no answer comes."""

    def begin_leg(self, answer: bytes) -> None:
        """Take the target's answer: what has not arrived there is unsent again."""


PUSHED_PAGES: Final = 64
"""At most so many pages are pushed at once: 256 KiB, so that what is demanded need not wait long for their opening."""


class LateSource(Protocol):
    """A source of whose guest some pages move behind the switch.

    From `release` on two threads may use it: one for `push`, one for the rest.
    """

    def cut(self) -> None:
        """Let the round's `records` end soon, with pages left in it."""

    def leave(self) -> Iterator[Record]:
        """In the place of the last round: the rest is missing; what closes a round that was cut."""

    def missing(self) -> int:
        """Pages that were left and have not been given yet."""

    def serving(self) -> bool:
        """Whether the target runs the guest and misses pages."""

    def ask_for_leg(self) -> bytes:
        """Begin, or begin again; the offer for the target."""

    def begin_leg(self, answer: bytes) -> None:
        """Take the target's answer: pages can be had."""

    def push(self) -> Record | None:
        """Some pages that nobody has demanded; None: there are none left."""

    def demanded(self, page: int) -> Record | None:
        """A page that the target needs now; None: it was given before, or is not missing."""

    def filled(self, token: bytes) -> None:
        """The target says that it misses nothing: this side is done."""


class SnapshotMethod(RoundsMethod, Protocol):
    """A snapshot's source; see `snapshot`."""

    def begin(self) -> bytes:
        """Begin; the offer, which is for whoever will restore it."""

    def end(self, stream_digest: bytes) -> bytes:
        """All was written, and its SHA-256 is given: the snapshot's end. The guest may run again."""


NO_LEGS: Final = "only the migration handler (method mh) can go on over new connections"


class RecordSink(Protocol):
    """Where records go in. Whatever fails raises an error of the tree and is final."""

    def space(self, length: int) -> memoryview:
        """Where the next record of `length` bytes is to be received."""

    def take(self, length: int) -> None:
        """The record lies there; it is opened now or while the next one is received."""

    def settle(self) -> None:
        """Every record taken so far was opened."""


class TargetMethod(RecordSink, Protocol):
    """A migration's target."""

    def answer(self, offer: bytes) -> bytes:
        """Take the source's offer; the answer for the source."""

    def agreed(self, confirm: bytes) -> None:
        """Take the source's confirmation: records may come."""

    def answer_leg(self, offer: bytes, /) -> bytes:
        """The connections were lost, and the source offers to go on: the answer. A bad offer changes nothing.

        Raises:
            SealiftError: it is not the source's, or the method knows no such thing.
        """

    def prepared(self) -> bytes:
        """Everything is here and verified; the message that says so."""

    def ready(self, final: bytes) -> None:
        """Take the right to run the guest."""

    def started(self) -> bytes:
        """Use it: from here the guest may run; the message that says so."""

    def receipt(self) -> bytes:
        """After `started`: this side's half of the migration's receipt; empty if the method has none."""

    def abort(self) -> bytes:
        """Give up for good, before `started`; the message that lets the source run again, or empty."""

    def late(self) -> LateTarget | None:
        """After `started`: this, if the guest misses pages."""


class LateTarget(Protocol):
    """A target whose guest runs and misses pages; from any thread.

    Attributes:
        bell: a descriptor that is readable while there are demands.
    """

    @property
    def bell(self) -> int:
        """See above."""

    def answer_leg(self, offer: bytes, /) -> bytes:
        """As `TargetMethod.answer_leg`."""

    def demands(self) -> list[int]:
        """Pages that the guest waits for and that were not given before in this leg."""

    def install(self, channel: int, record: memoryview) -> int:
        """Put the pages of a record in place; how many are still missing. A bad record changes nothing."""

    def filled(self) -> bytes:
        """None is: the message that lets the source go."""


class RestoreMethod(RecordSink, Protocol):
    """Where a snapshot is restored."""

    def begin(self, offer: bytes) -> None:
        """Take the snapshot's offer: records may come."""

    def finish(self, end: bytes, stream_digest: bytes) -> None:
        """Take the snapshot's end, before which came bytes with that SHA-256: everything is here and verified."""

    def start(self) -> None:
        """From here the guest may run."""


class RestoreEntrance(Protocol):
    """How a snapshot is let in that may be restored here."""

    @property
    def es(self) -> bool:
        """Whether the guest is one with SEV-ES."""

    def enter(self, machine: Machine) -> tuple[Launched, RestoreMethod]:
        """Make the machine, which has the guest's shape and is empty, ready for its snapshot.

        Raises:
            SealiftError: it cannot be.
        """


@dataclass(frozen=True, slots=True)
class Entered:
    """A machine that waits for its guest; its next hop starts from `launched`."""

    launched: Launched
    method: TargetMethod


class Entrance(Protocol):
    """How a target lets in one guest that comes by a method."""

    @property
    def es(self) -> bool:
        """Whether the guest that was admitted has SEV-ES: its machine must be made for that."""

    def admit(self, offer: bytes) -> None:
        """May it come? Nothing is made for it before.

        Raises:
            RefusedError: not this one.
            StreamError: the offer makes no sense.
        """

    def enter(self, machine: Machine) -> Entered:
        """Make the machine, which has the guest's shape and is empty, ready for the guest that was admitted.

        Raises:
            SealiftError: it cannot be.
        """
