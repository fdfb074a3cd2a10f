"""Guest RAM without a boundary: one plane, which guest and host both read and write as it is.

A guest that is not confidential has no C-bit and nothing to hide; its page states mean nothing, and whatever it writes
shows up in the shared plane's dirty set.
"""

from __future__ import annotations

import os

from sealift.address import RamLayout
from sealift.pageset import PageSet, Span
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.plane import Plane
from sealift.silicon.memory.xts import KEY_BYTES


class PlainMemory(GuestMemory):
    """The RAM of one guest that is not confidential: `private` and `shared` are the same plane.

    For the engine every page is private and unencrypted, so that code is fetched from where it was written.
    """

    def __init__(self, layout: RamLayout) -> None:
        plane = Plane("sealift-plain", layout.size)
        super().__init__(layout, os.urandom(KEY_BYTES), (plane, plane))

    def convert(self, first: int, count: int, *, to_shared: bool) -> None:
        """There is nothing to convert."""

    def shared_pages(self) -> PageSet:
        """All of them: the VMM has all of memory."""
        return PageSet.full(self.layout.pages)

    def count_private(self) -> int:
        """None is private."""
        return 0

    def _mark(self, span: Span, *, private: PageSet, shared: PageSet) -> None:
        written = private.copy()
        written |= shared
        nothing = written.copy()
        nothing -= written
        super()._mark(span, private=nothing, shared=written)
