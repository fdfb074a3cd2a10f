"""The state that travels beside pages: which pages exist, which are still missing, and the machine's own state.

::

    presence set, ceil(pages / 64) * 8 bytes │ missing set, as long │ machine state, the rest

One blob. Missing pages are some of those present, which come behind the switch (post-copy); mostly there are none. It
is cut into STATE records, which the target puts together again. Its size depends on the guest's shape alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealift.errors import SealError
from sealift.pageset import PageSet
from sealift.wire.record import StatePiece

_SETS_IN_MACHINE_STATE = 2
"""Sets of pages in the machine state: shared ones, and those whose content counts as encrypted."""

MAX_VCPU_STATE = 16 << 20
"""Everything else in the machine state: 255 vCPUs with 64 KiB of registers and XSAVE area each."""


@dataclass(frozen=True, slots=True)
class HandlerState:
    """Pages that are no holes, those of them that come behind the switch, and the opaque machine state."""

    presence: PageSet
    missing: PageSet
    machine: bytes

    def encode(self) -> bytes:
        """The blob."""
        return self.presence.to_bytes() + self.missing.to_bytes() + self.machine

    @classmethod
    def decode(cls, pages: int, blob: bytes) -> HandlerState:
        """Parse the blob of a guest of `pages` pages.

        Raises:
            SealError: its sets are not those of such a guest, or a page is missing that does not exist.
        """
        size = presence_size(pages)
        try:
            presence, missing = (PageSet.from_bytes(pages, blob[at : at + size]) for at in (0, size))
        except ValueError as error:
            raise SealError("the source's sets of pages do not fit this guest") from error
        stray = missing.copy()
        stray -= presence
        if stray:
            raise SealError(f"the source calls page {stray.numbers(1)[0]} missing, which does not exist there")
        return cls(presence, missing, blob[2 * size :])


def presence_size(pages: int) -> int:
    """Bytes of an encoded presence set."""
    return (pages + 63) // 64 * 8


class StateCollector:
    """Puts the pieces of a state together; they must come in order and without gaps."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._limit = (2 + _SETS_IN_MACHINE_STATE) * presence_size(pages) + MAX_VCPU_STATE
        self._total = 0
        self._blob = bytearray()

    @property
    def begun(self) -> bool:
        """Whether any piece came."""
        return self._total > 0

    def add(self, piece: StatePiece) -> None:
        """Append one piece.

        Raises:
            SealError: it does not follow the one before, or the state is over its limit.
        """
        if piece.total > self._limit:
            raise SealError(f"the source's state of {piece.total} bytes is over the limit of {self._limit}")
        if self.begun and piece.total != self._total:
            raise SealError(f"the source's state was {self._total} bytes long and is now {piece.total}")
        if piece.offset != len(self._blob) or piece.offset + len(piece.data) > piece.total:
            raise SealError(f"a piece of the source's state for byte {piece.offset} came out of place")
        self._total = piece.total
        self._blob += piece.data

    def finish(self) -> HandlerState:
        """The whole state.

        Raises:
            SealError: pieces are missing.
        """
        if not self.begun or len(self._blob) != self._total:
            raise SealError(f"the source's state ends after {len(self._blob)} of {self._total} bytes")
        return HandlerState.decode(self._pages, bytes(self._blob))
