"""Debugging: private memory and save areas in clear, as the guest's policy allows, and what hosts see of a CPU.

Data lies in the *debug window*, memory that both sides map: on silicon, too, DBG_DECRYPT and DBG_ENCRYPT copy between
two addresses of host memory. Addresses and lengths are multiples of 16 bytes, as firmware wants them.
"""

from __future__ import annotations

import msgspec

from sealift.wire.platform.message import Message

DEBUG_WINDOW = 1 << 22
"""Bytes that one DBG_DECRYPT or DBG_ENCRYPT moves at most: so many that going there and back costs little beside them,
even where both processes have to wait for a processor (measured: four times less shows)."""


class OpenDebugWindow(Message, frozen=True):
    """Make the debug window. Reply: DebugWindow with its memfd."""


class DebugWindow(Message, frozen=True):
    """Its size in bytes."""

    size: int


class DbgDecrypt(Message, frozen=True):
    """DBG_DECRYPT: leave what the guest sees at `gpa` at the start of the window."""

    gpa: int
    length: int


class DbgEncrypt(Message, frozen=True):
    """DBG_ENCRYPT: make the guest see at `gpa` what lies at the start of the window."""

    gpa: int
    length: int


class DbgDecryptVmsa(Message, frozen=True):
    """DBG_DECRYPT of the page with the registers of an SEV-ES guest's vCPU, which is out of guest mode."""

    index: int


class DbgEncryptVmsa(Message, frozen=True):
    """DBG_ENCRYPT of that page: the vCPU goes on with the registers that lie at the start of the window."""

    index: int


class InvalidateCode(Message, frozen=True):
    """The VMM wrote to these pages of a plain guest: no vCPU goes on with code that it had cached of them."""

    first: int
    count: int


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A segment register; `attributes` as in a VMCB: descriptor bits 40-47 and 52-55 in a row."""

    selector: int
    base: int
    limit: int
    attributes: int


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A descriptor table register."""

    base: int
    limit: int


class SystemRegisters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What beside `Registers` decides how a vCPU's addresses and instructions are to be read."""

    es: Segment
    cs: Segment
    ss: Segment
    ds: Segment
    fs: Segment
    gs: Segment
    ldtr: Segment
    tr: Segment
    gdtr: Table
    idtr: Table
    cr8: int
    kernel_gs_base: int


class GetSystemRegisters(Message, frozen=True):
    """Registers of a vCPU that is out of guest mode, unless they are encrypted. Reply: VcpuSystemRegisters."""

    index: int


class VcpuSystemRegisters(Message, frozen=True):
    """Answer to GetSystemRegisters."""

    registers: SystemRegisters
