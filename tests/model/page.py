"""One guest page: its planes, its logs and sets, and what the guest, a device and a flip do to it.

Contents are not numbered. What matters of a copy is whether it is still what the plane holds, so a record in
flight and the target's page are just *current* or not. That loses nothing, because no content ever comes back
once it is gone, and it leaves finitely many states for any number of writes, flips and rounds.

::

    view     page private                            page shared
    C=1      private plane                           private plane
    C=0      private plane                           shared plane
    host     ciphertext of the private plane         shared plane
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

Entry: TypeAlias = tuple[int, bool]
"""A writable TLB entry: vCPU, and whether the C-bit is set."""


class Page(NamedTuple):
    """All that anybody knows of one page. At first: private, written through C=1, and nothing sent."""

    # The guest: the page's state, its page-table entry, and what its contents are.
    is_shared: bool = False
    c_bit: bool = True
    same_content: bool = True  # one plane is the encryption of the other; always so while the page is private
    secret: bool = True  # the private plane holds something written through C=1
    hidden_secret: bool = True  # the shared plane holds ciphertext of such a thing
    leaked: bool = False  # the shared plane holds such a thing in the clear
    # The platform: the content counts as written through C=1 since launch or the last flip.
    sealed: bool = True
    # The engine: writable TLB entries, and the dirty log of each window.
    tlb: frozenset[Entry] = frozenset()
    log_c1: bool = False
    log_c0: bool = False
    # A device is between the two halves of its write.
    device_busy: bool = False
    # What a harvest got from the logs, and the sets it fills.
    got_c1: bool = False
    got_c0: bool = False
    unsent: bool = True
    shared_dirty: bool = True
    # What a VMM that synchronises a page encryption bitmap believes.
    bitmap_shared: bool = False
    # The senders: taken from its set; and a record in flight (None: none), whether still current.
    private_taken: bool = False
    shared_taken: bool = False
    private_record: bool | None = None
    shared_record: bool | None = None
    # The page went out sealed in the current epoch.
    in_epoch: bool = False
    # Whether the target holds what the plane holds now.
    private_on_target: bool = False
    shared_on_target: bool = False


class Marks(Enum):
    """What a flip marks dirty.

    Attributes:
        BOTH: both planes, in the sets.
        CONVERTED: the plane it converts the content to, in its set.
        LOGS: both windows, in the logs; so the sets learn of it at the next harvest.
        NONE: nothing.
    """

    BOTH = auto()
    CONVERTED = auto()
    LOGS = auto()
    NONE = auto()


class Sealed(Enum):
    """How the platform knows whether a page's content counts as written through C=1.

    A flip to shared leaves ciphertext of such content, and keeps other content as it is; a flip to private keeps
    such content, and decrypts other content.

    Attributes:
        REMEMBERED: a set that every harvest adds to; a flip to private puts the page in, a flip to shared out.
        FORGOTTEN_BY_FLIPS: the same, but every flip takes the page out.
        LIVE_LOG: what the launch left, and the engine's log, which every harvest clears.
    """

    REMEMBERED = auto()
    FORGOTTEN_BY_FLIPS = auto()
    LIVE_LOG = auto()


class Guest(Enum):
    """How a guest changes a page's kind.

    Attributes:
        LINUX: the page-table entry and the hypercall are two steps (here: in any order and number).
        TIDY: both are one step, so no access ever disagrees with the page's state. No real guest does this.
    """

    LINUX = auto()
    TIDY = auto()


@dataclass(frozen=True)
class Flips:
    """What a flip does besides converting the content."""

    marks: Marks = Marks.BOTH
    sealed: Sealed = Sealed.REMEMBERED


def pages_at_start(guest: Guest) -> Iterator[tuple[str, Page]]:
    """The pages a migration can meet when it begins: logs clean, sets full, nothing on the target."""
    yield "a private page", Page()
    in_clear = Page(c_bit=False, secret=False, hidden_secret=False, sealed=False)
    # Its private plane is a hole, and a hole is what the target has.
    yield (
        "a shared page",
        in_clear._replace(is_shared=True, same_content=False, unsent=False, private_on_target=True),
    )
    if guest is Guest.LINUX:
        # Linux's .bss..decrypted: in use through C=0 before a hypercall has declared it shared.
        yield "a page in use through C=0, not declared", in_clear


def private_changed(page: Page) -> Page:
    """`page` with new content on the private plane, and so in DRAM if the page is private."""
    record = None if page.private_record is None else False
    changed = page._replace(private_record=record, private_on_target=False)
    return changed._replace(same_content=False) if page.is_shared else shared_changed(changed)


def shared_changed(page: Page) -> Page:
    """`page` with new content on the shared plane."""
    record = None if page.shared_record is None else False
    return page._replace(
        shared_record=record, shared_on_target=False, same_content=page.same_content and not page.is_shared
    )


def guest_moves(page: Page, vcpus: int, guest: Guest) -> Iterator[tuple[str, Page]]:
    """What the vCPUs can do: fault on a first write, write through a TLB entry unseen, change the page table."""
    for vcpu in range(vcpus):
        if (vcpu, page.c_bit) not in page.tlb:
            faulted = page._replace(
                tlb=page.tlb | {(vcpu, page.c_bit)},
                log_c1=page.log_c1 or page.c_bit,
                log_c0=page.log_c0 or not page.c_bit,
            )
            yield f"vCPU {vcpu} faults on a write through C={page.c_bit:d}; logged, writable from now on", faulted
    for vcpu, c_bit in sorted(page.tlb):
        yield f"vCPU {vcpu} writes through C={c_bit:d}", written(page, c_bit=c_bit)
    if guest is Guest.LINUX:
        yield f"the guest sets C={not page.c_bit:d} in its page table", page._replace(c_bit=not page.c_bit)


def written(page: Page, *, c_bit: bool) -> Page:
    """A write to a part of the page; the rest of it stays as it was."""
    if page.is_shared and not c_bit:
        return shared_changed(page)
    return private_changed(page)._replace(secret=page.secret or c_bit)


def device_moves(page: Page, *, write_first: bool) -> Iterator[tuple[str, Page]]:
    """A device's access to shared memory: it writes and then marks, or marks and then writes."""
    if not page.device_busy and not page.is_shared:
        return
    other_half = page._replace(device_busy=not page.device_busy)
    if write_first is page.device_busy:
        yield "the device marks what it writes", other_half._replace(shared_dirty=True)
    else:
        yield "the device writes", shared_changed(other_half) if page.is_shared else other_half


