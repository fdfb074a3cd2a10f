"""Method mh: the guest's own migration handler seals and opens; the VMM carries.

Two transfers move pages between VMM and handler, `ring` and `mailbox`; everything else is the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from sealift.address import PAGE_SHIFT, pages_spanned
from sealift.errors import GuestError, InternalError, SealiftError, StreamError
from sealift.launch.image import GuestRecipe
from sealift.pageset import PageNumbers, PageSet
from sealift.sev.policy import Policy
from sealift.vmm.handler import HandlerClient
from sealift.vmm.launch import Begun, Launched, begin, begin_restore, complete
from sealift.vmm.machine import Machine
from sealift.vmm.memory import SharedMemory
from sealift.vmm.migration.mailbox import Mailbox, MailboxSource, MailboxTarget
from sealift.vmm.migration.method import PUSHED_PAGES, Entered, Record
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.ring import RingSource, RingTarget
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState
from sealift.wire import handler as wire
from sealift.wire.handler import Pull
from sealift.wire.handover import HandlerOffer, Transfer
from sealift.wire.owner import OwnerService
from sealift.wire.platform import Done
from sealift.wire.token import TokenKind

_PATIENCE_S = 5.0
"""A handler that has not answered a request underway for this long hangs; sealing a record takes a millisecond."""

_START_UP_LIMIT_S = 30.0
"""A receiver's start-up code is done after some ten instructions; this is for machines under heavy load."""

_UNKNOWN_DIGEST = bytes(32)
"""Stands in a recipe for the handler digest, which `launch` takes from the platform."""

_FIRST_SLOT, _SECOND_SLOT = 0, 1


_SENDING, _FENCED, _SERVING, _GONE = "SENDING", "FENCED", "SERVING", "GONE"
_FILLING = "FILLING"
"""States of a source, and of a target, in the commit table, as HandlerStatus names them."""


class SourceTransfer(Protocol):
    """Gets the pages of a round out of the handler."""

    def records(self, pages: int) -> Iterator[Record]:
        """The records of a round of `pages` pages."""


class TargetTransfer(Protocol):
    """Gets records into the handler; see `method.TargetMethod`."""

    def space(self, length: int) -> memoryview:
        """Where the next record is to be received."""

    def take(self, length: int) -> None:
        """It lies there."""

    def settle(self) -> None:
        """All are opened."""


class HandlerDoorbell:
    """Rings for the mailbox over the handler's socket (`mailbox.Doorbell`)."""

    def __init__(self, handler: HandlerClient) -> None:
        self._handler = handler
        self._rung = False

    def ring(self) -> None:
        """Wake the handler, if it was not woken since it was last done."""
        if not self._rung:
            self._handler.send(wire.ServeMailbox())
            self._rung = True

    def wait(self, timeout_s: float) -> bool:
        """Wait until the handler that was rung for is done; False: not in time."""
        try:
            self._handler.receive(Done, timeout_s)
        except TimeoutError:
            return False
        self._rung = False
        return True


def _mailbox(handler: HandlerClient, memory: SharedMemory) -> Mailbox:
    area = memory.view(handler.shape.mailbox_gpa, handler.shape.mailbox_size)
    return Mailbox(area, HandlerDoorbell(handler), handler.next_mailbox_request)


def source_transfer(kind: Transfer, handler: HandlerClient, memory: SharedMemory, channels: int) -> SourceTransfer:
    """The source's end of a transfer."""
    match kind:
        case Transfer.RING:
            return RingSource(handler, channels)
        case Transfer.MAILBOX:
            return MailboxSource(_mailbox(handler, memory), memory.layout, _RoundList(handler))


def target_transfer(kind: Transfer, handler: HandlerClient, memory: SharedMemory) -> TargetTransfer:
    """The target's end of a transfer."""
    ring = RingTarget(handler)
    match kind:
        case Transfer.RING:
            return ring
        case Transfer.MAILBOX:
            return MailboxTarget(_mailbox(handler, memory), memory.layout, ring)


class _RoundList:
    """The handler's list of pages left in the round (`mailbox.RoundList`)."""

    def __init__(self, handler: HandlerClient) -> None:
        self._handler = handler

    def __call__(self, first: int, limit: int) -> PageNumbers:
        """At most `limit` of them from page `first` on."""
        listed = self._handler.request(wire.RoundPages(first, limit), wire.PageList).numbers
        if len(listed) % 8:
            raise StreamError("the migration handler's list of pages does not parse")
        return np.frombuffer(listed, "<u8").astype(np.uint64)


