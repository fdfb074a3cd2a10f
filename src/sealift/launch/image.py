"""The launch image of a confidential guest: what is loaded, in which order, and what the measurement must be.

A recipe is all the owner has to know to recompute the launch digest. The order of the pieces is fixed, since
LAUNCH_UPDATE_DATA hashes contents in call order and no addresses:

    start-up code | start-up table | kernel segments by address | payload

Where pieces go is in the start-up table, which is one of them; so addresses are measured after all. A large payload
is several pieces, read one by one as they are loaded.
A *receiver image* is the same without kernel, payload and command line: it waits for a guest to arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from sealift.address import PAGE_SIZE, Gpa, RamLayout, page_aligned
from sealift.errors import UserError
from sealift.launch.areas import ANCHOR, Area, StartupAreas, areas_of
from sealift.launch.elf import Kernel, load
from sealift.launch.paging import page_table_pages
from sealift.launch.startup import STACK_SIZE, StartupTable

BOOTSTRAP_LIMIT = 1 << 30
"""The bootstrap page tables map this much; page tables and stacks must be made below it."""

PIECE_LIMIT = 1 << 20
"""Bytes of a payload that are in this process's memory at once."""

_NOWHERE = Area(Gpa(0), 0)


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
class EntryState:
    """Registers a vCPU starts with, in 64-bit mode with flat segments; what is not named here is 0.

    There is no GDT and no IDT: segment registers are never reloaded and a fault ends the guest. The start-up
    code takes nothing from `rsp`, `rdi` and `rsi`, which the VMM of a guest without SEV-ES could set as it likes.
    """

    rip: int
    cr3: int
    rsp: int = 0
    rdi: int = 0
    rsi: int = 0
    cr0: int = 0x8005_0033
    """PG, AM, WP, NE, ET, MP, PE."""
    cr4: int = 0x20
    """PAE."""
    efer: int = 0x500
    """LMA, LME."""


