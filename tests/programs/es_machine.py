"""The small machine for SEV-ES guests: #VC and the GHCB protocol written down a second time, as plainly as possible."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unicorn import UC_HOOK_CODE, Uc, x86_const

from sealift.address import PAGE_SIZE
from sealift.sev.vmsa import Vmsa

from .machine import Machine, Vcpu

GHCB_MSR = 0xC001_0130
VMGEXIT, VMMCALL, CPUID = b"\xf3\x0f\x01\xd9", b"\x0f\x01\xd9", b"\x0f\xa2"
RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"
PORTS = tuple(bytes((opcode,)) for opcode in range(0xEC, 0xF0))
INFO_1, INFO_2, EXIT_CODE, RAX, BITMAP = 0x398, 0x3A0, 0x390, 0x1F8, 0x3F0


@dataclass
class EsMachine(Machine):
    """See `Machine`.

    Attributes:
        spoil: what a VMM does to a GHCB after it was answered.
        page_exits: exit codes of requests that came by page.
    """

    spoil: Callable[[bytearray], None] = lambda _: None
    page_exits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        vmsas = [Vmsa.from_buffer_copy(page) for page in self.recipe.vmsas()]
        self.vcpus = [EsVcpu(self, number, vmsa) for number, vmsa in enumerate(vmsas)]


class EsVcpu(Vcpu):
    """One vCPU; every instruction is looked at before it is executed."""

    machine: EsMachine

    def __init__(self, machine: EsMachine, number: int, vmsa: Vmsa) -> None:
        super().__init__(machine, number)
        self.halted, self.rip, self.msr = False, vmsa.rip, 0
        for name in ("cr3", "rsp"):
            self.uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), getattr(vmsa, name))
        for name in ("cs", "ss"):
            self.uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), getattr(vmsa, name).selector)
        self.uc.hook_add(UC_HOOK_CODE, self.look)

    def look(self, _uc: Uc, address: int, _size: int, _user: Any) -> None:
        """Do what this processor does otherwise than Unicorn."""
        code = bytes(self.machine.private_plane[address : address + 4])
        if code == VMGEXIT:
            self.vmgexit()
            self.go(address + len(VMGEXIT))
        elif code.removeprefix(b"\x66").startswith(PORTS):
            self.communicate(0x7B)
        elif code.startswith(CPUID):
            self.communicate(0x72)
        elif code.startswith(VMMCALL):
            self.communicate(0x81)
        elif code.startswith((RDMSR, WRMSR)):
            assert self.reg("ECX") == GHCB_MSR
            if code.startswith(WRMSR):
                self.msr = self.reg("EDX") << 32 | self.reg("EAX")
            else:
                self.put("RAX", self.msr & 0xFFFF_FFFF)
                self.put("RDX", self.msr >> 32)
            self.go(address + 2)

    def put(self, name: str, value: int) -> None:
        """Set a register."""
        self.uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)

    def go(self, address: int) -> None:
        """Go on there, if the guest goes on at all."""
        self.put("RIP", address)
        if self.machine.crash:
            self.uc.emu_stop()

    def communicate(self, code: int) -> None:
        """#VC, through the IDT."""
        _, idt, limit, _ = self.uc.reg_read(x86_const.UC_X86_REG_IDTR)
        assert limit >= 30 * 16 - 1
        low, selector, kind, middle, high = struct.unpack_from("<HHHHI", self.machine.private_plane, idt + 29 * 16)
        assert (selector, kind) == (self.reg("CS"), 0x8E00)
        rsp = self.reg("RSP")
        top = (rsp & ~15) - 48
        frame = (code, self.reg("RIP"), self.reg("CS"), self.reg("EFLAGS"), rsp, self.reg("SS"))
        struct.pack_into("<6Q", self.machine.private_plane, top, *frame)
        self.machine.written_encrypted.update({top & -PAGE_SIZE, (rsp - 1) & -PAGE_SIZE})
        self.put("RSP", top)
        self.go(high << 32 | middle << 16 | low)

    def vmgexit(self) -> None:
        """By MSR or by page."""
        match self.msr & 0xFFF:
            case 0:
                self.by_page()
            case 0x004:
                leaf, register = self.msr >> 32, self.msr >> 30 & 3
                values = {1: (0, self.number << 24, 0, 0), 0x8000_0000: (0x8000_001F, 0, 0, 0)}
                values[0x8000_001F] = (0b1010, self.machine.c_bit or 0, 0, 0)
                self.msr = values.get(leaf, (0,) * 4)[register] << 32 | 0x005
            case 0x014:
                operation, gpa = self.msr >> 52, self.msr & 0xF_FFFF_FFFF_F000
                assert operation in (1, 2)
                result = self.machine.declare(gpa, 1, operation == 1)
                self.msr = -result << 32 | 0x015
            case 0x100:
                self.machine.crash = f"vCPU {self.number} asked for the guest's end"
            case number:
                raise AssertionError(f"the guest asked {number:#x} by the MSR")

    def by_page(self) -> None:
        """Port accesses; nothing else needs the page."""
        assert self.msr in self.machine.shared
        page = bytearray(self.machine.shared_plane[self.msr : self.msr + PAGE_SIZE])
        assert page[0xFFA:0x1000] == b"\x02\0\0\0\0\0"
        code, info, rax = (struct.unpack_from("<Q", page, offset)[0] for offset in (EXIT_CODE, INFO_1, RAX))
        assert code == 0x7B
        self.machine.page_exits.append(code)
        port, size = info >> 16, {0x10: 1, 0x20: 2, 0x40: 4}[info & 0x70]
        assert all(valid(page, offset) for offset in (EXIT_CODE, INFO_1, INFO_2))
        page[BITMAP : BITMAP + 16] = bytes(16)
        if info & 1:
            answer(page, RAX, self.port_in(self.uc, port, size, None))
        else:
            self.port_out(self.uc, port, size, rax, None)
        answer(page, INFO_1, 0)
        answer(page, INFO_2, 0)
        self.machine.spoil(page)
        self.machine.shared_plane[self.msr : self.msr + PAGE_SIZE] = bytes(page)


def valid(page: bytearray, offset: int) -> bool:
    """Whether the field's bit in the bitmap is set."""
    return bool(page[BITMAP + offset // 64] >> offset // 8 % 8 & 1)


def answer(page: bytearray, offset: int, value: int) -> None:
    """Set a field and its bit."""
    struct.pack_into("<Q", page, offset, value)
    page[BITMAP + offset // 64] |= 1 << offset // 8 % 8