class HandlerRounds:
    """What leaves a handler, wherever it goes (`method.RoundsMethod`)."""

    def __init__(self, machine: Machine, launched: Launched, parameters: Parameters) -> None:
        """For a guest of that launch.

        Raises:
            RefusedError: it has no handler.
        """
        self._handler = handler = machine.platform.open_handler()
        self._memory = machine.memory
        self._measure = launched.measure
        self._transfer_kind = parameters.transfer
        self._channels = parameters.channels
        self._transfer = source_transfer(parameters.transfer, handler, machine.memory, parameters.channels)
        self._layout = machine.layout
        self._round_pages = 0
        self._was_cut = self._open = False

    def identity(self) -> bytes:
        """The migration's or snapshot's id."""
        return self._handler.status().migration

    def excluded(self) -> PageSet:
        """The mailbox's pages."""
        pages, shape = PageSet(self._layout.pages), self._handler.shape
        offset = self._layout.offset(shape.mailbox_gpa, shape.mailbox_size)
        if offset is not None:
            pages.add_range(offset >> PAGE_SHIFT, pages_spanned(offset, shape.mailbox_size))
        return pages

    def begin_round(self) -> int:
        """Begin an epoch; private pages in it."""
        self._round_pages = self._handler.request(wire.BeginEpoch(), wire.EpochBegun).pages
        self._open = True
        return self._round_pages

    def records(self) -> Iterator[Record]:
        """The epoch's pages, then its token on every channel."""
        yield from self._transfer.records(self._round_pages)
        if not self._was_cut:
            self._open = False
            yield from self._end_round()

    def _end_round(self) -> Iterator[Record]:
        for channel in range(self._channels):
            yield self._sealed(wire.EndEpoch(channel, _FIRST_SLOT))[0]

    def unsent(self) -> int:
        """Private pages to move."""
        return self._handler.request(wire.CountUnsent(), wire.Unsent).pages

    def stop(self) -> None:
        """Bar the vCPUs."""
        self._handler.do(wire.Stop())

    def end_records(self) -> Iterator[Record]:
        """Presence and machine state, then the close record."""
        remaining = 1
        while remaining:
            record, remaining = self._sealed(wire.SealState(_FIRST_SLOT))
            yield record
        yield self._sealed(wire.Close(_FIRST_SLOT))[0]

    def cancel(self) -> None:
        """Let the guest run here."""
        self._handler.drain(_PATIENCE_S)
        self._handler.do(wire.Cancel())

    def _offer(self, message: bytes) -> bytes:
        """The handler's first message, with what names the guest to its owner."""
        return HandlerOffer(self._measure, self._transfer_kind, message).encode()

    def _sealed(self, request: wire.EndEpoch | wire.SealState | wire.Close) -> tuple[Record, int]:
        sealed = self._handler.request(request, wire.Sealed)
        channel = request.channel if isinstance(request, wire.EndEpoch) else 0
        return Record((self._handler.slot_out(request.slot, sealed.length),), sealed.pages, channel), sealed.remaining


