"""Where the planted secret is looked for, and the control marker that each of these places must show.

======================  ==========================================  =============================================
place                   what it is                                  its control marker
======================  ==========================================  =============================================
source_vmm, target_vmm  everything that the VMM process can read    the guest's name, which holds the marker
*_shared_plane          what DRAM shows the host                    the marker; the guest writes it to shared pages
source_ring_out         what the source's handler or secure         the migration's id, which every record or packet
                        processor sealed                            carries
source_ring_in          nothing in this migration                   the marker, written by this demonstration
target_ring_in          the same on its way to the target's         the migration's id
target_ring_out         nothing in this migration                   cannot be planted: it must be all zeros
wire                    every byte from source to target            the marker, in shared pages
wire_back               every byte from target to source            the migration's id, in what ends the handover
disk                    the image of a Linux guest's disk           the marker, which the guest writes to it
======================  ==========================================  =============================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealift.cli.demo.needles import Needle, Piece, forms_of, search
from sealift.cli.demo.places import RING_IN, RING_OUT, SHARED_PLANE, AddressSpace, Memfd, RecordedFile
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.demo.report import SecrecyReport
from sealift.cli.vmm_process import VmmProcess
from sealift.errors import InternalError


class Content(Protocol):
    """A place that can be read."""

    def pieces(self) -> Iterator[Piece]:
        """Its content, in order of address."""


@dataclass(frozen=True, slots=True)
class Place:
    """A named place, and the marker that a search must find in it."""

    name: str
    content: Content
    control: Needle


@dataclass(frozen=True, slots=True)
class Hunt:
    """What was planted.

    Attributes:
        secret: as the owner gave it to the guest.
        marker: as VMMs and guest got it.
        migration: id of the migration, 16 bytes.
    """

    secret: bytes
    marker: str
    migration: bytes


def hunt(
    planted: Hunt, source: VmmProcess, target: VmmProcess, relay: RecordingRelay, disk: Path | None
) -> SecrecyReport:
    """Search everything that a VMM or the network could see. The processes stand still meanwhile."""
    with source.frozen(), target.frozen():
        places = _places(planted, source.pid, target.pid, relay)
        if disk is not None:
            places.append(Place("disk", RecordedFile(disk), Needle("marker", planted.marker.encode())))
        unused = {"target_ring_out": Memfd(target.pid, RING_OUT)}
        for name, ring in unused.items():
            if not ring.is_zero():
                raise InternalError(f"{name} was written to, which this demonstration does not account for")
        return _search(places, planted, sorted(unused))


def _places(planted: Hunt, source: int, target: int, relay: RecordingRelay) -> list[Place]:
    marker = Needle("marker", planted.marker.encode())
    record = Needle("migration id", planted.migration)
    unused = Memfd(source, RING_IN)
    unused.plant(marker.data)
    return [
        Place("source_vmm", AddressSpace(source), marker),
        Place("target_vmm", AddressSpace(target), marker),
        Place("source_shared_plane", Memfd(source, SHARED_PLANE), marker),
        Place("target_shared_plane", Memfd(target, SHARED_PLANE), marker),
        Place("source_ring_out", Memfd(source, RING_OUT), record),
        Place("source_ring_in", unused, marker),
        Place("target_ring_in", Memfd(target, RING_IN), record),
        Place("wire", RecordedFile(relay.forward), marker),
        Place("wire_back", RecordedFile(relay.back), record),
    ]


class _Counter:
    """Counts the bytes that go through."""

    def __init__(self) -> None:
        self.bytes = 0

    def through(self, content: Content) -> Iterator[Piece]:
        for piece in content.pieces():
            self.bytes += len(piece.data)
            yield piece


def _search(places: list[Place], planted: Hunt, empty: list[str]) -> SecrecyReport:
    forms = forms_of(planted.secret)
    counter = _Counter()
    control_found, leaks = [], []
    for place in places:
        for found in search(counter.through(place.content), (place.control, *forms)):
            if found.needle is place.control:
                control_found.append(place.name)
            else:
                leaks.append(f"{place.name}: {found}")
    return SecrecyReport([place.name for place in places], control_found, leaks, empty, counter.bytes)
