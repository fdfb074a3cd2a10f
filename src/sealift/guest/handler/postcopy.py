"""Post-copy: what the target still misses when it starts the guest, sealed and opened page by page of demand.

::

    source  what was unsent at the stop is missing ── in the sealed state, so FINAL speaks for it ──► target
            a leg of its own (`sealift.wire.leg`): fresh keys, sequences from 0, the post-copy epoch
            channel 0: the rest in its order ───────────────────────────────────────────────────────►
            channel 1: what was demanded, ahead of it ──────────────────────────────────────────────►
    target  FILLED, once no page is missing

The two channels run at their own pace, and each page travels in exactly one record. The target takes records of the
post-copy epoch alone, of the leg that is open, in their turn, and of pages that are missing; each is opened in private
memory and installed once its tag has been verified. A record that is refused changes nothing, neither a page nor what
is due: this guest runs, and must not be at the mercy of whoever sends rubbish. Should the connections be lost again,
another leg follows in the same epoch; the target says what it accepted of which leg, and the source seals what is left
and nothing twice.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Final

import numpy as np

from sealift.address import PAGE_SIZE
from sealift.errors import SealError, StreamError, UserError
from sealift.guest.handler import legs
from sealift.guest.handler.channels import OpeningChannel
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import GuestPages
from sealift.guest.handler.legs import LegInitiator
from sealift.guest.handler.sealer import Sealer
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.record import HEADER_SIZE, MAX_RECORD, RecordHeader, RecordKind

PUSHED: Final = 0
"""The channel of what nobody has demanded yet."""

DEMANDED: Final = 1

_CHANNELS: Final = 2


class Serving:
    """The source's half.

    Attributes:
        sealer: seals the leg that was begun last; None before the first.
    """

    def __init__(self, session: Session, pages: GuestPages, missing: PageSet, epoch: int, *, skip_zeros: bool) -> None:
        self.sealer: Sealer | None = None
        self._session = replace(session, channels=_CHANNELS)
        self._pages = pages
        self._missing = missing
        self._epoch = epoch
        self._skip_zeros = skip_zeros
        self._leg: LegInitiator | None = None
        self._asked = session.leg

    def ask_for_leg(self) -> bytes:
        """The request for the first or another leg. Nothing changes before the target's answer."""
        self._asked += 1
        self._leg = LegInitiator(self._session, self._asked, self._epoch)
        return self._leg.request

    def begin_leg(self, answer: bytes) -> Sealer:
        """Take the target's answer: what is missing there can be sealed.

        Raises:
            UserError: none is waited for.
            StreamError, SealError: it does not parse, or is not the target's; nothing has changed.
        """
        if self._leg is None:
            raise UserError("no new leg was asked for")
        session, said = self._leg.finish(answer)
        if self.sealer is None:
            left = self._missing
        else:
            # Of a leg before this one the rest was left to this one when it began.
            accepted = said.accepted if said.before == self._session.leg else (0,) * _CHANNELS
            left = self.sealer.surrender(accepted)
        self._session, self._leg = session, None
        self.sealer = Sealer(session, self._pages, skip_zeros=self._skip_zeros, epoch=self._epoch - 1)
        self.sealer.begin_epoch(left)
        return self.sealer


class Filling:
    """The target's half; thread-safe."""

    def __init__(self, session: Session, pages: GuestPages, missing: PageSet, epoch: int) -> None:
        self._lock = threading.Lock()
        self._session = replace(session, channels=_CHANNELS)
        self._pages = pages
        self._missing = missing
        self._epoch = epoch
        self._channels: list[OpeningChannel] = []
        self._before: tuple[int, tuple[int, ...]] = (session.leg, (0,) * _CHANNELS)

    @property
    def missing(self) -> int:
        """Pages that have not come."""
        return len(self._missing)

    def answer_leg(self, request: bytes) -> bytes:
        """Take the source's request for a leg: the answer. No record of a leg before is opened any more.

        Raises:
            StreamError, SealError: it does not parse, or is not the source's, or old; nothing has changed.
        """
        with self._lock:
            asked = legs.asked(self._session, request)
            if asked.epoch != self._epoch:
                raise SealError(f"a leg is to begin with epoch {asked.epoch}, and missing pages come in {self._epoch}")
            opened = tuple(channel.sequence for channel in self._channels)
            if any(opened):
                self._before = (self._session.leg, opened)
            self._session, answer = legs.agree(self._session, request, *self._before)
            self._channels = [OpeningChannel(self._session, self._epoch) for _ in range(_CHANNELS)]
            self._pages.demand_again()
            return answer

    def open(self, record: memoryview) -> int:
        """Install the pages of a record that lies in memory others can write; how many.

        Raises:
            StreamError: it does not parse, or is over a limit.
            SealError: it is not authentic, not the record that is due, or of a page that is not missing.
            In either case nothing has changed.
        """
        if len(record) > MAX_RECORD:
            raise StreamError(f"a record of {len(record)} bytes is over the limit of {MAX_RECORD}")
        copied = memoryview(bytes(record))
        with self._lock:
            header = RecordHeader.decode(copied)
            if header.size != len(copied):
                raise StreamError(f"a record of {header.size} bytes came in {len(copied)}: truncated or too long")
            channel = self._due(header)
            numbers = np.frombuffer(copied, "<u8", header.count, HEADER_SIZE).astype(np.uint64)
            self._check_missing(header, numbers)
            content = memoryview(bytearray(header.count * PAGE_SIZE))
            channel.unseal(header, copied, content[: header.length])
            self._pages.install(numbers, content)
            self._missing.remove(numbers)
            return header.count

    def _due(self, header: RecordHeader) -> OpeningChannel:
        """The channel of a record that may come now."""
        if header.migration != self._session.migration:
            raise SealError("a record belongs to another migration or snapshot")
        if not self._channels:
            raise SealError(f"{header.name} comes before missing pages were asked for")
        if header.leg != self._session.leg:
            raise SealError(f"a record belongs to leg {header.leg}; this is leg {self._session.leg}")
        if header.kind is not RecordKind.PAGES or header.channel >= _CHANNELS or header.epoch != self._epoch:
            raise SealError(f"{header.name} is no record of missing pages: they come in epoch {self._epoch}")
        channel = self._channels[header.channel]
        if header.sequence != channel.sequence:
            raise SealError(f"{header.name} is out of turn: {channel.sequence} is due (dropped, repeated or reordered)")
        return channel

    def _check_missing(self, header: RecordHeader, numbers: PageNumbers) -> None:
        if int(numbers.max()) >= self._pages.pages:
            raise SealError(f"{header.name} has page {numbers.max()}, which is not in RAM")
        if np.unique(numbers).size != numbers.size:
            raise SealError(f"{header.name} has a page twice")
        present = numbers[~self._missing.holds(numbers)]
        if present.size:
            raise SealError(f"{header.name} has page {present[0]}, which is not missing")
