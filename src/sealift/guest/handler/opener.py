"""The target's end of the records: copy once, then check, then decrypt.

The VMM can write the slot a record lies in while it is opened, so the whole record is copied to private memory first
and the slot is never looked at again. Then every claim of the header is checked, and the pages are reserved; only
then AES-GCM runs, straight into the guest's pages where they form a run, else into private memory and from there.
Guest pages may so receive bytes that turn out to be forged: any failure is the end of this target, which then never
runs, and no record is opened beside one that closes the page stage.

Locking as in the sealer: a channel's lock orders its records, the session's lock guards what channels share.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT
from sealift.errors import SealError, StreamError
from sealift.guest.handler.channels import Carried, OpeningChannel
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import GuestPages
from sealift.guest.handler.rounds import is_run
from sealift.guest.handler.state import HandlerState, StateCollector
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.record import (
    FIRST_EPOCH,
    HEADER_SIZE,
    MAX_RECORD,
    RecordHeader,
    RecordKind,
    StatePiece,
    decode_close,
)

_NEVER = (1 << 32) - 1
"""Stands as last epoch of pages that never travel: no epoch is newer."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a record was: its kind, and how many pages it brought."""

    kind: RecordKind
    pages: int


class Opener:
    """Everything one leg of a session opens.

    Attributes:
        epoch: the epoch whose records may come now.
        close_digest: SHA-256 of the close record, once one was accepted.
        carried: what went over all channels before it.
    """

    def __init__(self, session: Session, pages: GuestPages, excluded: PageSet, epoch: int = FIRST_EPOCH) -> None:
        self._lock = threading.Lock()
        self._migration = session.migration
        self._leg = session.leg
        self._retired = False
        self._pages = pages
        self._excluded = excluded
        self._channels = [OpeningChannel(session, epoch) for _ in range(session.channels)]
        self._buffers: list[bytearray] = []
        self._page_epochs: npt.NDArray[np.uint32] = np.zeros(pages.pages, np.uint32)
        self._page_epochs[excluded.numbers()] = _NEVER
        self._zeroed = PageSet(pages.pages)
        self._filling = 0
        self._state = StateCollector(pages.pages)
        self.epoch = epoch
        self.close_digest: bytes | None = None
        self.carried: Carried | None = None

    def open(self, record: memoryview) -> Opened:
        """Open one record that lies in memory others can write.

        Raises:
            StreamError: it does not parse or is over a limit.
            SealError: it is not authentic, or not the record that is due.
        """
        if len(record) > MAX_RECORD:
            raise StreamError(f"a record of {len(record)} bytes is over the limit of {MAX_RECORD}")
        with self._buffer() as buffer:
            copied = memoryview(buffer)[: len(record)]
            copied[:] = record
            return self._open_private(copied)

    def retire(self) -> tuple[int, ...]:
        """The leg is over: open no more of it. Of every channel, how many records were opened.

        Raises:
            SealError: the machine state has begun to come.
        """
        with ExitStack() as held:
            for channel in self._channels:
                held.enter_context(channel.lock)
            if self._state.begun:
                raise SealError("a new leg is asked for after the machine state")
            self._retired = True
            return tuple(channel.sequence for channel in self._channels)

    def follower(self, session: Session, epoch: int) -> Opener:
        """What opens the next leg, from `epoch` on, once this one has retired: it knows every page that came."""
        next_ = Opener(session, self._pages, self._excluded, epoch)
        next_._page_epochs, next_._buffers = self._page_epochs, self._buffers
        self._pages.punch(self._zeroed)
        return next_

    def finish(self) -> HandlerState:
        """The source's state, after the close record.

        Raises:
            SealError: it is incomplete, or names pages of which no record came.
        """
        state = self._state.finish()
        missing = state.presence.copy()
        missing -= self._excluded
        missing -= self._received()
        if missing:
            raise SealError(f"the stream closed without {len(missing)} pages, the first is {missing.numbers(1)[0]}")
        return state

    def _received(self) -> PageSet:
        """Pages that came at least once (and those that never travel)."""
        bits = np.zeros((self._pages.pages + 63) // 64 * 64, np.bool_)
        bits[: self._pages.pages] = self._page_epochs > 0
        return PageSet(self._pages.pages, np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64))

    def _open_private(self, record: memoryview) -> Opened:
        header = RecordHeader.decode(record)
        if header.size != len(record):
            raise StreamError(f"a record of {header.size} bytes came in {len(record)}: truncated or too long")
        self._check_place(header)
        channel = self._channels[header.channel]
        with channel.lock:
            self._check_turn(header, channel)
            match header.kind:
                case RecordKind.PAGES:
                    self._open_pages(header, channel, record)
                case RecordKind.EPOCH:
                    channel.unseal(header, record, memoryview(bytearray()))
                    self._end_epoch(channel)
                case RecordKind.STATE | RecordKind.CLOSE:
                    self._open_end(header, channel, record)
        return Opened(header.kind, header.count)

    def _check_place(self, header: RecordHeader) -> None:
        if header.migration != self._migration:
            raise SealError("a record belongs to another migration or snapshot")
        if header.leg != self._leg:
            raise SealError(f"a record belongs to leg {header.leg}; this is leg {self._leg}")
        if header.channel >= len(self._channels):
            raise SealError(f"a record names channel {header.channel} of {len(self._channels)}")

    def _check_turn(self, header: RecordHeader, channel: OpeningChannel) -> None:
        if self._retired:
            raise SealError(f"{header.name} belongs to a leg that is over")
        if header.sequence != channel.sequence:
            raise SealError(f"{header.name} is out of turn: {channel.sequence} is due (dropped, repeated or reordered)")
        if header.epoch != self.epoch:
            raise SealError(
                f"{header.name} belongs to epoch {header.epoch} while {self.epoch} is open: an epoch token is missing, "
                "or this record is of another epoch"
            )
        if channel.epoch != self.epoch:
            raise SealError(f"{header.name} comes after its channel's token of epoch {header.epoch}")
        if self.close_digest is not None:
            raise SealError(f"{header.name} comes after the close record")

    def _open_pages(self, header: RecordHeader, channel: OpeningChannel, record: memoryview) -> None:
        every = np.frombuffer(record, "<u8", header.count, HEADER_SIZE).astype(np.uint64, copy=False)
        filled = header.length >> PAGE_SHIFT
        numbers, zeros = every[:filled], every[filled:]
        self._check_ascending(header, numbers)
        ascending = every
        if zeros.size:
            ascending = np.sort(every)
            self._check_ascending(header, ascending)
        if int(ascending[-1]) >= self._pages.pages:
            raise SealError(f"{header.name} has page {ascending[-1]}, which is not in RAM")
        with self._reserved(header, ascending):
            if not numbers.size:
                channel.unseal(header, record, memoryview(bytearray()))
            elif is_run(numbers):
                window = self._pages.window(int(numbers[0]), numbers.size)
                channel.unseal(header, record, window)
            else:
                with self._buffer() as buffer:
                    plain = memoryview(buffer)[: header.length]
                    channel.unseal(header, record, plain)
                    self._pages.scatter(numbers, plain)
            self._keep_zeros(zeros)

    def _keep_zeros(self, zeros: PageNumbers) -> None:
        """Remember which pages are zero as of this epoch; they become holes at its end, all at once."""
        if zeros.size:
            with self._lock:
                self._zeroed.add(zeros)

    def _check_ascending(self, header: RecordHeader, numbers: PageNumbers) -> None:
        if numbers.size > 1 and not bool((numbers[1:] > numbers[:-1]).all()):
            raise SealError(f"{header.name} has page numbers that do not ascend")

    @contextmanager
    def _reserved(self, header: RecordHeader, numbers: PageNumbers) -> Iterator[None]:
        """Claim the pages for this epoch, so that no other channel brings them too, and hold off the end."""
        where = slice(int(numbers[0]), int(numbers[-1]) + 1) if is_run(numbers) else numbers
        with self._lock:
            if self._state.begun:
                raise SealError("a record with pages comes after the machine state")
            if int(self._page_epochs[where].max()) >= header.epoch:
                raise SealError(f"{header.name} has a page that {self._why_not(numbers)}")
            self._page_epochs[where] = header.epoch
            self._filling += 1
        try:
            yield
        finally:
            with self._lock:
                self._filling -= 1

    def _why_not(self, numbers: PageNumbers) -> str:
        if bool(self._excluded.holds(numbers).any()):
            return "never travels"
        return f"comes again in epoch {self.epoch}, or is not newer than what is here"

    def _end_epoch(self, channel: OpeningChannel) -> None:
        with self._lock:
            if self._state.begun:
                raise SealError("an epoch token comes after the machine state")
            channel.epoch += 1
            if all(each.epoch > self.epoch for each in self._channels):
                self._pages.punch(self._zeroed)
                self._zeroed = PageSet(self._pages.pages)
                self.epoch += 1

    def _open_end(self, header: RecordHeader, channel: OpeningChannel, record: memoryview) -> None:
        """Open what ends the page stage: a piece of state, or the close record."""
        plain = memoryview(bytearray(header.length))
        before = Carried.over(self._channels)
        channel.unseal(header, record, plain)
        with self._lock:
            if self._filling:
                raise SealError("the stream ends while records with pages are still being opened")
            if header.kind is RecordKind.STATE:
                self._state.add(StatePiece.decode(plain))
                return
            if decode_close(plain) != before.ends:
                raise SealError("the close record counts other records than those that came")
            self.carried = before
            self.close_digest = hashlib.sha256(record).digest()

    @contextmanager
    def _buffer(self) -> Iterator[bytearray]:
        """Private memory for one record; buffers are kept, since fresh memory costs a fault a page."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray(MAX_RECORD)
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)
