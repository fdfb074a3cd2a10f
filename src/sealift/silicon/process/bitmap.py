"""The bitmap area: one set of RAM pages in memory that platform and VMM both map."""

from __future__ import annotations

from sealift.address import PAGE_SHIFT
from sealift.errors import RefusedError
from sealift.pageset import PageSet
from sealift.silicon.memory.plane import Plane
from sealift.wire.platform import Count


class BitmapArea:
    """The area for a VM with so many pages of RAM."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._bytes = (pages + 63) // 64 * 8
        self.plane = Plane("sealift-bitmap", ((self._bytes >> PAGE_SHIFT) + 1) << PAGE_SHIFT)

    def leave(self, pages: PageSet) -> Count:
        """Leave a set there for the VMM."""
        self.plane.data[: self._bytes] = pages.to_bytes()
        return Count(len(pages))

    def taken(self) -> PageSet:
        """The set that the VMM left there, copied before it is looked at.

        Raises:
            RefusedError: it is none of this VM's pages.
        """
        try:
            return PageSet.from_bytes(self._pages, bytes(self.plane.data[: self._bytes]))
        except ValueError as error:
            raise RefusedError("the bitmap area holds no set of this VM's pages") from error
