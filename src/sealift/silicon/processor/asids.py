"""Address space identifiers: who has which, and which may still be in caches.

::

    free ── ACTIVATE ──► owned ── DEACTIVATE ──► cached ── WBINVD ──► written back ── DF_FLUSH ──► free

An ASID names a key in the memory controller. Lines that caches hold under the key of its last guest must be gone
before the next guest gets it: the host writes caches back (WBINVD), then firmware flushes the data fabric (DF_FLUSH).
ASIDs below `MIN_SEV_ASID` are for SEV-ES guests only, the others for SEV guests (CPUID 0x8000_001F, EDX). A platform
process is a socket of its own, with ASIDs of its own.
"""

from __future__ import annotations

from typing import Final

from sealift.sev.policy import Policy
from sealift.sev.status import Status, failure

MAX_ASID: Final = 509
"""The highest ASID, as on Milan."""

MIN_SEV_ASID: Final = 100
"""The lowest ASID of a guest without SEV-ES; on silicon the BIOS draws this line."""


def fitting(policy: Policy) -> range:
    """The ASIDs a guest of this policy may have."""
    return range(1, MIN_SEV_ASID) if policy & Policy.ES else range(MIN_SEV_ASID, MAX_ASID + 1)


class AsidTable:
    """The ASIDs of one socket."""

    def __init__(self) -> None:
        self._owned: set[int] = set()
        self._cached: set[int] = set()
        self._written_back: set[int] = set()

    def require_known(self, asid: int) -> None:
        """Demand an ASID that exists and is nobody's.

        Raises:
            FirmwareError: INVALID_ASID, then ASID_OWNED.
        """
        if not 1 <= asid <= MAX_ASID:
            raise failure(Status.INVALID_ASID, f"ASIDs go from 1 to {MAX_ASID}, and {asid} is not among them")
        if asid in self._owned:
            raise failure(Status.ASID_OWNED, f"ASID {asid} belongs to another guest; DEACTIVATE that one first")

    def own(self, asid: int, policy: Policy) -> None:
        """Give a known, free ASID to a guest of this policy.

        Raises:
            FirmwareError: DFFLUSH_REQUIRED, then INVALID_ASID for one of the other kind of guests.
        """
        if asid in self._cached | self._written_back:
            detail = f"caches may hold lines of the last guest with ASID {asid}; WBINVD, then DF_FLUSH"
            raise failure(Status.DFFLUSH_REQUIRED, detail)
        fit = fitting(policy)
        if asid not in fit:
            kind = "with" if policy & Policy.ES else "without"
            detail = f"a guest {kind} SEV-ES has an ASID from {fit.start} to {fit.stop - 1}, not {asid}"
            raise failure(Status.INVALID_ASID, detail)
        self._owned.add(asid)

    def disown(self, asid: int) -> None:
        """Take an ASID from its guest; caches may still hold that guest's lines."""
        self._owned.remove(asid)
        self._cached.add(asid)

    def wbinvd(self) -> None:
        """All caches of the socket were written back and invalidated."""
        self._written_back |= self._cached
        self._cached.clear()

    def flush(self) -> None:
        """DF_FLUSH: what was written back may be owned again.

        Raises:
            FirmwareError: WBINVD_REQUIRED, an ASID was given up since the last WBINVD; nothing is flushed.
        """
        if self._cached:
            given_up = ", ".join(str(asid) for asid in sorted(self._cached))
            raise failure(Status.WBINVD_REQUIRED, f"caches were not written back since ASID {given_up} was given up")
        self._written_back.clear()
