"""What vCPUs start with: for guests without SEV-ES set by the VMM, for others measured in a VMSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.sev.vmsa import RESET_EIP, FpuProfile, Segment, Vmsa, reset_vmsa

_BOOT_CS: Final = Segment(0x10, 0xA9B, 0xFFFF_FFFF, 0)
_BOOT_DS: Final = Segment(0x18, 0xC93, 0xFFFF_FFFF, 0)
"""Flat 64-bit segments, with the selectors under which the start-up code's GDT has them."""


@dataclass(frozen=True, slots=True)
class EntryState:
    """Registers a vCPU starts with, in 64-bit mode with flat segments; what is not named here is 0.

    There is no GDT and no IDT: the start-up code loads its own where it needs them, and until then a fault ends the
    guest. It takes nothing from `rsp`, `rdi` and `rsi`, which the VMM of a guest without SEV-ES could set as it likes.
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

    def vmsa(self) -> bytes:
        """The same as a VMSA: as KVM has it after a reset, but for what is named here and for the segments."""
        page = Vmsa.from_buffer_copy(reset_vmsa(RESET_EIP, signature=0, fpu=FpuProfile.INIT2))
        page.cs = _BOOT_CS
        page.ss = page.ds = page.es = _BOOT_DS
        page.rip, page.cr3, page.rsp = self.rip, self.cr3, self.rsp
        page.rdi, page.rsi = self.rdi, self.rsi
        page.cr0, page.cr4, page.efer = self.cr0, page.cr4 | self.cr4, page.efer | self.efer
        return bytes(page)
