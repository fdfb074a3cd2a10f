"""The designs that were proposed or come to mind, each one step away from ours, and what becomes of them.

A design with a page encryption bitmap sends a page as one kind only, in one thread, as QEMU does. Both orders that
were discussed are here (qemu-devel, 16 July 2019, "[PATCH v2 04/13] kvm: add support to sync the page encryption
state bitmap").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.migration import COPY, HARVEST, SEAL, Aspect, Design, Scope, Step
from model.page import Flips, Guest, Marks, Sealed

S = Step

# QEMU's migration thread: take the page from the one dirty bitmap, send it as the kind the bitmap says.
SEND_AS_BITMAP_SAYS = (
    S.TAKE_PRIVATE,
    S.TAKE_SHARED,
    S.READ_BY_BITMAP,
    S.SEND_PRIVATE,
    S.SEND_SHARED,
    S.CLOSE_EPOCH,
)
LOG_THEN_BITMAP = (*HARVEST, S.SYNC_BITMAP, *SEND_AS_BITMAP_SAYS)
BITMAP_THEN_LOG = (S.SYNC_BITMAP, *HARVEST, *SEND_AS_BITMAP_SAYS)

# One vCPU is enough to find what is wrong; what is right is shown with two.
PRIVATE = Scope(vcpus=1, aspects=frozenset({Aspect.PRIVATE}))
SHARED = Scope(vcpus=1, aspects=frozenset({Aspect.SHARED}))
SECRECY = Scope(vcpus=1, aspects=frozenset({Aspect.SECRECY}))
DEVICE = Scope(vcpus=1, device=True, aspects=frozenset({Aspect.SHARED}))
BOTH_PLANES = Scope(vcpus=1, aspects=frozenset({Aspect.PRIVATE, Aspect.SHARED}))


@dataclass(frozen=True)
class Proposal:
    """A design under question.

    Attributes:
        title: what it does differently from ours.
        because: why it fails, or why it does not.
    """

    title: str
    design: Design
    scope: Scope
    because: str


OURS = {
    "private plane": replace(PRIVATE, vcpus=2),
    "shared plane, with a device": replace(DEVICE, vcpus=2),
    "secrecy": replace(SECRECY, vcpus=2),
}
"""Sealift's design is explored once for each of these; nothing couples them (see `Aspect`)."""

