"""A guest of a few pages with encrypted registers, on the portable engine: the one that can have such guests."""

from __future__ import annotations

from sealift.address import PAGE_SIZE, RamLayout
from sealift.launch.entry import EntryState
from sealift.sev.ghcb import GHCB_MSR, Ghcb
from sealift.sev.vmsa import Segment, Vmsa
from sealift.silicon.engines.interface import Vcpu, VmShape
from sealift.silicon.engines.unicorn.engine import UnicornEngine, UnicornFactory
from sealift.silicon.memory.guest_memory import GuestMemory

from .board import CODE, DATA, LAYOUT, OPEN_DATA, PML4, Board, EngineKind
from .code import VMMCALL, WRMSR, mov

IDT = 0x30_000
HANDLER = 0x31_000
STACK = 0x32_800
GHCB, OPEN_GHCB = DATA, OPEN_DATA
"""The GHCB's GPA, and where it is mapped without the C-bit."""
BOOT_CS = 0x10

VMGEXIT = b"\xf3" + VMMCALL


class _Factory(UnicornFactory):
    def make(self, memory: GuestMemory, shape: VmShape) -> UnicornEngine:
        return super().make(memory, VmShape(shape.vcpus, es=True))


class EsBoard(Board):
    """See `Board`; registers are given and had by VMSA."""

    def __init__(self, vcpus: int = 1, layout: RamLayout = LAYOUT) -> None:
        super().__init__(EngineKind("unicorn", _Factory, exact=True), vcpus, layout)

    def close(self) -> None:
        """End it and let go of its memory's descriptors."""
        super().close()
        self.memory.close()

    def load(self, index: int, code: bytes, **general: int) -> None:
        """Put code at the vCPU's place, and a VMSA that starts there."""
        at = CODE + index * PAGE_SIZE
        self.memory.private.data[at : at + len(code)] = code
        self.memory.place_vmsa(index, self.vmsa_for(at, **general))

    def vmsa_for(self, rip: int, **general: int) -> bytes:
        """64-bit mode with paging and a stack, an IDT, and these registers."""
        entry = EntryState(rip=rip, cr3=PML4 | self.c, rsp=STACK, cr4=0x620, efer=0xD00)
        page = Vmsa.from_buffer_copy(entry.vmsa())
        page.idtr = Segment(0, 0, PAGE_SIZE - 1, IDT)
        for name, value in general.items():
            setattr(page, name, value)
        return bytes(page)

    def vmsa(self, index: int = 0) -> Vmsa:
        """The registers of a vCPU that is out of guest mode."""
        page = self.memory.vmsa(index)
        assert page is not None
        return Vmsa.from_buffer_copy(page)

    def value(self, name: str, index: int = 0) -> int:
        """A register."""
        return int(getattr(self.vmsa(index), name))

    def handle(self, vector: int, code: bytes, selector: int = BOOT_CS, kind: int = 0x8E, ist: int = 0) -> None:
        """Give a vector a handler."""
        low, middle = HANDLER & 0xFFFF, HANDLER >> 16
        self.poke(IDT + vector * 16, low | selector << 16 | ist << 32 | kind << 40 | middle << 48)
        self.poke(IDT + vector * 16 + 8, 0)
        self.memory.private.data[HANDLER : HANDLER + len(code)] = code

    # --- the GHCB as its guest sees it ---------------------------------------------------------------------------

    def ask(self, page: Ghcb) -> None:
        """Share the GHCB with this content."""
        self.share(GHCB)
        self.memory.shared.data[GHCB : GHCB + PAGE_SIZE] = bytes(page)

    def answer(self) -> Ghcb:
        """What is in it."""
        return Ghcb.from_buffer_copy(self.memory.shared.data[GHCB : GHCB + PAGE_SIZE])

    @property
    def vcpu(self) -> Vcpu:
        """The first."""
        return self.vcpus[0]


def write_msr(number: int, value: int) -> bytes:
    """WRMSR; uses rax, rcx, rdx."""
    return mov("rcx", number) + mov("rax", value & 0xFFFF_FFFF) + mov("rdx", value >> 32) + WRMSR


def by_msr(value: int) -> bytes:
    """VMGEXIT with a value in the GHCB MSR."""
    return write_msr(GHCB_MSR, value) + VMGEXIT