class HandlerSource(HandlerRounds):
    """The source's handler as a migration method (`method.SourceMethod`, `LegMethod`, `LateSource`)."""

    _missing = 0
    _pushes = 0

    def start(self) -> bytes:
        """OFFER."""
        return self._offer(self._handler.blob(wire.Offer(self._channels)))

    def agree(self, answer: bytes) -> bytes:
        """ANSWER in, CONFIRM out."""
        return self._handler.blob(wire.Confirm(answer))

    def resumable(self) -> HandlerSource | None:
        """As long as its handler is sending."""
        self._handler.drain(_PATIENCE_S)
        return self if self._handler.status().state == _SENDING else None

    def ask_for_leg(self) -> bytes:
        """A leg request."""
        self._transfer = source_transfer(self._transfer_kind, self._handler, self._memory, self._channels)
        return self._offer(self._handler.blob(wire.AskForLeg()))

    def begin_leg(self, answer: bytes) -> None:
        """The leg answer in."""
        self._handler.do(wire.BeginLeg(answer))
        self._pushes = 0

    def late(self) -> HandlerSource | None:
        """It is, unless the mailbox moves it."""
        return self if isinstance(self._transfer, RingSource) else None

    def cut(self) -> None:
        """Pull no more."""
        if isinstance(self._transfer, RingSource):
            self._transfer.cut()
            self._was_cut = True

    def leave(self) -> Iterator[Record]:
        """What is unsent is missing; a token on every channel that lacks it."""
        self._missing = self._handler.request(wire.LeaveMissing(), wire.Unsent).pages
        if self._open:
            yield from self._end_round()

    def missing(self) -> int:
        """As the handler said last."""
        return self._missing

    def serving(self) -> bool:
        """Whether STARTED was taken and FILLED was not."""
        self._handler.drain(_PATIENCE_S)
        return self._handler.status().state == _SERVING

    def push(self) -> Record | None:
        """The next pages in their order."""
        self._pushes += 1
        sealed = self._handler.request(Pull(0, self._pushes, _FIRST_SLOT, PUSHED_PAGES), wire.Sealed)
        self._missing = sealed.remaining
        if not sealed.length:
            return None
        return Record((self._handler.slot_out(_FIRST_SLOT, sealed.length),), sealed.pages)

    def demanded(self, page: int) -> Record | None:
        """One page."""
        sealed = self._handler.request(wire.SealMissing(page, _SECOND_SLOT), wire.Sealed)
        if not sealed.length:
            return None
        return Record((self._handler.slot_out(_SECOND_SLOT, sealed.length),), 1, 1)

    def filled(self, token: bytes) -> None:
        """FILLED in."""
        self._handler.deliver(token)

    def fence(self, prepared: bytes) -> bytes:
        """PREPARED in, FINAL out."""
        self._handler.deliver(prepared)
        return self._handler.fetch(TokenKind.FINAL)

    def release(self, answer: bytes) -> bool:
        """STARTED or FILLED (True), or ABORTED (False) in."""
        self._handler.deliver(answer)
        return self._handler.status().state in {_SERVING, _GONE}

    def receipt(self) -> bytes:
        """The source's statement."""
        return _receipt(self._handler)

    def resume_request(self) -> bytes:
        """What the handler asks its owner."""
        return self._handler.blob(wire.GetResumeRequest())

    def fenced(self) -> bool:
        """Whether FINAL was made and is not taken back."""
        self._handler.drain(_PATIENCE_S)
        return self._handler.status().state in {_FENCED, _SERVING}

    def way_out(self, name: str) -> str:
        """The target's token decides, or else the owner."""
        return (
            "it is not known whether the guest runs on the target, so it stays stopped here; bring the target's token "
            f"(sealift token import {name} FILE), or if the target is lost, its owner's (sealift token export {name})"
        )


class HandlerSnapshot(HandlerRounds):
    """The source's handler as the source of a snapshot (`method.SnapshotMethod`)."""

    def begin(self) -> bytes:
        """SNAPSHOT, the header."""
        return self._offer(self._handler.blob(wire.Save(self._channels)))

    def end(self, stream_digest: bytes) -> bytes:
        """The SNAPSHOT token."""
        return self._handler.blob(wire.EndSnapshot(stream_digest))


class HandlerSink:
    """The receiver's handler, which opens records (`method.RecordSink`)."""

    def __init__(self, handler: HandlerClient, transfer: TargetTransfer) -> None:
        self._handler = handler
        self._transfer = transfer

    def space(self, length: int) -> memoryview:
        """Where the next record is to be received."""
        return self._transfer.space(length)

    def take(self, length: int) -> None:
        """It lies there."""
        self._transfer.take(length)

    def settle(self) -> None:
        """All are opened."""
        self._transfer.settle()


class HandlerTarget(HandlerSink):
    """The target's handler as a migration method (`method.TargetMethod`, `LateTarget`)."""

    def late(self) -> HandlerTarget | None:
        """As long as it fills."""
        return self if self._handler.status().state == _FILLING else None

    @property
    def bell(self) -> int:
        """The platform's."""
        return self._handler.bell

    def demands(self) -> list[int]:
        """As the platform hears them from vCPUs."""
        listed = self._handler.request(wire.TakeDemands(), wire.PageList).numbers
        return [int(page) for page in np.frombuffer(listed, "<u8")]

    def install(self, channel: int, record: memoryview) -> int:
        """Each channel has a slot of its own."""
        self._handler.slot_in(channel)[: len(record)] = record
        return self._handler.request(wire.Open(channel, len(record)), wire.Opened).missing

    def filled(self) -> bytes:
        """FILLED out."""
        return self._handler.fetch(TokenKind.FILLED)

    def answer(self, offer: bytes) -> bytes:
        """OFFER in, ANSWER out."""
        return self._handler.blob(wire.Answer(HandlerOffer.decode(offer).offer))

    def agreed(self, confirm: bytes) -> None:
        """CONFIRM in."""
        self._handler.do(wire.Confirmed(confirm))

    def answer_leg(self, offer: bytes) -> bytes:
        """A leg request in, the leg answer out."""
        return self._handler.blob(wire.AnswerLeg(HandlerOffer.decode(offer).offer))

    def prepared(self) -> bytes:
        """PREPARED out."""
        return self._handler.fetch(TokenKind.PREPARED)

    def ready(self, final: bytes) -> None:
        """FINAL in."""
        self._handler.deliver(final)

    def started(self) -> bytes:
        """STARTED out."""
        return self._handler.fetch(TokenKind.STARTED)

    def receipt(self) -> bytes:
        """The target's statement."""
        return _receipt(self._handler)

    def abort(self) -> bytes:
        """ABORTED out; empty where no migration had begun, or the handler itself is gone."""
        try:
            self._handler.drain(_PATIENCE_S)
            return self._handler.fetch(TokenKind.ABORTED)
        except SealiftError:
            return b""


