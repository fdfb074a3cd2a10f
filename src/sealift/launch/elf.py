"""Loader for guest kernels: ELF64, x86-64, fixed addresses (ET_EXEC).

Only what a kernel needs is read: the ELF header and the PT_LOAD program headers. Everything is checked, because
the file comes from a user and the result is measured. Memory beyond a segment's file bytes (bss) is not loaded:
private memory starts as zeros.

Source: System V ABI, "Object Files" and "Program Loading", ELF-64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from sealift.address import Gpa, RamLayout, page_aligned
from sealift.errors import UserError
from sealift.launch.areas import Area

MAX_PROGRAM_HEADERS = 64
"""Linkers make a handful for a kernel; more is not a kernel."""

_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF"
_CLASS_64, _LITTLE_ENDIAN, _CURRENT = 2, 1, 1
_ET_EXEC, _EM_X86_64 = 2, 62
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Segment:
    """One loaded segment.

    Attributes:
        gpa: first byte, page aligned.
        data: bytes from the file.
        memsz: bytes in memory, at least ``len(data)``; the rest is zeros.
    """

    gpa: Gpa
    data: bytes
    memsz: int

    @property
    def area(self) -> Area:
        """What the segment takes in memory."""
        return Area(self.gpa, self.memsz)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loadable kernel: segments in ascending order, none overlapping."""

    entry: Gpa
    segments: tuple[Segment, ...]

    @property
    def end(self) -> Gpa:
        """First GPA after the last segment."""
        return self.segments[-1].area.end


def load(image: bytes, layout: RamLayout) -> Kernel:
    """Read a kernel that is to run in `layout`.

    Raises:
        UserError: it cannot be loaded; the message names the first fault of the file.
    """
    entry, offset, count = _read_header(image)
    segments = sorted(
        (segment for index in range(count) if (segment := _segment(image, offset, index))),
        key=lambda segment: segment.gpa,
    )
    if not segments:
        raise UserError("the kernel has no segment to load")
    for segment in segments:
        if layout.offset(segment.gpa, segment.memsz) is None:
            raise UserError(f"the kernel's segment {segment.area} does not lie in the guest's memory")
    for before, after in pairwise(segments):
        if before.area.overlaps(after.area):
            raise UserError(f"the kernel's segments {before.area} and {after.area} overlap")
    if not any(segment.gpa <= entry < segment.gpa + len(segment.data) for segment in segments):
        raise UserError(f"the kernel's entry point {entry:#x} lies in none of its segments")
    return Kernel(Gpa(entry), tuple(segments))


def _read_header(image: bytes) -> tuple[int, int, int]:
    """Entry point, offset and number of the program headers."""
    if not image.startswith(_MAGIC):
        raise UserError("the kernel file is neither an ELF file nor a Linux kernel (a bzImage)")
    if len(image) < _HEADER.size:
        raise UserError(f"the kernel file has {len(image)} bytes, too few for an ELF header")
    _, bits, order, ident_version, _, _, *rest = _HEADER.unpack_from(image)
    kind, machine, version, entry, offset, _, _, _, entry_size, count, _, _, _ = rest
    faults = {
        "is not a 64-bit ELF file": bits != _CLASS_64,
        "is not little-endian": order != _LITTLE_ENDIAN,
        "has an unknown ELF version": ident_version != _CURRENT or version != _CURRENT,
        "is not for x86-64": machine != _EM_X86_64,
        "is not linked at fixed addresses (ET_EXEC); link it with -no-pie": kind != _ET_EXEC,
        "has program headers of an unknown size": entry_size != _PROGRAM.size,
        f"has {count} program headers; 1 to {MAX_PROGRAM_HEADERS} make sense": (not 1 <= count <= MAX_PROGRAM_HEADERS),
        "is truncated within its program headers": offset + count * _PROGRAM.size > len(image),
    }
    for fault, present in faults.items():
        if present:
            raise UserError(f"the kernel file {fault}")
    return entry, offset, count


def _segment(image: bytes, table: int, index: int) -> Segment | None:
    """One program header's segment, if it takes memory."""
    kind, _, offset, _, gpa, filesz, memsz, _ = _PROGRAM.unpack_from(image, table + index * _PROGRAM.size)
    if kind in (_PT_DYNAMIC, _PT_INTERP):
        raise UserError("the kernel file asks for a dynamic linker; link it with -static -no-pie")
    if kind != _PT_LOAD or memsz == 0:
        return None
    if memsz < filesz:
        raise UserError(f"segment {index} of the kernel has {filesz} bytes for {memsz} bytes of memory")
    if offset + filesz > len(image):
        raise UserError(f"the kernel file is truncated within segment {index}")
    if not page_aligned(gpa):
        raise UserError(f"segment {index} of the kernel starts at {gpa:#x}, which is not the start of a page")
    return Segment(Gpa(gpa), image[offset : offset + filesz], memsz)
