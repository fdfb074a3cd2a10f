"""General and control registers as QEMU's monitor prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sealift.wire.platform import Registers

_GENERAL: Final = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"),
    *("R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"),
)
"""In `Registers.general`'s order, which is QEMU's."""

_A_ROW: Final = 4


def register_lines(registers: Registers) -> Iterator[str]:
    """All of them, line by line."""
    shown = [f"{name}={value:016x}" for name, value in zip(_GENERAL, registers.general, strict=True)]
    for first in range(0, len(shown), _A_ROW):
        yield " ".join(shown[first : first + _A_ROW])
    yield f"RIP={registers.rip:016x} RFL={registers.rflags:08x}"
    yield f"CR0={registers.cr0:08x} CR2={registers.cr2:016x} CR3={registers.cr3:016x} CR4={registers.cr4:08x}"
    yield f"EFER={registers.efer:016x}"
