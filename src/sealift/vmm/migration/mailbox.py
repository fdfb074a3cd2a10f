"""The mailbox transfer: the RFC's two shared pages, one guest page a request.

The VMM lays a request into the mailbox, rings the doorbell and waits until it is answered there; every 100 ms it rings
again, since the handler may be late on a busy host, and the same request never has two results. While requests follow
each other quickly both sides look at the mailbox, and nobody rings. One request is underway while the VMM sends the
page before, or receives the one behind.
What the RFC's own VMM lacked: requests have numbers that never come twice in a guest's life, so a late answer is told
from the one that is due; and a handler that does not answer in time ends the migration instead of hanging it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sealift.address import PAGE_SHIFT, Gpa, RamLayout
from sealift.errors import LostError, RefusedError, SealError, StreamError
from sealift.pageset import PageNumbers
from sealift.vmm.migration.method import Record
from sealift.vmm.migration.ring import RingTarget
from sealift.wire.lookout import Lookout
from sealift.wire.mailbox import Command, Result, answered, copy_record, is_done, post, put_record, watched
from sealift.wire.record import HEADER_SIZE, RecordHeader, RecordKind, page_record_size

TIMEOUT_S = 0.1
"""The RFC's time for one command; a handler that is late is rung for again, with the same request."""

LIVENESS_S = 5.0
"""A handler that has not answered for this long hangs; a busy host keeps one waiting for less."""

_RINGS = round(LIVENESS_S / TIMEOUT_S)

_LIST_PAGES = 4096
"""Pages listed at once: 32 KiB, a third of the longest message."""


class Doorbell(Protocol):
    """Tells the handler that a request lies in the mailbox."""

    def ring(self) -> None:
        """Wake the handler, if it was not woken since it was last done."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until the handler that was rung for is done; False: not in time."""


@dataclass(frozen=True, slots=True)
class _Underway:
    """A request that lies in the mailbox, and whether the doorbell was rung for it."""

    command: Command
    gpa: Gpa
    number: int
    rung: bool


class Mailbox:
    """The VMM's end of a mailbox: one request at a time, asked here and settled there."""

    def __init__(self, area: memoryview, doorbell: Doorbell, numbers: Callable[[], int]) -> None:
        """Use the mailbox in `area`; `numbers` gives request numbers, ascending for as long as the guest lives here."""
        self._area = area
        self._doorbell = doorbell
        self._numbers = numbers
        self._lookout = Lookout()
        self._underway: _Underway | None = None

    def encrypt(self, gpa: Gpa) -> None:
        """Ask for the record of the page at `gpa`; `record` has it."""
        self._ask(Command.ENCRYPT, gpa)

    def record(self) -> bytes:
        """The record that was asked for.

        Raises:
            LostError, SealError, RefusedError: as `settle`.
        """
        self.settle()
        return copy_record(self._area)

    def decrypt(self, gpa: Gpa, record: bytes) -> None:
        """Have the record of the page at `gpa` opened; `settle` waits for that.

        Raises:
            LostError, SealError, RefusedError: as `settle`, of what was asked before.
        """
        self.settle()
        put_record(self._area, record)
        self._ask(Command.DECRYPT, gpa)

    def begin(self) -> None:
        """INIT: whether the handler takes commands at all."""
        self._ask(Command.INIT, Gpa(0))
        self.settle()

    def end(self) -> None:
        """RESET: the handler forgets what lies in the mailbox."""
        self._ask(Command.RESET, Gpa(0))
        self.settle()

    def _ask(self, command: Command, gpa: Gpa) -> None:
        number = self._numbers()
        post(self._area, command, gpa, number)
        asleep = not watched(self._area)
        if asleep:
            self._doorbell.ring()
        self._underway = _Underway(command, gpa, number, asleep)

    def settle(self) -> None:
        """Wait until what was asked is carried out.

        Raises:
            LostError: no answer in time.
            SealError, RefusedError: the handler refused.
        """
        if self._underway is None:
            return
        asked, self._underway = self._underway, None
        command, gpa = asked.command, asked.gpa
        if (asked.rung or not self._lookout.sees(self._is_done)) and not any(self._hear() for _ in range(_RINGS)):
            raise LostError(f"the migration handler did not answer {command.name} within {LIVENESS_S:.0f} s")
        result = answered(self._area, asked.number)
        if result is None:
            raise LostError(f"the migration handler left {command.name} of GPA {gpa:#x} unanswered")
        match result:
            case Result.OK:
                return
            case Result.AUTHENTICATION:
                raise SealError(f"the page at GPA {gpa:#x} is not authentic, or not for this place")
            case _:
                raise RefusedError(f"the migration handler refused {command.name} of GPA {gpa:#x}: {result.name}")

    def _is_done(self) -> bool:
        return is_done(self._area)

    def _hear(self) -> bool:
        """Whether the handler says that it is done, which it does once it was rung for."""
        self._doorbell.ring()
        return self._doorbell.wait(TIMEOUT_S)


class RoundList(Protocol):
    """Lists the pages left in a round."""

    def __call__(self, first: int, limit: int) -> PageNumbers:
        """At most `limit` of them from page `first` on, ascending."""


class MailboxSource:
    """Asks for the pages of rounds one by one; `listed` is the handler's list."""

    def __init__(self, mailbox: Mailbox, layout: RamLayout, listed: RoundList) -> None:
        self._mailbox = mailbox
        self._layout = layout
        self._listed = listed
        self._begun = False

    def records(self, pages: int) -> Iterator[Record]:
        """The records of a round."""
        if not self._begun:
            self._mailbox.begin()
            self._begun = True
        first = 0
        while pages > 0:
            numbers = self._listed(first, _LIST_PAGES)
            if not numbers.size:
                return
            yield from self._listed_records(numbers.tolist())
            first = int(numbers[-1]) + 1
            pages -= numbers.size

    def _listed_records(self, numbers: list[int]) -> Iterator[Record]:
        """One record each; while it is used, the next one is being made."""
        for place, number in enumerate(numbers):
            record = self._mailbox.record() if place else None
            self._mailbox.encrypt(self._layout.gpa(number << PAGE_SHIFT))
            if record is not None:
                yield Record((record,), 1)
        yield Record((self._mailbox.record(),), 1)


class MailboxTarget:
    """Has pages opened through the mailbox; tokens, state and the close record go through a ring slot."""

    def __init__(self, mailbox: Mailbox, layout: RamLayout, ring: RingTarget) -> None:
        self._mailbox = mailbox
        self._layout = layout
        self._ring = ring
        self._space = memoryview(b"")

    def space(self, length: int) -> memoryview:
        """A slot's front, for any kind of record: its kind is known only when it is here."""
        self._space = self._ring.space(length)
        return self._space

    def take(self, length: int) -> None:
        """Have it opened."""
        header = RecordHeader.decode(self._space)
        if header.kind is not RecordKind.PAGES:
            self._mailbox.settle()
            self._ring.take(length)
            self._ring.settle()
            return
        if length != page_record_size(1) or header.count != 1:
            raise StreamError(f"a record of {header.count} pages came; the mailbox takes one page at a time")
        (number,) = np.frombuffer(self._space, "<u8", 1, HEADER_SIZE).tolist()
        if number >= self._layout.pages:
            raise StreamError(f"{header.name} has page {number}, which is not in RAM")
        self._mailbox.decrypt(self._layout.gpa(number << PAGE_SHIFT), bytes(self._space))

    def settle(self) -> None:
        """Wait for the last page; everything else is opened as it is taken."""
        self._mailbox.settle()
        self._ring.settle()