def flip(page: Page, rules: Flips, guest: Guest) -> tuple[str, Page]:
    """The hypercall: with all vCPUs out of guest mode, read the logs, convert, remap, mark both planes."""
    pending = (page.got_c1, page.got_c0)
    sealed = page.sealed or page.log_c1
    page = merged(page._replace(got_c1=page.log_c1, got_c0=page.log_c0), rules)
    page = _made_private(page, sealed=sealed) if page.is_shared else _made_shared(page, sealed=sealed)
    flipped = page._replace(
        c_bit=not page.is_shared if guest is Guest.TIDY else page.c_bit,
        # A page that was decrypted may hold anything, so it counts as written through C=1.
        sealed=not page.is_shared and rules.sealed is not Sealed.FORGOTTEN_BY_FLIPS,
        tlb=frozenset(),
        log_c1=rules.marks is Marks.LOGS,
        log_c0=rules.marks is Marks.LOGS,
        got_c1=pending[0],
        got_c0=pending[1],
        unsent=page.unsent or _marked(rules.marks, converted=not page.is_shared),
        shared_dirty=page.shared_dirty or _marked(rules.marks, converted=page.is_shared),
    )
    return f"hypercall: the page is {'shared' if page.is_shared else 'private'} now", flipped


def _made_private(page: Page, *, sealed: bool) -> Page:
    if sealed:
        page = shared_changed(page)
    else:
        page = (page if page.same_content else private_changed(page))._replace(secret=page.hidden_secret)
    return page._replace(is_shared=False, same_content=True)


def _made_shared(page: Page, *, sealed: bool) -> Page:
    if sealed:
        return page._replace(is_shared=True, hidden_secret=page.secret)
    return shared_changed(page)._replace(is_shared=True, same_content=False, leaked=page.secret, hidden_secret=False)


def _marked(marks: Marks, *, converted: bool) -> bool:
    return marks is Marks.BOTH or (marks is Marks.CONVERTED and converted)


def merged(page: Page, rules: Flips) -> Page:
    """OR what was got from the logs into the sets.

    What was written through C=0 is on the private plane if the page is private.
    """
    return page._replace(
        unsent=page.unsent or page.got_c1 or (page.got_c0 and not page.is_shared),
        shared_dirty=page.shared_dirty or (page.got_c0 and page.is_shared),
        sealed=page.sealed or (page.got_c1 and rules.sealed is not Sealed.LIVE_LOG),
    )