UNSAFE = {
    "read-before-clear": Proposal(
        "read the page before clearing the log",
        Design(
            threads=(
                (
                    S.GET,
                    S.MERGE,
                    S.TAKE_PRIVATE,
                    S.READ_PRIVATE,
                    S.CLEAR,
                    S.FLUSH_0,
                    S.FLUSH_1,
                    S.SEND_PRIVATE,
                    S.CLOSE_EPOCH,
                ),
            )
        ),
        PRIVATE,
        "The write falls between the read and the clear: too late for the one, erased from the log by the other.",
    ),
    "clear-unsent-after-read": Proposal(
        "clear the unsent bit after reading the page",
        Design(
            threads=(HARVEST, (S.READ_UNTAKEN, S.FORGET_PRIVATE, S.SEND_PRIVATE, S.CLOSE_EPOCH), COPY),
        ),
        PRIVATE,
        "A flip or a harvest sets the bit again between the read and the clear, for content newer than the read.",
    ),
    "no-flush": Proposal(
        "clear the log without a TLB flush",
        Design(threads=((S.GET, S.CLEAR, S.MERGE), SEAL, COPY)),
        PRIVATE,
        "A vCPU writes on through an entry that was made writable when the page was logged last, and no log sees it.",
    ),
    "flush-one-vcpu": Proposal(
        "flush only one vCPU's TLB",
        Design(threads=((S.GET, S.CLEAR, S.FLUSH_0, S.MERGE), SEAL, COPY)),
        replace(PRIVATE, vcpus=2),
        "The same through the other vCPU.",
    ),
    "flush-after-merge": Proposal(
        "publish the unsent bits before the TLB flush is complete",
        Design(threads=((S.GET, S.CLEAR, S.MERGE, S.FLUSH_0, S.FLUSH_1), SEAL, COPY)),
        PRIVATE,
        "The handler is quick: it takes and reads the page while a stale entry still lets a vCPU write unseen.",
    ),
    "merge-before-clear": Proposal(
        "OR the log into the sets before clearing it",
        Design(threads=((S.GET, S.MERGE, S.CLEAR, S.FLUSH_0, S.FLUSH_1), SEAL, COPY)),
        PRIVATE,
        "The handler takes and reads the page before clear and flush are done, and both of them hide a later write.",
    ),
    "one-epoch-twice": Proposal(
        "send a page twice in one epoch",
        Design(threads=(HARVEST, (*SEAL[:-1], *SEAL), COPY)),
        PRIVATE,
        "The target refuses a page that is not newer than its own. A page marked again waits for the next epoch.",
    ),
    "private-plane-ignored": Proposal(
        "ignore the private plane while the page is shared",
        Design(
            threads=(HARVEST, (S.TAKE_PRIVATE, S.READ_IF_PRIVATE, S.SEND_PRIVATE, S.CLOSE_EPOCH), COPY),
        ),
        PRIVATE,
        "C=1 reaches the private plane whatever the page's state, and Linux sets it before it makes the hypercall.",
    ),
    "flips-mark-nothing": Proposal(
        "a flip marks neither plane",
        Design(flips=Flips(marks=Marks.NONE)),
        SHARED,
        "The flip itself made new content on the plane it converts to. No engine logs that.",
    ),
    "bitmap-before-log": Proposal(
        "sync the encryption bitmap before the dirty log, flips mark the log, for a tidy guest",
        Design(threads=(BITMAP_THEN_LOG,), flips=Flips(marks=Marks.LOGS), guest=Guest.TIDY),
        BOTH_PLANES,
        "The flip falls between the two: its dirty bit is taken and spent on sending the page as the old kind.",
    ),
    "log-before-bitmap-no-marks": Proposal(
        "sync the encryption bitmap after the dirty log, flips mark nothing, for a tidy guest",
        Design(threads=(LOG_THEN_BITMAP,), flips=Flips(marks=Marks.NONE), guest=Guest.TIDY),
        BOTH_PLANES,
        "The page went out as its old kind before the flip, and nothing asks for it again.",
    ),
    "log-before-bitmap-sets": Proposal(
        "sync the encryption bitmap after the dirty log, flips mark the set, for a tidy guest",
        Design(threads=(LOG_THEN_BITMAP,), guest=Guest.TIDY),
        BOTH_PLANES,
        "The mark joins the set of the round under way and is spent on sending the page as its old kind.",
    ),
    "log-before-bitmap-linux": Proposal(
        "sync the encryption bitmap after the dirty log, for a guest that changes its page table first",
        Design(threads=(LOG_THEN_BITMAP,), flips=Flips(marks=Marks.LOGS)),
        BOTH_PLANES,
        "One kind per page is one plane too few while page table and page state disagree.",
    ),
    "device-marks-first": Proposal(
        "a device marks what it is about to write",
        Design(device_writes_first=False),
        DEVICE,
        "The VMM sends the page between the mark and the write.",
    ),
    "flip-during-harvest": Proposal(
        "let a flip happen while a harvest is under way",
        Design(exclusive=False),
        SECRECY,
        "The log is cleared and what it said is not merged yet, so the flip takes a secret for public content.",
    ),
    "sealed-from-live-log": Proposal(
        "ask the engine's log alone whether a page was written through C=1",
        Design(flips=Flips(sealed=Sealed.LIVE_LOG)),
        SECRECY,
        "Each round of the migration clears that log.",
    ),
    "sealed-since-last-flip": Proposal(
        "keep what was not written through C=1 since the last flip, whatever was there before",
        Design(flips=Flips(sealed=Sealed.FORGOTTEN_BY_FLIPS)),
        SECRECY,
        "To shared and back restores the old secret. So a flip to private must count as a write through C=1.",
    ),
    "sealed-set-stays-behind": Proposal(
        "do not send which pages count as written through C=1",
        Design(sends_sealed_set=False),
        SECRECY,
        "The next flip, on the target, would turn what the guest relies on into ciphertext, or show the host a secret.",
    ),
}
"""Each of these has a counter-example."""

SAFE = {
    "log-before-bitmap": Proposal(
        "sync the encryption bitmap after the dirty log, flips mark the log, for a tidy guest",
        Design(threads=(LOG_THEN_BITMAP,), flips=Flips(marks=Marks.LOGS), guest=Guest.TIDY),
        replace(BOTH_PLANES, vcpus=2),
        "A flip after the log was got marks the page for the next round; one before it is in the bitmap already.",
    ),
    "flips-mark-converted": Proposal(
        "a flip marks only the plane it converts to",
        Design(flips=Flips(marks=Marks.CONVERTED)),
        PRIVATE,
        "A flip merges the logs first, and the other plane keeps its content. Marking both needs no such argument.",
    ),
    "flips-mark-converted-shared": Proposal(
        "the same, seen from the shared plane",
        Design(flips=Flips(marks=Marks.CONVERTED)),
        SHARED,
        "As above.",
    ),
}
"""None of these has one, within everything that the model can express."""