def _receipt(handler: HandlerClient) -> bytes:
    """A handler's half of a receipt; without one a migration is as complete as with it."""
    try:
        return handler.blob(wire.GetReceipt())
    except SealiftError:
        return b""


class HandlerRestore(HandlerSink):
    """The receiver's handler as what restores a snapshot (`method.RestoreMethod`)."""

    def begin(self, offer: bytes) -> None:
        """SNAPSHOT, the header."""
        self._handler.do(wire.Restore(HandlerOffer.decode(offer).offer))

    def finish(self, end: bytes, stream_digest: bytes) -> None:
        """The SNAPSHOT token."""
        self._handler.do(wire.TakeSnapshot(end, stream_digest))

    def start(self) -> None:
        """STARTED, which nobody waits for."""
        self._handler.fetch(TokenKind.STARTED)


class HandlerEntrance:
    """Lets guests in by way of a receiver that the owner approves (`method.Entrance`).

    `startup` is the start-up code of the receiver image.
    """

    def __init__(self, platform: Platform, owner: OwnerService, startup: bytes) -> None:
        self._platform = platform
        self._owner = owner
        self._startup = startup
        self._offer: HandlerOffer | None = None
        self._begun: Begun | None = None

    def admit(self, offer: bytes) -> None:
        """Ask the owner whether it wants its guest here."""
        self._offer = HandlerOffer.decode(offer)
        self._begun = begin(self._platform, self._owner, self._offer.measure)

    @property
    def es(self) -> bool:
        """As the policy says that the owner granted."""
        return self._begun is not None and Policy.ES in Policy(self._begun.grant.policy)

    def enter(self, machine: Machine) -> Entered:
        """Launch the receiver."""
        if self._offer is None or self._begun is None:
            raise InternalError("a receiver is to be launched before the owner was asked")
        launched = _launch_receiver(machine, self._startup, self._owner, self._begun)
        return Entered(launched, HandlerTarget(*_way_in(machine, self._offer.transfer)))


class HandlerRestoreEntrance:
    """Lets a snapshot in by way of a receiver that the owner releases for it alone (`method.RestoreEntrance`)."""

    def __init__(self, platform: Platform, owner: OwnerService, startup: bytes, offer: bytes) -> None:
        """Ask the owner whether the snapshot with this offer may be restored here.

        Raises:
            RefusedError: it may not.
            StreamError: the offer makes no sense.
        """
        self._owner = owner
        self._startup = startup
        self._offer = HandlerOffer.decode(offer)
        self._begun = begin_restore(platform, owner, self._offer.offer)

    @property
    def es(self) -> bool:
        """As the policy says that the owner granted."""
        return Policy.ES in Policy(self._begun.grant.policy)

    def enter(self, machine: Machine) -> tuple[Launched, HandlerRestore]:
        """Launch the receiver."""
        launched = _launch_receiver(machine, self._startup, self._owner, self._begun)
        return launched, HandlerRestore(*_way_in(machine, self._offer.transfer))


def _launch_receiver(machine: Machine, startup: bytes, owner: OwnerService, begun: Begun) -> Launched:
    recipe = GuestRecipe(startup, machine.layout, machine.vcpu_count, _UNKNOWN_DIGEST, machine=machine.spec.type).under(
        Policy(begun.grant.policy)
    )
    launched = complete(machine.platform, machine.memory, recipe, owner, begun).finish()
    _run_start_up(machine)
    return launched


def _way_in(machine: Machine, transfer: Transfer) -> tuple[HandlerClient, TargetTransfer]:
    handler = machine.platform.open_handler()
    return handler, target_transfer(transfer, handler, machine.memory)


def _run_start_up(machine: Machine) -> None:
    machine.resume()
    ready = machine.ready.wait(_START_UP_LIMIT_S)
    if machine.state is not RunState.RUNNING:
        raise GuestError(f"the receiver ended while starting up: {machine.report}")
    if not ready:
        raise GuestError(f"the receiver has not started up after {_START_UP_LIMIT_S:.0f} s")
    machine.pause(RunState.INMIGRATE)
