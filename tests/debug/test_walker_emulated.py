"""The page walk against emulated CPUs: Unicorn's own MMU in every mode that it has, and the engine's walker."""

from __future__ import annotations

import random

import numpy as np
import pytest
from unicorn import Uc, UcError
from unicorn import unicorn_const as const
from unicorn import x86_const as x86

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.silicon.engines.unicorn.walker import Access, PageFault
from sealift.silicon.engines.unicorn.walker import Walker as EngineWalker
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.vmm.debug.walker import Bit, NotMappedError, PagingMode

from .tables import PRESENT, SHIFTS, USER, WRITABLE, Tables

M = PagingMode
RAM = 32 << 20
CODE = 0xF_0000
"""In the last of the tables' own memory, mapped one to one, so that an emulator can run there."""


def _scatter(mode: PagingMode, seed: int, cbit: int | None = None) -> tuple[Tables, list[int]]:
    """Random mappings with holes and damaged entries, and addresses on and beside them."""
    chance = random.Random(seed)  # a test's variety
    tables = Tables(mode, cbit)
    shifts = [shift for shift in SHIFTS[mode] if shift in (12, 21) or (shift == 22 and mode is M.BITS_32)]
    bits = 47 if mode is M.LEVEL_4 else 32
    tables.map(CODE, CODE | tables.c)
    bases = [chance.randrange(1 << bits) >> 24 << 24 for _ in range(3)]
    addresses: list[int] = []
    for _ in range(40):
        shift = chance.choice(shifts)
        address = chance.choice(bases) + (chance.randrange(16 << 20) >> shift << shift)
        if any(abs(address - other) < 1 << 22 for other in (*addresses, CODE)):
            continue  # another size of page is there
        gpa = chance.randrange(1 << 20, RAM) >> shift << shift
        c = tables.c if chance.random() < 0.5 else 0
        tables.map(address, max(gpa, 1 << shift) | c, shift, leaf=chance.choice((0, WRITABLE, USER | WRITABLE)))
        addresses.append(address)
    for address in chance.sample(addresses, len(addresses) // 4):
        depth = chance.randrange(len(SHIFTS[mode]) - 1)
        try:
            tables.change(address, depth, remove=chance.choice((PRESENT, WRITABLE)))
        except IndexError:
            continue
    looked = [address + chance.randrange(1 << 12) & ~7 for address in addresses]
    return tables, looked + [(address + (1 << 22)) & ((1 << bits) - 1) & ~7 for address in looked]


def _emulator(tables: Tables) -> Uc:
    """An emulator with RAM that tells where it is, and the tables in front of it."""
    mode = {M.BITS_32: const.UC_MODE_32, M.PAE: const.UC_MODE_32, M.LEVEL_4: const.UC_MODE_64}[tables.mode]
    uc = Uc(const.UC_ARCH_X86, mode)
    uc.mem_map(0, RAM)
    uc.mem_write(0, np.arange(0, RAM, 8, dtype="<u8").tobytes())
    uc.mem_write(0, bytes(tables.memory))
    # mov eax, [ebx]; mov ecx, [ebx+4]; with 64-bit addresses in long mode
    uc.mem_write(CODE, b"\x8b\x03\x8b\x4b\x04")
    uc.ctl_set_tlb_mode(const.UC_TLB_CPU)
    paging = tables.paging
    uc.msr_write(0xC000_0080, paging.efer)
    uc.reg_write(x86.UC_X86_REG_CR4, paging.cr4)
    uc.reg_write(x86.UC_X86_REG_CR3, paging.cr3)
    uc.reg_write(x86.UC_X86_REG_CR0, paging.cr0)
    return uc


def _read_at(uc: Uc, long: bool, address: int) -> int | None:  # noqa: FBT001  # which of two register names
    """The GPA whose content the CPU finds at an address; None if it faults, of which nothing stays."""
    before = uc.context_save()
    uc.reg_write(x86.UC_X86_REG_RBX if long else x86.UC_X86_REG_EBX, address)
    try:
        uc.emu_start(CODE, CODE + 5)
    except UcError:
        return None
    finally:
        low, high = uc.reg_read(x86.UC_X86_REG_EAX), uc.reg_read(x86.UC_X86_REG_ECX)
        uc.context_restore(before)
    return int(low | high << 32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", [M.BITS_32, M.PAE, M.LEVEL_4])
def test_the_cpus_own_mmu_finds_the_same(mode: PagingMode, seed: int) -> None:
    tables, addresses = _scatter(mode, seed)
    uc, walker = _emulator(tables), tables.walker()
    outcomes = set()
    for address in addresses:
        try:
            expected: int | None = walker.translate(address).gpa
        except NotMappedError:
            expected = None
        assert _read_at(uc, mode is M.LEVEL_4, address) == expected, hex(address)
        outcomes.add(expected is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_the_engines_walker_finds_the_same(seed: int) -> None:
    """Addresses, C-bits and rights, in the mode of the portable engine's guests."""
    cbit = 47
    tables, addresses = _scatter(M.LEVEL_4, seed, cbit)
    memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), RAM),)), bytes(32))
    memory.private.data[: len(tables.memory)] = tables.memory
    engine = EngineWalker(memory, cbit, lambda _: None)
    walker = tables.walker()
    for address in addresses:
        try:
            found = walker.translate(address)
        except NotMappedError:
            with pytest.raises(PageFault):
                engine.translate(tables.paging.cr3, address, Access.READ)
            continue
        theirs = engine.translate(tables.paging.cr3, address, Access.READ)
        assert (theirs.gpa, theirs.encrypted) == (found.gpa & ~0xFFF, found.encrypted)
        try:
            engine.translate(tables.paging.cr3, address, Access.WRITE)
            writable = True
        except PageFault:
            writable = False
        assert writable is (Bit.WRITABLE in found.attributes)
    memory.close()
