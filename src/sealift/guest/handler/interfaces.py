"""What the handler needs of the guest it lives in; the platform implements it over real memory and vCPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sealift.address import Gpa, RamLayout
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.handshake import MEASURE_SIZE


class GuestPages(Protocol):
    """The private plane, indexed by RAM page."""

    pages: int

    def window(self, first: int, count: int) -> memoryview:
        """A contiguous writable view (bytes) of `count` pages from RAM page `first`."""

    def gather(self, numbers: PageNumbers, out: memoryview) -> None:
        """Copy the pages, in this order, to the front of `out`."""

    def scatter(self, numbers: PageNumbers, data: memoryview) -> None:
        """Copy the front of `data` to the pages, in this order."""

    def populated(self) -> PageSet:
        """Pages that are no holes of the private memfd. Every page that is not all zero is among them."""

    def punch(self, pages: PageSet) -> None:
        """Make them holes, which read as zeros."""

    def expect(self, missing: PageSet) -> None:
        """Make them holes for which whoever needs one waits, until it is installed (post-copy).

        Raises:
            GuestError: the guest's engine cannot wait so.
        """

    def demands(self, limit: int) -> PageNumbers:
        """Expected pages that somebody waits for and that were not given before, oldest first."""

    def demand_again(self) -> None:
        """What was given as demands was lost: give it again, as far as it is still missing."""

    def install(self, numbers: PageNumbers, data: memoryview) -> None:
        """The content of expected pages, in this order; each is here whole, or not at all."""


class Unsent(Protocol):
    """Pages of the private plane written since they were last taken; writes are always logged."""

    def take(self) -> PageSet:
        """Read the engines' logs, clear them with a TLB flush and move the set out: every later write re-enters it."""

    def put_back(self, pages: PageSet) -> None:
        """Add pages to the set."""

    def count(self) -> int:
        """Pages in the set, with what the engines' logs hold now."""


class Machine(Protocol):
    """Everything of the guest that is neither memory nor device."""

    def stopped(self) -> bool:
        """Whether every vCPU is out of guest mode and barred from entering, with no access pending."""

    def ready(self) -> bool:
        """Whether the guest says that it can be migrated now."""

    def save(self) -> bytes:
        """Page states, vCPU registers and the like; opaque here."""

    def load(self, state: bytes) -> None:
        """Take over what `save` gave.

        Raises:
            SealError, StreamError: it makes no sense for this machine.
        """


class Clock(Protocol):
    """Time, injected."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest, as far as the handler sees it."""

    pages: GuestPages
    unsent: Unsent
    machine: Machine


@dataclass(frozen=True, slots=True)
class LaunchFacts:
    """What is known of a guest (or receiver) since its launch.

    Attributes:
        measure: LAUNCH_MEASURE output, 48 bytes.
        policy: the SEV policy.
        cbit: the C-bit's position.
        mailbox_gpa: first of the mailbox's two pages.
        excluded: RAM pages that never travel (the mailbox), ascending.
    """

    measure: bytes
    policy: int
    cbit: int
    layout: RamLayout
    vcpus: int
    mailbox_gpa: Gpa
    excluded: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.measure) != MEASURE_SIZE:
            raise ValueError(f"a launch measurement is {MEASURE_SIZE} bytes long, not {len(self.measure)}")
        if list(self.excluded) != sorted({*self.excluded}):
            raise ValueError("excluded pages must be ascending and distinct")
        if self.excluded and not 0 <= self.excluded[0] <= self.excluded[-1] < self.layout.pages:
            raise ValueError("excluded pages must lie in RAM")
