"""What is loaded where: contents that need not be in memory, and the whole pages they are loaded as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sealift.address import PAGE_SIZE, Gpa
from sealift.launch.areas import Area
from sealift.launch.startup import StartupTable

PIECE_LIMIT = 1 << 20
"""Bytes of a load that are in this process's memory at once."""


@runtime_checkable  # owners keep recipes as records, whose fields are checked when they are read
class Content(Protocol):
    """Bytes that need not all be in memory: ``bytes`` itself, or a file of which parts are read."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, part: slice, /) -> bytes:
        """Some of them; `part` has no step."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One buffer for LAUNCH_UPDATE_DATA; `gpa` is page aligned, `data` whole pages, padded with zeros."""

    name: str
    gpa: Gpa
    data: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """Something to load at a page-aligned GPA; a large one is several pieces."""

    name: str
    gpa: Gpa
    content: Content

    @property
    def area(self) -> Area:
        """The whole pages it takes."""
        return Area(self.gpa, whole_pages(len(self.content)))

    def pieces(self) -> Iterator[Piece]:
        """Its pieces in order, read one by one; none if it is empty."""
        for offset in range(0, len(self.content), PIECE_LIMIT):
            data = self.content[offset : offset + PIECE_LIMIT]
            yield Piece(self.name, Gpa(self.gpa + offset), data + bytes(-len(data) % PAGE_SIZE))


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a kernel and what belongs to it go: the start-up table that says so, and the loads that follow it."""

    table: StartupTable
    loads: tuple[Load, ...] = ()


def whole_pages(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE
