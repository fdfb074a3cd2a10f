"""QEMU's migration stream, as far as Sealift speaks it (migration/savevm.h, ram.c, scripts/analyze-migration.py 8.2).

All integers are big-endian::

    magic "QEVM", version 3
    0x07 configuration: machine name
    0x01 section `ram` v4: RAMBlock list          } START, later PART (0x02) … END (0x03),
    0x01 section `sealift/sealed` v1: HELLO       } each closed by a footer 0x7e
    0x04 FULL sections, one a device
    0x00 EOF
    0x06 description: JSON that tells how every section but `ram` is laid out

Shared pages go in `ram` as in any QEMU stream. Sealed records have a section of their own, since flag 0x200, which
the patches for encrypted guests used, means something else by now. QEMU's analyser reads every part of a section by
the same description, and a description has fixed sizes; so there is one instance of `sealift/sealed` for each
size of record (a round has full records, one rest and its token), and all our sections are length-prefixed buffers.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sealift.address import PAGE_SIZE, RamLayout
from sealift.errors import StreamError
from sealift.wire.handshake import MAX_BLOCKS

MAGIC: Final = 0x5145564D
VERSION: Final = 3
MACHINE: Final = "sealift-1"
"""Name and version of the machine model: what may be migrated into what."""

RAM: Final = "ram"
RAM_VERSION: Final = 4
SEALED: Final = "sealift/sealed"
SEALED_VERSION: Final = 1
DIGEST: Final = "sealift/digest"
"""In a file: SHA-256 of everything before this section."""
DIGEST_VERSION: Final = 1

MACHINE_NAME_LIMIT = 255
"""Bytes of a machine's name; QEMU's own are about a dozen."""

STATE_LIMIT = 1 << 20
"""Bytes of one device's state: a serial port with a full input queue takes a few KiB."""

DESCRIPTION_LIMIT = 4 << 20
"""Bytes of the description: about a hundred for each section, of which there are some hundred at most."""

_HEADER = struct.Struct(">II")
_WORD = struct.Struct(">I")
_LONG = struct.Struct(">Q")
_STARTED = struct.Struct(">II")
_PIECE = struct.Struct(">BI")

Take = Callable[[int], bytes]
"""Reads exactly so many bytes."""


class SectionType(enum.IntEnum):
    """The byte before every element of a stream; QEMU's numbers (hence the 0)."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    DESCRIPTION = 0x06
    CONFIGURATION = 0x07
    FOOTER = 0x7E


class RamFlag(enum.IntFlag):
    """Flags in the low bits of a page header in `ram`."""

    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20


FLAGS_MASK: Final = PAGE_SIZE - 1

PAGE_ENTRY: Final = np.dtype([("header", ">u8"), ("page", np.uint64, (PAGE_SIZE // 8,))])
"""A page of the block that was named last: header (offset | PAGE | CONTINUE) and content."""

ZERO_ENTRY: Final = np.dtype([("header", ">u8"), ("fill", np.uint8)])
"""A page of zeros: header (offset | ZERO | CONTINUE) and the byte it is filled with, which is 0."""


@dataclass(frozen=True, slots=True)
class Section:
    """The front of a section: type and id; the rest is given by START and FULL alone."""

    type: SectionType
    id: int
    name: str = ""
    instance: int = 0
    version: int = 0

    def encode(self) -> bytes:
        """Its bytes."""
        front = bytes([self.type]) + _WORD.pack(self.id)
        if self.type in {SectionType.START, SectionType.FULL}:
            name = self.name.encode()
            return front + bytes([len(name)]) + name + _STARTED.pack(self.instance, self.version)
        return front

    def footer(self) -> bytes:
        """What closes it."""
        return bytes([SectionType.FOOTER]) + _WORD.pack(self.id)


# --- front and end of the stream -----------------------------------------------------------------------------------


def encode_front() -> bytes:
    """Magic, version and configuration."""
    name = MACHINE.encode()
    return _HEADER.pack(MAGIC, VERSION) + bytes([SectionType.CONFIGURATION]) + _WORD.pack(len(name)) + name


def read_front(take: Take) -> None:
    """Check `encode_front`.

    Raises:
        StreamError: no QEMU stream, another version, or of another machine.
    """
    magic, version = _HEADER.unpack(take(_HEADER.size))
    if magic != MAGIC:
        raise StreamError(f"this is no migration stream: it starts with {magic:#010x} instead of {MAGIC:#010x}")
    if version != VERSION:
        raise StreamError(f"the stream has version {version}; this target reads {VERSION}")
    kind = take(1)[0]
    if kind != SectionType.CONFIGURATION:
        raise StreamError(f"the stream has {kind:#04x} where its configuration was due")
    (length,) = _WORD.unpack(take(_WORD.size))
    if length > MACHINE_NAME_LIMIT:
        raise StreamError(f"a machine name of {length} bytes is over the limit of {MACHINE_NAME_LIMIT}")
    name = take(length).decode(errors="replace")
    if name != MACHINE:
        raise StreamError(f"the stream is of a machine {name!r}; this target has {MACHINE!r}")


def read_section(take: Take) -> Section | None:
    """The front of the next section, or None at EOF.

    Raises:
        StreamError: something that is no section.
    """
    kind = take(1)[0]
    match kind:
        case SectionType.EOF:
            return None
        case SectionType.START | SectionType.FULL:
            (number,) = _WORD.unpack(take(_WORD.size))
            name = take(take(1)[0]).decode(errors="replace")
            return Section(SectionType(kind), number, name, *_STARTED.unpack(take(_STARTED.size)))
        case SectionType.PART | SectionType.END:
            return Section(SectionType(kind), _WORD.unpack(take(_WORD.size))[0])
        case _:
            raise StreamError(f"the stream has the unknown element {kind:#04x} where a section was due")


def read_footer(take: Take, section: Section) -> None:
    """Check `Section.footer`.

    Raises:
        StreamError: the section does not end here.
    """
    if take(1 + _WORD.size) != section.footer():
        raise StreamError(f"section {section.id} does not end where it should")


# --- our own sections ----------------------------------------------------------------------------------------------


def encode_piece(kind: int, length: int) -> bytes:
    """What lies before the bytes of a piece of `sealift/sealed`."""
    return _PIECE.pack(kind, length)


def read_piece(take: Take) -> tuple[int, int]:
    """Kind and length of a piece; the caller judges both."""
    kind, length = _PIECE.unpack(take(_PIECE.size))
    return kind, length


def encode_state(state: bytes) -> bytes:
    """The body of a device's section."""
    return _WORD.pack(len(state)) + state


