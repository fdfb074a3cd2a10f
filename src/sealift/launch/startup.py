"""The start-up table: one measured page that tells the start-up code, the kernel and the platform what was loaded.

Offsets; integers are little-endian, unnamed bytes are 0. ``guest/programs/runtime.h`` has the same as C.

======  =====  ================================================================
0x000   8      magic
0x008   u32    version
0x00c   u32    vCPUs
0x010   32     digest of the migration handler's modules the platform must run
0x030   u64    kernel entry point; 0 in a receiver, which has no kernel and writes `READY_VALUE` to `READY_PORT`
0x038   2 u64  secret block: GPA, size (as the start-up code's GUIDed table)
0x048   2 u64  mailbox: GPA, size (likewise)
0x058   2 u64  payload: GPA, size
0x068   2 u64  room for page tables
0x078   2 u64  stacks, 16 KiB for each vCPU that starts
0x088   u64    first GPA that a kernel of our own may use as it likes
0x090   u32    RAMBlocks
0x094   u32    bytes of command line
0x098   u64    Linux: GPA of its boot_params; 0 for our own kernels
0x0a0   2 u64  GHCBs, a page for each vCPU: GPA, size; 0 in a guest without SEV-ES
0x100   16 x   RAMBlock: u64 GPA, u64 size, 48 bytes of name
0x500   1024   command line of our own kernels, printable ASCII
======  =====  ================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import StreamError, UserError
from sealift.launch.areas import Area, Read, areas_in_memory

MAGIC = b"SLSTART\0"
VERSION = 3

READY_PORT = 0x5EA1
"""I/O port at which a receiver's start-up code says that it is done: with an in-kernel interrupt controller, nobody
outside sees it halt."""
READY_VALUE = 1

MAX_VCPUS = 255
"""An initial APIC id has 8 bits, and 255 is the broadcast address."""
MAX_BLOCKS = 16
"""RAMBlocks that have room in the page; a PC has two."""
MAX_BLOCK_NAME = 48
MAX_COMMAND_LINE = 1024
STACK_SIZE = 16 << 10
"""Bytes of stack for each vCPU: as Linux gives its kernel threads."""
DIGEST_SIZE = 32

_HEAD = struct.Struct("<8sII32s 12Q II Q 2Q")
_BLOCK = struct.Struct(f"<QQ{MAX_BLOCK_NAME}s")
_BLOCKS_AT = 0x100
_COMMAND_LINE_AT = 0x500


@dataclass(frozen=True, slots=True)
class StartupTable:
    """The table's fields; see the module for their meaning.

    Raises:
        UserError: a field has no room in the page.
    """

    handler_digest: bytes
    vcpus: int
    layout: RamLayout
    entry: Gpa
    secret: Area
    mailbox: Area
    payload: Area
    page_tables: Area
    stacks: Area
    free: Gpa
    boot_params: Gpa
    ghcbs: Area
    command_line: str = ""

    def __post_init__(self) -> None:
        if len(self.handler_digest) != DIGEST_SIZE:
            raise UserError(f"a handler digest has {DIGEST_SIZE} bytes, not {len(self.handler_digest)}")
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UserError(f"a guest can have 1 to {MAX_VCPUS} vCPUs, not {self.vcpus}")
        if len(self.layout.blocks) > MAX_BLOCKS:
            raise UserError(f"memory of {len(self.layout.blocks)} RAMBlocks is in more than {MAX_BLOCKS} pieces")
        for block in self.layout.blocks:
            if len(block.name.encode()) > MAX_BLOCK_NAME or "\0" in block.name:
                raise UserError(f"RAMBlock name {block.name!r} has no room in {MAX_BLOCK_NAME} bytes")
        check_command_line(self.command_line, MAX_COMMAND_LINE)

    def encode(self) -> bytes:
        """The page."""
        page = bytearray(PAGE_SIZE)
        areas = (self.secret, self.mailbox, self.payload, self.page_tables, self.stacks)
        _HEAD.pack_into(
            page,
            0,
            MAGIC,
            VERSION,
            self.vcpus,
            self.handler_digest,
            self.entry,
            *(number for area in areas for number in (area.gpa, area.size)),
            self.free,
            len(self.layout.blocks),
            len(self.command_line),
            self.boot_params,
            self.ghcbs.gpa,
            self.ghcbs.size,
        )
        for index, block in enumerate(self.layout.blocks):
            _BLOCK.pack_into(page, _BLOCKS_AT + index * _BLOCK.size, block.gpa, block.size, block.name.encode())
        text = self.command_line.encode("ascii")
        page[_COMMAND_LINE_AT : _COMMAND_LINE_AT + len(text)] = text
        return bytes(page)

    @classmethod
    def decode(cls, page: bytes) -> StartupTable:
        """Decode `encode`, and nothing else: whatever encodes differently is refused.

        Raises:
            StreamError: not a start-up table of this version, or a field makes no sense.
        """
        if len(page) != PAGE_SIZE or not page.startswith(MAGIC):
            raise StreamError("there is no start-up table where the start-up code says")
        _, version, vcpus, digest, entry, *numbers, blocks, text_size, boot_params, ghcbs, ghcbs_size = (
            _HEAD.unpack_from(page)
        )
        if version != VERSION:
            raise StreamError(f"the start-up table has version {version}, only {VERSION} is known")
        if blocks > MAX_BLOCKS or text_size > MAX_COMMAND_LINE:
            raise StreamError(f"the start-up table claims {blocks} RAMBlocks, {text_size} bytes of command line")
        areas = [Area(Gpa(gpa), size) for gpa, size in zip(numbers[0:10:2], numbers[1:10:2], strict=True)]
        try:
            table = cls(
                handler_digest=digest,
                vcpus=vcpus,
                layout=RamLayout(tuple(_block(page, index) for index in range(blocks))),
                entry=Gpa(entry),
                secret=areas[0],
                mailbox=areas[1],
                payload=areas[2],
                page_tables=areas[3],
                stacks=areas[4],
                free=Gpa(numbers[10]),
                command_line=page[_COMMAND_LINE_AT : _COMMAND_LINE_AT + text_size].decode("ascii"),
                boot_params=Gpa(boot_params),
                ghcbs=Area(Gpa(ghcbs), ghcbs_size),
            )
        except (UserError, UnicodeDecodeError) as error:
            raise StreamError("the start-up table holds a field that makes no sense") from error
        if table.encode() != page:
            raise StreamError("the start-up table holds something in bytes that must be 0")
        return table


def check_command_line(text: str, limit: int) -> None:
    """Demand a command line of at most `limit` printable ASCII characters.

    Raises:
        UserError: it is not.
    """
    if len(text) > limit:
        raise UserError(f"a command line of {len(text)} bytes is longer than {limit}")
    if not text.isascii() or not text.isprintable():
        raise UserError("the command line holds something other than printable ASCII")


def read_startup_table(read: Read) -> StartupTable:
    """The start-up table of a loaded guest, found through its start-up code.

    Raises:
        StreamError: no start-up code or table, or the two disagree about an area.
    """
    areas = areas_in_memory(read)
    table = StartupTable.decode(read(areas.table.gpa, areas.table.size))
    if (table.secret, table.mailbox) != (areas.secret, areas.mailbox):
        raise StreamError("the start-up table and the start-up code disagree about the secret block or the mailbox")
    return table


def _block(page: bytes, index: int) -> RamBlock:
    """One entry of the RAMBlock array."""
    gpa, size, name = _BLOCK.unpack_from(page, _BLOCKS_AT + index * _BLOCK.size)
    return RamBlock(name.rstrip(b"\0").decode(), Gpa(gpa), size)
