"""A small machine for the guest programs: Unicorn, two memory planes, page states, faults on demand.

It follows the rules of the design, written down a second time and as plainly as possible, so that the programs
are judged without the product's own engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_TLB_FILL,
    UC_MODE_64,
    Uc,
    UcError,
    unicorn_const,
    x86_const,
)

from sealift.address import PAGE_SIZE
from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe

SHARED_BASE = 1 << 41
"""Where an engine's physical memory shows the shared plane; the private one is at 0."""

_ACCESS_WRITE = 17
_READ_EXECUTE, _WRITE = 5, 2
_HALTED = b"\xf4\xeb\xfd"
"""hlt, and a jump back to it; a halted vCPU stands between the two."""
_ADDRESS = 0x000F_FFFF_FFFF_F000


@dataclass
class Machine:
    """A guest launched from a recipe; `run` lets its vCPUs take turns.

    Attributes:
        c_bit: position of the C-bit; None is a guest without encryption.
        slice: instructions a vCPU runs before the next one's turn.
        serial_polls: reads of the serial port's status before it is ready for the next byte.
        keeps_plaintext: a faulty platform, whose page conversions convert nothing.
        refuses: a platform that refuses every hypercall.
        console: text the guest printed.
        ready: how often the start-up code said that it is done.
        pauses: microseconds of every pause asked for.
        crash: what ended the guest, if it was neither HLT nor the test.
        shared: GPAs of the pages declared shared.
        conversions: how many pages were converted, in either direction.
    """

    recipe: GuestRecipe
    secret_block: bytes = b""
    c_bit: int | None = 51
    slice: int = 20_000
    serial_polls: int = 1
    keeps_plaintext: bool = False
    refuses: bool = False
    console: str = ""
    ready: int = 0
    pauses: list[int] = field(default_factory=list)
    crash: str = ""
    shared: set[int] = field(default_factory=set)
    conversions: int = 0

    def __post_init__(self) -> None:
        self.private_plane = mmap.mmap(-1, self.recipe.layout.end)
        self.shared_plane = mmap.mmap(-1, self.recipe.layout.end)
        for piece in self.recipe.pieces():
            self.private_plane[piece.gpa : piece.gpa + len(piece.data)] = piece.data
        secret = self.recipe.areas().secret
        self.private_plane[secret.gpa : secret.gpa + len(self.secret_block)] = self.secret_block
        self.written_encrypted: set[int] = set()
        self.vcpus = [Vcpu(self, number) for number in range(self.recipe.vcpus)]

    def run(self, until: Callable[[str], bool], turns: int = 10_000) -> None:
        """Run until the console satisfies `until`, all vCPUs have halted, or the guest crashed."""
        for _ in range(turns):
            if self.crash or until(self.console) or all(vcpu.halted for vcpu in self.vcpus):
                return
            for vcpu in self.vcpus:
                vcpu.run_slice()
        raise AssertionError(f"the guest did not get there; console ends with:\n{self.console[-2000:]}")

    def run_to_the_end(self) -> None:
        """Run until every vCPU has halted."""
        self.run(lambda _: False)
        assert not self.crash

    def page(self, gpa: int) -> bytes:
        """A page of the private plane."""
        return self.private_plane[gpa : gpa + PAGE_SIZE]

    def set_page(self, gpa: int, data: bytes) -> None:
        """Overwrite a page of the private plane behind the guest's back."""
        self.private_plane[gpa : gpa + PAGE_SIZE] = data

    def translate(self, cr3: int, address: int) -> tuple[int, bool] | None:
        """GPA of a virtual address and whether the C-bit of its entry is set; tables are always private."""
        mask = 0 if self.c_bit is None else 1 << self.c_bit
        table = cr3
        for shift in (39, 30, 21, 12):
            at = (table & ~mask & _ADDRESS) + (address >> shift) % 512 * 8
            (table,) = struct.unpack_from("<Q", self.private_plane, at)
            if not table & 1:
                return None
            if shift == 12 or table & 0x80:
                break
        offset = address & ((1 << shift) - 1)
        frame = table & ~mask & _ADDRESS & ~((1 << shift) - 1)
        return frame + offset, bool(table & mask)

    def declare(self, gpa: int, pages: int, encrypted: int) -> int:
        """KVM_HC_MAP_GPA_RANGE: convert each page whose state changes."""
        if self.refuses:
            return -22
        for page in range(gpa, gpa + pages * PAGE_SIZE, PAGE_SIZE):
            if encrypted and page in self.shared:
                self.convert_to_private(page)
            elif not encrypted and page not in self.shared:
                self.convert_to_shared(page)
        for vcpu in self.vcpus:
            vcpu.flush()
        return 0

    def convert_to_shared(self, page: int) -> None:
        """Ciphertext, unless the page was never written through the C-bit."""
        content = self.page(page)
        kept = self.keeps_plaintext or page not in self.written_encrypted
        self.shared_plane[page : page + PAGE_SIZE] = content if kept else scrambled(page, content)
        self.shared.add(page)
        self.conversions += 1
        self.written_encrypted.discard(page)

    def convert_to_private(self, page: int) -> None:
        """Garbage, unless the page was written through the C-bit while still shared."""
        content = self.shared_plane[page : page + PAGE_SIZE]
        if page not in self.written_encrypted:
            self.set_page(page, content if self.keeps_plaintext else scrambled(page, content))
        self.shared.discard(page)
        self.conversions += 1
        self.written_encrypted.discard(page)


