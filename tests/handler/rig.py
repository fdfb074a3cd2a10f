# ruff: noqa: D102  # methods without a docstring are those of the Protocols they fulfil
"""A guest in plain memory, two handlers over two of them, and the honest VMM that drives both."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace

import numpy as np

from sealift.address import PAGE_SHIFT, PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import SealError
from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.interfaces import Guest, LaunchFacts
from sealift.guest.handler.sealer import Pull
from sealift.launch.secrets import NO_FLAGS, MigrationFlags, MigrationSecret, pair_key
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.record import MAX_RECORD
from sealift.wire.token import TokenKind

LAYOUT = RamLayout((RamBlock("low", Gpa(0), 64 * PAGE_SIZE), RamBlock("high", Gpa(1 << 32), 32 * PAGE_SIZE)))
MAILBOX = (5, 6)
SOURCE_FACTS = LaunchFacts(
    measure=bytes(range(48)),
    policy=5,
    cbit=51,
    layout=LAYOUT,
    vcpus=2,
    mailbox_gpa=Gpa(MAILBOX[0] << PAGE_SHIFT),
    excluded=MAILBOX,
)
TARGET_FACTS = replace(SOURCE_FACTS, measure=bytes(reversed(range(48))))


class FakeGuest:
    """Memory, dirty log and machine of one guest: GuestPages, Unsent and Machine in one."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.ram: bytearray | mmap.mmap = bytearray(pages * PAGE_SIZE)
        self.present = PageSet(pages)
        self.dirty = PageSet(pages)
        self.missing = PageSet(pages)
        self.halted = False
        self.willing = True
        self.registers = b"registers at reset"
        self.taken: list[int] = []

    def write(self, page: int, data: bytes) -> None:
        """The guest writes the start of a page."""
        assert not self.halted
        self.ram[page * PAGE_SIZE : page * PAGE_SIZE + len(data)] = data
        self.present.mark(page)
        self.dirty.mark(page)

    def content(self, page: int) -> bytes:
        """One page."""
        return bytes(self.ram[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])

    def window(self, first: int, count: int) -> memoryview:
        return memoryview(self.ram)[first * PAGE_SIZE : (first + count) * PAGE_SIZE]

    def gather(self, numbers: PageNumbers, out: memoryview) -> None:
        rows = np.frombuffer(self.ram, np.uint8).reshape(-1, PAGE_SIZE)
        np.take(rows, numbers, axis=0, out=np.frombuffer(out, np.uint8).reshape(-1, PAGE_SIZE), mode="clip")

    def scatter(self, numbers: PageNumbers, data: memoryview) -> None:
        rows = np.frombuffer(self.ram, np.uint8).reshape(-1, PAGE_SIZE)
        rows[numbers] = np.frombuffer(data, np.uint8).reshape(-1, PAGE_SIZE)

    def populated(self) -> PageSet:
        return self.present.copy()

    def punch(self, pages: PageSet) -> None:
        self.scatter(pages.numbers(), memoryview(bytes(len(pages) * PAGE_SIZE)))
        self.present -= pages

    def expect(self, missing: PageSet) -> None:
        self.punch(missing)
        self.missing |= missing

    def demands(self, limit: int) -> PageNumbers:
        return self.missing.numbers(limit)

    def demand_again(self) -> None:
        """Nobody waits here."""

    def install(self, numbers: PageNumbers, data: memoryview) -> None:
        assert self.missing.holds(numbers).all(), "no page is installed that is not missing, nor twice"
        self.missing.remove(numbers)
        self.scatter(numbers, data)
        self.present.add(numbers)

    def take(self) -> PageSet:
        return self.dirty.take()

    def put_back(self, pages: PageSet) -> None:
        self.dirty |= pages

    def count(self) -> int:
        return len(self.dirty)

    def stopped(self) -> bool:
        return self.halted

    def ready(self) -> bool:
        return self.willing

    def save(self) -> bytes:
        return self.registers

    def load(self, state: bytes) -> None:
        if not state.startswith(b"registers"):
            raise SealError("the machine state makes no sense")
        self.registers = state

    def parts(self) -> Guest:
        """As the handler takes it."""
        return Guest(pages=self, unsent=self, machine=self)


class FakeClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Hosts:
    """A source guest, a receiver the owner approved for it, and both their handlers."""

    source_facts: LaunchFacts = SOURCE_FACTS
    target_facts: LaunchFacts = TARGET_FACTS
    instance: bytes = field(default_factory=lambda: os.urandom(16))
    flags: MigrationFlags = NO_FLAGS

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.source_secret = MigrationSecret(self.instance, os.urandom(32), flags=self.flags)
        self.guest = FakeGuest(self.source_facts.layout.pages)
        self.source = MigrationHandler(
            Role.SOURCE, self.source_facts, self.source_secret, self.guest.parts(), self.clock
        )
        self.receive_anew()

    def receive_anew(self) -> None:
        """Launch another receiver, which leaves its own start-up code in memory, and have the owner approve it."""
        self.target_secret = MigrationSecret(
            self.instance, os.urandom(32), pair_key(self.source_secret.key, self.target_facts.measure)
        )
        self.landed = FakeGuest(self.target_facts.layout.pages)
        for page in range(self.landed.pages):
            self.landed.write(page, b"receiver image")
        self.target = MigrationHandler(
            Role.TARGET, self.target_facts, self.target_secret, self.landed.parts(), self.clock
        )

    def connect(self, channels: int = 1) -> Vmm:
        """Exchange keys; the VMM that goes on from there."""
        self.target.confirmed(self.source.confirm(self.target.answer(self.source.offer(channels))))
        return Vmm(self, channels)

    def same(self) -> bool:
        """Whether the target's guest is the source's, but for pages that never travel."""
        return self.landed.registers == self.guest.registers and all(
            self.landed.content(page) == self.guest.content(page)
            for page in range(self.guest.pages)
            if page not in self.source_facts.excluded
        )


class Vmm:
    """The honest VMM on the source: collects records in an order the target must accept."""

    def __init__(self, hosts: Hosts, channels: int) -> None:
        self.hosts = hosts
        self.source = hosts.source
        self.channels = channels
        self.slot = bytearray(MAX_RECORD)
        self.requests = [0] * channels

    def pull(self, channel: int, pages: int = 4) -> bytes | None:
        """The next record on a channel; None when the round is empty."""
        self.requests[channel] += 1
        sealed = self.source.pull(Pull(channel, self.requests[channel], pages), memoryview(self.slot))
        return bytes(self.slot[: sealed.length]) if sealed.length else None

    def rest_of_round(self, pages: int = 4) -> list[bytes]:
        """All records left in the round, channels taking turns, then every channel's token."""
        records = []
        channel = 0
        while (record := self.pull(channel, pages)) is not None:
            records.append(record)
            channel = (channel + 1) % self.channels
        return records + [self.source.end_epoch(number) for number in range(self.channels)]

    def round(self, pages: int = 4) -> list[bytes]:
        """A whole round."""
        self.source.begin_epoch()
        return self.rest_of_round(pages)

    def halt(self) -> None:
        """Stop the guest."""
        self.hosts.guest.halted = True
        self.source.stop()

    def state(self, space: int = 200) -> list[bytes]:
        """The records of machine state, in slots of `space` bytes."""
        records = []
        while (sealed := self.source.seal_state(memoryview(self.slot)[:space])).length:
            records.append(bytes(self.slot[: sealed.length]))
        return records

    def finish(self) -> list[bytes]:
        """Stop, last round, state, close."""
        self.halt()
        return [*self.round(), *self.state(), self.source.close()]

    def deliver(self, records: list[bytes]) -> None:
        """Carry records to the target."""
        for record in records:
            self.hosts.target.open(memoryview(record))

    def hand_over(self) -> None:
        """PREPARED, FINAL, STARTED."""
        source, target = self.hosts.source, self.hosts.target
        source.deliver(target.token(TokenKind.PREPARED))
        target.deliver(source.token(TokenKind.FINAL))
        source.deliver(target.token(TokenKind.STARTED))
        assert (source.state, target.state) == (State.GONE, State.STARTED)


def write_some(guest: FakeGuest) -> None:
    """A run of pages, scattered pages, a page in the second block, and a page that never travels."""
    for page in [*range(10, 20), 30, 33, 37, 40, 90, MAILBOX[0]]:
        guest.write(page, os.urandom(64))
