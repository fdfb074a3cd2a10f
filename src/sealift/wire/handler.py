"""What a VMM asks of the migration handler in its guest, over the handler's own socket.

The handler answers while the guest runs, is stopped or hangs; it sleeps on this socket when there is nothing to do.
Requests are answered in order, so a VMM may have several underway. Records travel in ring slots, which are memfds;
what travels here is copied by the kernel and cannot change after it was checked::

    source VMM   Offer, Confirm │ BeginEpoch, Pull …, EndEpoch │ Stop, SealState …, Close │ tokens
    target VMM   Answer, Confirmed │ Open …                                               │ tokens
    a new leg    AskForLeg, BeginLeg at the source, AnswerLeg at the target, and on as before
    post-copy    LeaveMissing before SealState; behind STARTED a new leg, and Pull, SealMissing at the source, Open,
                 TakeDemands at the target, until Fetch(FILLED) there
    snapshot     Save              │ the same                                             │ EndSnapshot
    restore      Restore           │ Open …                                               │ TakeSnapshot, Fetch(STARTED)
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from sealift.wire.platform import Done, Failed, Message
from sealift.wire.token import TokenKind

Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Offer(Message, frozen=True):
    """Source: begin a migration over `channels` channels. Reply: Blob, for the target's handler."""

    channels: int


class Answer(Message, frozen=True):
    """Target: take the source's offer. Reply: Blob, for the source's handler."""

    offer: bytes


class Confirm(Message, frozen=True):
    """Source: take the target's answer. Reply: Blob, for the target's handler."""

    answer: bytes


class Confirmed(Message, frozen=True):
    """Target: take the source's confirmation; records are accepted from now on."""

    confirm: bytes


class AskForLeg(Message, frozen=True):
    """Source: the migration's connections were lost. Reply: Blob (`sealift.wire.leg`), for the target's handler."""


class AnswerLeg(Message, frozen=True):
    """Target: take the source's request for a new leg. Reply: Blob, for the source's handler."""

    request: bytes


class BeginLeg(Message, frozen=True):
    """Source: take the target's answer; what it did not accept is unsent again."""

    answer: bytes


class Save(Message, frozen=True):
    """Source: begin a snapshot over `channels` channels. Reply: Blob, its header."""

    channels: int


class EndSnapshot(Message, frozen=True):
    """Source: end a closed snapshot, all bytes of which have the SHA-256 `digest`. Reply: Blob, its end."""

    digest: Digest


class Restore(Message, frozen=True):
    """Receiver: bar the vCPUs and take the header of the snapshot to open."""

    header: bytes


class TakeSnapshot(Message, frozen=True):
    """Receiver: take a snapshot's end, before which came bytes with the SHA-256 `digest`."""

    end: bytes
    digest: Digest


class BeginEpoch(Message, frozen=True):
    """Source: read the dirty logs and start a round over what is unsent. Reply: EpochBegun."""


class Pull(Message, frozen=True):
    """Source: seal the next pages of the round, `pages` at most, into a slot of the outgoing ring. Reply: Sealed.

    `number` counts the pulls of a channel in a migration, from 1: none is carried out twice.
    """

    channel: int
    number: int
    slot: int
    pages: int


class EndEpoch(Message, frozen=True):
    """Source: seal the token that closes the round on a channel. Reply: Sealed."""

    channel: int
    slot: int


class CountUnsent(Message, frozen=True):
    """Source: how many pages are still to move. Reply: Unsent."""


class RoundPages(Message, frozen=True):
    """Source, mailbox transfer: RAM pages of the round from `first` on, `limit` at most. Reply: PageList."""

    first: int
    limit: int


class ServeMailbox(Message, frozen=True):
    """The mailbox's doorbell: a command lies in it. Reply: Done once it is answered there."""


class Stop(Message, frozen=True):
    """Source: bar the vCPUs (all must have left guest mode) until Cancel."""


class LeaveMissing(Message, frozen=True):
    """Source, stopped: leave what is unsent, of the round too, for after the switch. Reply: Unsent, how many pages."""


class SealMissing(Message, frozen=True):
    """Source, behind STARTED: seal a RAM page that the target demands. Reply: Sealed, of nothing if it was before."""

    page: int
    slot: int


class TakeDemands(Message, frozen=True):
    """Target: missing RAM pages that somebody waits for and that were not told yet, some at most. Reply: PageList.

    The eventfd that came with the handler's socket is readable while there are any.
    """


class SealState(Message, frozen=True):
    """Source: seal the next piece of machine state. Reply: Sealed; `remaining` counts pieces still to come."""

    slot: int


class Close(Message, frozen=True):
    """Source: seal the close record, which ends the stream. Reply: Sealed."""

    slot: int


class Open(Message, frozen=True):
    """Target: check and open the record of `length` bytes in a slot of the incoming ring. Reply: Opened."""

    slot: int
    length: int


class Fetch(Message, frozen=True):
    """Make (or fetch again) a token of this side. Reply: Blob."""

    kind: TokenKind


class Deliver(Message, frozen=True):
    """Take a token of the other side."""

    token: bytes


class GetReceipt(Message, frozen=True):
    """This side's half of the receipt of the migration that ended last. Reply: Blob (`sealift.wire.receipt`)."""


class GetResumeRequest(Message, frozen=True):
    """What a fenced source asks its owner, should the target be lost. Reply: Blob (`sealift.wire.resume`)."""


class Cancel(Message, frozen=True):
    """Source: end the migration before FINAL, or the snapshot; the guest may run."""


class GetStatus(Message, frozen=True):
    """Reply: HandlerStatus."""


class Blob(Message, frozen=True):
    """Bytes for the other side's handler; opaque to VMMs."""

    data: bytes


class EpochBegun(Message, frozen=True):
    """Number of the epoch, and private pages to send in it."""

    epoch: int
    pages: int


class Unsent(Message, frozen=True):
    """Private pages left in the round, and written since it began."""

    pages: int


class Sealed(Message, frozen=True):
    """A record of `length` bytes lies in the slot. It holds `pages`; `remaining` are still to come in the round."""

    length: int
    pages: int
    remaining: int


class Opened(Message, frozen=True):
    """The record was authentic and in its place; `kind` as in sealift.wire.record, `pages` were written.

    Post-copy: so many are still `missing`.
    """

    kind: int
    pages: int
    missing: int = 0


class PageList(Message, frozen=True):
    """RAM page numbers, each 8 bytes little-endian."""

    numbers: bytes


class HandlerStatus(Message, frozen=True):
    """`ready`: nothing keeps it from an offer, or it is a receiver that has a migration key and has not served yet.

    `state` is as the commit table names it, `migration` the id of the current migration (16 bytes), empty before one.
    """

    ready: bool
    state: str
    migration: bytes


HandlerRequest: TypeAlias = (
    Offer
    | Answer
    | Confirm
    | Confirmed
    | AskForLeg
    | AnswerLeg
    | BeginLeg
    | Save
    | EndSnapshot
    | Restore
    | TakeSnapshot
    | BeginEpoch
    | Pull
    | EndEpoch
    | CountUnsent
    | RoundPages
    | ServeMailbox
    | Stop
    | LeaveMissing
    | SealMissing
    | TakeDemands
    | SealState
    | Close
    | Open
    | Fetch
    | Deliver
    | GetReceipt
    | GetResumeRequest
    | Cancel
    | GetStatus
)

HandlerReply: TypeAlias = Blob | EpochBegun | Unsent | Sealed | Opened | PageList | HandlerStatus | Done | Failed
