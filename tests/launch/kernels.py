"""ELF files made by hand, right and wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HALT = b"\xf4\xeb\xfd"
"""hlt; jump back to it."""


@dataclass(frozen=True)
class Load:
    """One PT_LOAD header with its bytes."""

    gpa: int
    data: bytes
    memsz: int | None = None
    filesz: int | None = None


def elf(*loads: Load, entry: int | None = None, **header: int) -> bytes:
    """An ET_EXEC file for x86-64; `header` overrides fields of the ELF header."""
    fields = {
        "bits": 2, "order": 1, "ident": 1, "kind": 2, "machine": 62, "version": 1,
        "offset": 64, "entry_size": 56, "count": len(loads),
    } | header  # fmt: skip
    start = loads[0].gpa if entry is None and loads else entry or 0
    made = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", fields["bits"], fields["order"], fields["ident"],
        fields["kind"], fields["machine"], fields["version"], start, fields["offset"], 0, 0, 64,
        fields["entry_size"], fields["count"], 0, 0, 0,
    )  # fmt: skip
    at = 64 + 56 * len(loads)
    bodies = b""
    for load in loads:
        filesz = len(load.data) if load.filesz is None else load.filesz
        memsz = filesz if load.memsz is None else load.memsz
        made += struct.pack("<IIQQQQQQ", 1, 7, at + len(bodies), load.gpa, load.gpa, filesz, memsz, 4096)
        bodies += load.data
    return made + bodies