@dataclass(frozen=True, slots=True)
class GuestRecipe:
    """Everything that decides what is loaded into a guest.

    Attributes:
        startup: the start-up code (``sealift.guest.programs.startup_blob()``).
        layout: the guest's RAM.
        vcpus: how many.
        handler_digest: digest of the migration handler the platform must run, 32 bytes.
        kernel: an ELF file; None makes a receiver image.
        payload: what the kernel finds through the start-up table.
        command_line: printable ASCII, at most 1024 bytes.

    Raises:
        UserError: it does not fit together; the message gives the sizes.
        StreamError: `startup` is not a start-up image.
    """

    startup: bytes
    layout: RamLayout
    vcpus: int
    handler_digest: bytes
    kernel: bytes | None = None
    payload: Content = b""
    command_line: str = ""

    def __post_init__(self) -> None:
        if self.kernel is None and (len(self.payload) or self.command_line):
            raise UserError("a payload or a command line needs a kernel that reads it")
        self.table()

    def receiver(self) -> GuestRecipe:
        """The image a migration target launches to receive this guest."""
        return replace(self, kernel=None, payload=b"", command_line="")

    def areas(self) -> StartupAreas:
        """The areas the start-up code names."""
        return areas_of(self.startup)

    def table(self) -> StartupTable:
        """The start-up table."""
        areas = self.areas()
        _check_start_up_area(self, areas)
        kernel = None if self.kernel is None else load(self.kernel, self.layout)
        return _place(self, areas, kernel)

    def pieces(self) -> Iterator[Piece]:
        """What to load, in the order in which it is measured.

        Raises:
            UserError: the payload can no longer be read.
        """
        table = self.table()
        yield _piece("start-up code", ANCHOR - len(self.startup), self.startup)
        yield _piece("start-up table", self.areas().table.gpa, table.encode())
        if self.kernel is not None:
            for index, segment in enumerate(load(self.kernel, self.layout).segments):
                if segment.data:
                    yield _piece(f"kernel segment {index}", segment.gpa, segment.data)
        for offset in range(0, len(self.payload), PIECE_LIMIT):
            yield _piece("payload", table.payload.gpa + offset, self.payload[offset : offset + PIECE_LIMIT])

    def launch_digest(self) -> bytes:
        """SHA-256 over all pieces: the launch digest of an SEV guest; the VMSAs of an SEV-ES guest follow it."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece.data)
        return digest.digest()

    def entry(self, vcpu: int) -> EntryState:
        """The registers `vcpu` starts with: the same for all, each reads its number from CPUID.

        Raises:
            ValueError: there is no such vCPU.
        """
        if not 0 <= vcpu < self.vcpus:
            raise ValueError(f"the guest has vCPUs 0 to {self.vcpus - 1}, not {vcpu}")
        areas = self.areas()
        return EntryState(rip=areas.entry, cr3=areas.bootstrap_cr3)


def _piece(name: str, gpa: int, data: bytes) -> Piece:
    return Piece(name, Gpa(gpa), data + bytes(-len(data) % PAGE_SIZE))


def _code_area(recipe: GuestRecipe) -> Area:
    return Area(Gpa(ANCHOR - len(recipe.startup)), len(recipe.startup))


def _check_start_up_area(recipe: GuestRecipe, areas: StartupAreas) -> None:
    """Everything the start-up code names must be memory, and none of it the code itself."""
    code = _code_area(recipe)
    if code.gpa < 0 or not page_aligned(code.gpa):
        raise UserError(f"start-up code of {code.size} bytes is not whole pages below {ANCHOR:#x}")
    if areas.entry < code.gpa or areas.bootstrap_cr3 < code.gpa:
        raise UserError(f"the start-up code starts or has its page tables below {code.gpa:#x}")
    named = {"code": code, "secret block": areas.secret, "table": areas.table, "mailbox": areas.mailbox}
    for name, area in named.items():
        if recipe.layout.offset(area.gpa, area.size) is None:
            raise UserError(f"memory of {recipe.layout.size >> 10} KiB is too small: the start-up {name} is at {area}")
        if area is not code and area.overlaps(code):
            raise UserError(f"the start-up {name} at {area} overlaps the start-up code at {code}")


def _place(recipe: GuestRecipe, areas: StartupAreas, kernel: Kernel | None) -> StartupTable:
    """Lay out what follows the kernel: page tables, stacks, payload, free memory."""
    table = StartupTable(
        handler_digest=recipe.handler_digest,
        vcpus=recipe.vcpus,
        layout=recipe.layout,
        entry=Gpa(0),
        secret=areas.secret,
        mailbox=areas.mailbox,
        payload=_NOWHERE,
        page_tables=_NOWHERE,
        stacks=_NOWHERE,
        free=Gpa(0),
        command_line=recipe.command_line,
    )
    if kernel is None:
        return table
    start = max(_whole(kernel.end), ANCHOR, areas.mailbox.end, areas.table.end, areas.secret.end)
    _check_kernel(recipe, areas, kernel)
    page_tables = Area(Gpa(start), page_table_pages(recipe.layout, areas.mailbox) * PAGE_SIZE)
    stacks = Area(page_tables.end, recipe.vcpus * STACK_SIZE)
    payload = Area(stacks.end, len(recipe.payload))
    if stacks.end > BOOTSTRAP_LIMIT:
        raise UserError(
            f"the kernel ends at {kernel.end:#x}; page tables and {recipe.vcpus} stacks of {STACK_SIZE >> 10} KiB "
            f"no longer fit below {BOOTSTRAP_LIMIT:#x}"
        )
    if recipe.layout.offset(start, payload.end - start) is None:
        raise UserError(
            f"{payload.end - start:,} bytes for page tables, stacks and a payload of {payload.size:,} bytes do not "
            f"fit after the kernel at {start:#x}; the guest has {recipe.layout.size >> 20} MiB of memory"
        )
    return replace(
        table,
        entry=kernel.entry,
        payload=payload,
        page_tables=page_tables,
        stacks=stacks,
        free=Gpa(_whole(payload.end)),
    )


def _check_kernel(recipe: GuestRecipe, areas: StartupAreas, kernel: Kernel) -> None:
    """The kernel must leave the start-up area alone, to the last byte of its last page."""
    for segment in kernel.segments:
        whole = Area(segment.gpa, _whole(segment.memsz))
        for area in (_code_area(recipe), areas.secret, areas.table, areas.mailbox):
            if whole.overlaps(area):
                raise UserError(f"the kernel's segment {segment.area} overlaps the start-up area {area}")


def _whole(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE
