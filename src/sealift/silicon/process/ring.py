"""The two rings of record slots between a platform and its VMM.

Outgoing slots are sealed with F_SEAL_FUTURE_WRITE before the VMM gets them: AES-GCM over memory that another
process can write would be forgeable. Incoming slots are the VMM's to write; the handler copies before it looks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealift.address import PAGE_SIZE
from sealift.errors import RefusedError
from sealift.silicon.memory.plane import Plane, seal_against_writers

SLOTS = 4
"""Enough for sealing, sending, receiving and opening to overlap (measured: more gains nothing)."""

RECORD_PAGES = 256
"""Pages in a full record: 1 MiB, where the fixed cost of a record no longer shows (measured)."""

SLOT_SIZE = (RECORD_PAGES + 4) * PAGE_SIZE
"""A full record with its header, 256 page numbers and tag, rounded up to whole pages."""


@dataclass(frozen=True, slots=True)
class Ring:
    """Record slots in one memfd."""

    plane: Plane

    def slot(self, index: int) -> memoryview:
        """The whole slot `index`.

        Raises:
            RefusedError: there is no such slot.
        """
        if not 0 <= index < SLOTS:
            raise RefusedError(f"there is no ring slot {index}; there are {SLOTS}")
        return self.plane.data[index * SLOT_SIZE : (index + 1) * SLOT_SIZE]


def outgoing_ring() -> Ring:
    """A ring that nobody but this process can ever write."""
    ring = Ring(Plane("sealift-ring-out", SLOTS * SLOT_SIZE))
    seal_against_writers(ring.plane.fd)
    return ring


def incoming_ring() -> Ring:
    """A ring that the VMM fills."""
    return Ring(Plane("sealift-ring-in", SLOTS * SLOT_SIZE))
