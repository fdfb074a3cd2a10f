"""The source's records: pages of a round, epoch tokens, state and close, sealed on several channels.

A sequence number is spent when a record is sealed; nothing is ever sealed twice under one. Records are written
straight to memory that only the platform can write, from one of two places: the guest's own pages where they form a
run, else a private copy. The guest may write its pages meanwhile: then the record holds some mixture, its tag still
fits (it covers the ciphertext), and the page is in the next round.

Locking: a channel's lock orders its records and is held while AES-GCM runs; the session's lock guards the round and
is held for moments. The first may be held when the second is taken, never the other way.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SIZE
from sealift.errors import SealError, UserError
from sealift.guest.handler.channels import NO_PAGES, Carried, Sealed, SealingChannel
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import GuestPages
from sealift.guest.handler.rounds import Round, is_run
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.record import (
    FIRST_EPOCH,
    MAX_CHANNELS,
    RecordKind,
    StatePiece,
    encode_close,
    page_record_size,
    pages_fitting,
    state_fitting,
)

_CHANNEL_BITS = 4
_CHANNEL_MASK = MAX_CHANNELS - 1
"""A channel's number, beside a record's place."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A request for the next pages of the round.

    Attributes:
        number: the request's number on its channel: one more than the last.
        pages: at most so many.
    """

    channel: int
    number: int
    pages: int


class Sealer:
    """Everything one leg of a session seals.

    Attributes:
        epoch: of the round.
        carried: what went over all channels before the close record, once there is one.
    """

    def __init__(
        self, session: Session, pages: GuestPages, *, skip_zeros: bool = False, epoch: int = FIRST_EPOCH - 1
    ) -> None:
        """Seal rounds after `epoch`.

        `skip_zeros` leaves the content of zero pages out, as the owner allows: the VMM sees how many there are.
        """
        self._skip_zeros = skip_zeros
        self._lock = threading.Lock()
        self._pages = pages
        self._channels = [SealingChannel(number, session, epoch) for number in range(session.channels)]
        self._round = Round(PageSet(pages.pages))
        # Where each page was sealed last: its record's place on the channel, from 1, and the channel; 0 if nowhere.
        self._last: npt.NDArray[np.uint64] = np.zeros(pages.pages, np.uint64)
        self._state: bytes | None = None
        self._state_sealed = 0
        self.carried: Carried | None = None
        self.epoch = epoch

    @property
    def remaining(self) -> int:
        """Pages left in the round."""
        return self._round.remaining

    def retire(self) -> None:
        """The session is over: a pull that is already under way finds no page to seal."""
        with self._lock:
            self._round.rest()

    def surrender(self, accepted: Sequence[int]) -> PageSet:
        """The leg is over, and of every channel the target accepted so many records: what did not arrive.

        A pull that is already under way is waited for, and none finds anything to seal after this.

        Raises:
            SealError: the target cannot have accepted that many.
        """
        with ExitStack() as held:
            for channel in self._channels:
                held.enter_context(channel.lock)
            for number, (channel, records) in enumerate(zip(self._channels, accepted, strict=True)):
                if records > channel.sequence:
                    raise SealError(f"the target accepted {records} of {channel.sequence} records of channel {number}")
            with self._lock:
                lost = self._round.rest()
            places = self._last >> _CHANNEL_BITS
            counts = np.array(accepted, np.uint64)[self._last & _CHANNEL_MASK]
            lost.add(np.flatnonzero(places > counts).astype(np.uint64))
            return lost

    def check_epoch_ended(self) -> None:
        """Whether the round is closed on every channel.

        Raises:
            UserError: it is not; the message names the first channel that lacks its token.
        """
        for number, channel in enumerate(self._channels):
            if channel.ended_epoch != self.epoch:
                raise UserError(f"epoch {self.epoch} is not closed on channel {number}; end it there first")

    def check_ready_for_epoch(self) -> None:
        """Whether another round may begin.

        Raises:
            UserError: the one before is not closed on every channel, or the state was already sealed.
        """
        self.check_epoch_ended()
        if self._state is not None:
            raise UserError("the machine state is already sealed; close the stream, or cancel")

    def begin_epoch(self, pages: PageSet) -> int:
        """Begin the next round with `pages`, which are taken over; its epoch.

        Raises:
            UserError: the round before is not closed on every channel, or the state was already sealed.
        """
        self.check_ready_for_epoch()
        with self._lock:
            self.epoch += 1
            self._round = Round(pages)
            return self.epoch

    def pull(self, request: Pull, out: memoryview) -> Sealed:
        """Seal the next pages of the round to the front of `out`.

        A request that is repeated gets nothing: its sequence number is spent, and nothing is sealed twice.

        Raises:
            UserError: no such channel, a request number out of turn, the epoch is closed on this channel, or `out`
                is too small for a page.
        """
        channel = self._channel(request.channel)
        with channel.lock:
            if request.number != channel.last_request + 1:
                raise UserError(
                    f"pull request {request.number} on channel {request.channel} is out of turn; "
                    f"the next one is {channel.last_request + 1}"
                )
            limit = min(request.pages, pages_fitting(len(out)))
            if limit < 1:
                raise UserError(f"a slot of {len(out)} bytes and a limit of {request.pages} pages hold no page")
            numbers, remaining = self._take(channel, limit)
            length = self._seal_pages(channel, numbers, out, skip_zeros=self._skip_zeros) if numbers.size else 0
            channel.last_request = request.number
            return Sealed(length, numbers.size, remaining)

    def leave_rest(self) -> PageSet:
        """Take out of the round what is left of it; a pull that is already under way has taken its pages."""
        with self._lock:
            return self._round.rest()

    def seal_page(self, page: int, number: int = 0) -> bytes | None:
        """The record of one page of the round, on a channel; None if it is not (or no more) in the round.

        Raises:
            UserError: no such channel, or the epoch is closed on it.
        """
        channel = self._channel(number)
        with channel.lock:
            self._check_epoch_open(channel)
            with self._lock:
                if not self._round.take_page(page):
                    return None
            out = bytearray(page_record_size(1))
            self._seal_pages(channel, np.array([page], np.uint64), memoryview(out), skip_zeros=False)
            return bytes(out)

    def listed(self, first: int, limit: int) -> PageNumbers:
        """The first `limit` pages left in the round from page `first` on."""
        with self._lock:
            return self._round.listed(first, limit)

    def end_epoch(self, number: int) -> bytes:
        """The epoch token record of one channel; the same bytes until the next epoch begins.

        Raises:
            UserError: no such channel, no epoch was begun, or pages are left in the round.
        """
        channel = self._channel(number)
        with channel.lock:
            if self.remaining:
                raise UserError(f"epoch {self.epoch} has {self.remaining} pages left; pull them first")
            if self.epoch < FIRST_EPOCH:
                raise UserError("no epoch was begun")
            if channel.ended_epoch != self.epoch:
                channel.epoch_token = channel.seal_bytes(RecordKind.EPOCH, self.epoch, b"")
                channel.ended_epoch = self.epoch
            return channel.epoch_token

    @property
    def has_state(self) -> bool:
        """Whether the state was handed over."""
        return self._state is not None

    def set_state(self, state: bytes) -> None:
        """Hand over the state to seal."""
        self._state = state

    def seal_state(self, out: memoryview) -> Sealed:
        """Seal the next piece of the state to the front of `out`; length 0 when all is sealed.

        Raises:
            UserError: `out` is too small.
        """
        state, at = self._state or b"", self._state_sealed
        room = state_fitting(len(out))
        if room < 1:
            raise UserError(f"a slot of {len(out)} bytes holds no machine state")
        if at == len(state):
            return Sealed(0, 0, 0)
        piece = StatePiece(len(state), at, state[at : at + room])
        channel = self._channels[0]
        with channel.lock:
            self._state_sealed += len(piece.data)
            length = channel.seal(RecordKind.STATE, self.epoch + 1, NO_PAGES, piece.encode(), out)
        return Sealed(length, 0, len(state) - self._state_sealed)

    def close(self) -> bytes:
        """The close record.

        Raises:
            UserError: a round is not closed on every channel, or state is left to seal.
        """
        self.check_epoch_ended()
        if self._state is None or self._state_sealed != len(self._state):
            raise UserError("the machine state is not sealed to its end; seal the rest first")
        channel = self._channels[0]
        self.carried = Carried.over(self._channels)
        with channel.lock:
            return channel.seal_bytes(RecordKind.CLOSE, self.epoch + 1, encode_close(self.carried.ends))

    def _channel(self, number: int) -> SealingChannel:
        if not 0 <= number < len(self._channels):
            raise UserError(f"there is no channel {number}; this migration has {len(self._channels)}")
        return self._channels[number]

    def _check_epoch_open(self, channel: SealingChannel) -> None:
        if channel.ended_epoch == self.epoch:
            raise UserError(f"epoch {self.epoch} is closed on this channel; begin the next one first")

    def _take(self, channel: SealingChannel, limit: int) -> tuple[PageNumbers, int]:
        self._check_epoch_open(channel)
        with self._lock:
            return self._round.take(limit), self._round.remaining

    def _seal_pages(self, channel: SealingChannel, numbers: PageNumbers, out: memoryview, *, skip_zeros: bool) -> int:
        """Seal the pages; all records through the mailbox have the same length."""
        if is_run(numbers):
            plain = self._pages.window(int(numbers[0]), numbers.size)
        else:
            plain = channel.staging(numbers.size * PAGE_SIZE)
            self._pages.gather(numbers, plain)
        if skip_zeros:
            numbers, plain = _zeros_last(numbers, plain)
        place = channel.sequence + 1 << _CHANNEL_BITS | channel.number
        length = channel.seal(RecordKind.PAGES, self.epoch, numbers, plain, out)
        self._last[numbers] = place
        return length


def _zeros_last(numbers: PageNumbers, plain: memoryview) -> tuple[PageNumbers, memoryview]:
    """The same pages, those that are all zero behind the others; only the others' content."""
    words = np.frombuffer(plain, np.uint64).reshape(numbers.size, -1)
    full = np.bitwise_or.reduce(words, axis=1) != 0
    if full.all():
        return numbers, plain
    # A page that the guest changes meanwhile is in the next round, whichever of the two it counted as.
    return np.concatenate((numbers[full], numbers[~full])), words[full].reshape(-1).view(np.uint8).data