def read_state(take: Take, name: str) -> bytes:
    """The body of a device's section.

    Raises:
        StreamError: it is over the limit.
    """
    (length,) = _WORD.unpack(take(_WORD.size))
    if length > STATE_LIMIT:
        raise StreamError(f"the state of device {name} has {length} bytes, over the limit of {STATE_LIMIT}")
    return take(length)


# --- ram -----------------------------------------------------------------------------------------------------------

END_OF_RAM_PART: Final = _LONG.pack(RamFlag.EOS)


def encode_block_list(layout: RamLayout) -> bytes:
    """The body of the `ram` section's START."""
    parts = [_LONG.pack(layout.size | RamFlag.MEM_SIZE)]
    parts.extend(encode_name(block.name) + _LONG.pack(block.size) for block in layout.blocks)
    return b"".join(parts) + END_OF_RAM_PART


def read_block_list(take: Take) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the RAMBlocks.

    Raises:
        StreamError: no block list, too many blocks, or sizes that do not add up.
    """
    (header,) = _LONG.unpack(take(_LONG.size))
    if header & FLAGS_MASK != RamFlag.MEM_SIZE:
        raise StreamError(f"the ram section starts with flags {header & FLAGS_MASK:#x} instead of its block list")
    left = header & ~FLAGS_MASK
    blocks: list[tuple[str, int]] = []
    while left > 0:
        if len(blocks) == MAX_BLOCKS:
            raise StreamError(f"the stream lists more than {MAX_BLOCKS} RAMBlocks")
        name = read_name(take)
        (size,) = _LONG.unpack(take(_LONG.size))
        if not 0 < size <= left:
            raise StreamError(f"RAMBlock {name} of {size} bytes does not fit into the {left} bytes left of RAM")
        blocks.append((name, size))
        left -= size
    if take(_LONG.size) != END_OF_RAM_PART:
        raise StreamError("the RAMBlock list does not end where it should")
    return tuple(blocks)


def encode_name(name: str) -> bytes:
    """A RAMBlock's name with its length."""
    data = name.encode()
    return bytes([len(data)]) + data


def read_name(take: Take) -> str:
    """A RAMBlock's name."""
    return take(take(1)[0]).decode(errors="replace")


def encode_first(name: str, offset: int, flag: RamFlag) -> bytes:
    """The header of a part's first page, which names its block; content or fill byte follow."""
    return _LONG.pack(offset | flag) + encode_name(name)


# --- description ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Described:
    """A section for the description: `fields` are (name, bytes) in the order of its body."""

    name: str
    instance: int
    version: int
    fields: tuple[tuple[str, int], ...]

    def entry(self) -> dict[str, object]:
        """Its entry in the JSON's list of devices."""
        return {
            "name": self.name,
            "instance_id": self.instance,
            "vmsd_name": self.name,
            "version": self.version,
            "fields": [{"name": name, "type": "buffer", "size": size} for name, size in self.fields],
        }


def describe_piece(instance: int, length: int) -> Described:
    """An instance of `sealift/sealed` whose pieces have `length` bytes."""
    return Described(SEALED, instance, SEALED_VERSION, (("kind", 1), ("length", 4), ("record", length)))


def describe_state(name: str, version: int, length: int, instance: int = 0) -> Described:
    """A device's section with a state of `length` bytes."""
    return Described(name, instance, version, (("length", 4), ("state", length)))


def encode_description(sections: Iterable[Described]) -> bytes:
    """What follows EOF.

    The analyser finds it from the end: last zero byte of the file, then the next ``{``. So there is none of either
    in the length: a length with such a byte is avoided by a space before the JSON's end.
    """
    entries = [section.entry() for section in sections]
    text = json.dumps({"page_size": PAGE_SIZE, "devices": entries}).encode()
    while 0x7B in _WORD.pack(len(text)):
        text = text[:-1] + b" }"
    return bytes([SectionType.DESCRIPTION]) + _WORD.pack(len(text)) + text


def read_description(take: Take) -> None:
    """Read over the description: it is for people and tools, not for the target.

    Raises:
        StreamError: something else came after EOF, or it is over the limit.
    """
    kind = take(1)[0]
    if kind != SectionType.DESCRIPTION:
        raise StreamError(f"the stream has {kind:#04x} where its description was due")
    (length,) = _WORD.unpack(take(_WORD.size))
    if length > DESCRIPTION_LIMIT:
        raise StreamError(f"a description of {length} bytes is over the limit of {DESCRIPTION_LIMIT}")
    take(length)
