"""Linux kernel files made by hand, right and wrong: as much of one as a loader looks at."""

from __future__ import annotations

import struct

from .kernels import HALT

ENTRY_64 = 0x200
VERSION = "6.1.0-made-up (nobody@nowhere) #1 SMP"

_SECTORS = 3
"""After the boot sector: few, so that the header's default would be wrong."""
_FIELDS = {
    "setup_sects": (0x1F1, "B", _SECTORS),
    "syssize": (0x1F4, "I", None),
    "boot_flag": (0x1FE, "H", 0xAA55),
    "jump": (0x200, "H", 0x6AEB),
    "magic": (0x202, "4s", b"HdrS"),
    "version": (0x206, "H", 0x20F),
    "kernel_version": (0x20E, "H", 0x200),
    "loadflags": (0x211, "B", 1),
    "initrd_addr_max": (0x22C, "I", 0x7FFF_FFFF),
    "kernel_alignment": (0x230, "I", 0x20_0000),
    "relocatable_kernel": (0x234, "B", 1),
    "xloadflags": (0x236, "H", 0b11),
    "cmdline_size": (0x238, "I", 2047),
    "pref_address": (0x258, "Q", 0x100_0000),
    "init_size": (0x260, "I", 0x20_0000),
}


def bzimage(code: bytes = HALT, size: int = 0x3000, tail: bytes = b"signature", **fields: int | bytes) -> bytes:
    """A bzImage whose 64-bit entry point has `code`, with `size` bytes to load; `fields` override the header's."""
    real_mode = bytearray((_SECTORS + 1) * 512)
    for name, (offset, form, usual) in _FIELDS.items():
        value = fields.pop(name, size // 16 if usual is None else usual)
        struct.pack_into(f"<{form}", real_mode, offset, value)
    assert not fields, fields
    real_mode[0x400 : 0x400 + len(VERSION)] = VERSION.encode()
    kernel = (b"\x90" * ENTRY_64 + code).ljust(size, b"K")
    return bytes(real_mode) + kernel + tail