def scrambled(page: int, content: bytes) -> bytes:
    """Stands in for the memory cipher: depends on place and content, shows neither."""
    return hashlib.shake_128(page.to_bytes(8, "little") + content).digest(PAGE_SIZE)


class Vcpu:
    """One vCPU on an engine of its own."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number
        self.polls = 0
        entry = machine.recipe.entry(number)
        self.halted = entry is None
        entry = entry or EntryState(0, 0)
        self.rip = entry.rip
        self.uc = uc = Uc(UC_ARCH_X86, UC_MODE_64)
        size = machine.recipe.layout.end
        for base, plane in ((0, machine.private_plane), (SHARED_BASE, machine.shared_plane)):
            uc.mem_map_ptr(base, size, 7, address_of(plane))
        uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
        uc.ctl_exits_enabled(True)  # noqa: FBT003  # Unicorn's interface
        uc.ctl_set_exits([])
        uc.hook_add(UC_HOOK_TLB_FILL, self.fill)
        uc.hook_add(UC_HOOK_INSN, self.cpuid, None, 1, 0, x86_const.UC_X86_INS_CPUID)
        uc.hook_add(UC_HOOK_INSN, self.port_in, None, 1, 0, x86_const.UC_X86_INS_IN)
        uc.hook_add(UC_HOOK_INSN, self.port_out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        uc.hook_add(UC_HOOK_INSN_INVALID, self.invalid)
        for name, value in (
            ("CR4", entry.cr4),
            ("CR3", entry.cr3),
            ("CR0", entry.cr0),
            ("RSP", entry.rsp),
            ("RDI", entry.rdi),
            ("RSI", entry.rsi),
        ):
            uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)

    def run_slice(self) -> None:
        """Run a slice; HLT and faults end the vCPU."""
        if self.halted or self.machine.crash:
            return
        try:
            self.uc.emu_start(self.rip, 0, count=self.machine.slice)
        except UcError as error:
            self.machine.crash = f"vCPU {self.number}: {error} at {self.reg('RIP'):#x}"
        self.rip = self.reg("RIP")
        self.halted = self.machine.private_plane[self.rip - 1 : self.rip + 2] == _HALTED

    def reg(self, name: str) -> int:
        """A register by name."""
        return int(self.uc.reg_read(getattr(x86_const, f"UC_X86_REG_{name}")))

    def flush(self) -> None:
        """Forget all translations."""
        self.uc.ctl(unicorn_const.UC_CTL_TLB_FLUSH, unicorn_const.UC_CTL_IO_WRITE)

    def fill(self, _uc: Any, address: int, access: int, entry: Any, _user: Any) -> bool:
        """The page walk and the plane rule."""
        found = self.machine.translate(self.reg("CR3"), address)
        if found is None or found[0] >= self.machine.recipe.layout.end:
            return False
        gpa, encrypted = found
        page = gpa & ~(PAGE_SIZE - 1)
        reaches_shared = not encrypted and page in self.machine.shared
        entry.paddr = gpa + (SHARED_BASE if reaches_shared else 0)
        entry.perms = _READ_EXECUTE
        if access == _ACCESS_WRITE:
            entry.perms |= _WRITE
            if encrypted:
                self.machine.written_encrypted.add(page)
        return True

    def cpuid(self, uc: Uc, _user: Any) -> int:
        """The leaves the programs use."""
        c_bit = self.machine.c_bit
        leaves = {
            1: (0, self.number << 24, 0, 0),
            0x8000_0000: (0x8000_001F, 0, 0, 0),
            0x8000_001F: (0 if c_bit is None else 2, c_bit or 0, 0, 0),
        }
        values = leaves.get(self.reg("EAX"), (0, 0, 0, 0))
        for name, value in zip(("RAX", "RBX", "RCX", "RDX"), values, strict=True):
            uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)
        return 1

    def port_in(self, _uc: Uc, port: int, size: int, _user: Any) -> int:
        """The serial port's status: ready after some polls."""
        assert (port, size) == (0x3FD, 1)
        self.polls += 1
        return 0 if self.polls % self.machine.serial_polls else 0x60

    def port_out(self, _uc: Uc, port: int, size: int, value: int, _user: Any) -> None:
        """Serial output, pauses, and the word of a receiver."""
        match port, size:
            case 0x3F8, 1:
                self.machine.console += chr(value)
            case 0x5EA0, 4:
                self.machine.pauses.append(value)
            case 0x5EA1, 1:
                assert value == 1
                self.machine.ready += 1
            case _:
                raise AssertionError(f"the guest wrote {size} bytes to port {port:#x}")

    def invalid(self, uc: Uc, _user: Any) -> bool:
        """VMMCALL; anything else is a crash."""
        rip = self.reg("RIP")
        if self.machine.private_plane[rip : rip + 3] != b"\x0f\x01\xd9" or self.reg("RAX") != 12:
            return False
        result = self.machine.declare(self.reg("RBX"), self.reg("RCX"), self.reg("RDX") & 0x10)
        uc.reg_write(x86_const.UC_X86_REG_RAX, result & (1 << 64) - 1)
        uc.reg_write(x86_const.UC_X86_REG_RIP, rip + 3)
        return True


def address_of(plane: mmap.mmap) -> int:
    """The plane's address, for mem_map_ptr."""
    return ctypes.addressof(ctypes.c_char.from_buffer(plane))
