"""A guest of a few pages for engine tests: tables that map it one to one, and code where a test wants it.

The suite speaks to the `Engine` and `Vcpu` protocols alone, so that every engine runs the same tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.cpu.description import CpuDescription
from sealift.silicon.engines.interface import Engine, EngineFactory, Outcome, Vcpu, VmShape
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.wire.platform import MmioRead, MmioWrite, PortIn, PortOut, Registers

from .windows import KEY

LAYOUT = RamLayout((RamBlock("ram", Gpa(0), 2 << 20),))
PML4, PDPT, PD, PT = 0x10_000, 0x11_000, 0x12_000, 0x13_000
CODE = 0x4000
"""vCPU n's code begins n pages further."""
DATA, OTHER = 0x20_000, 0x21_000
"""Two pages for data, mapped with the C-bit."""
OPEN_DATA, OPEN_OTHER = 0x40_000, 0x41_000
"""The same two pages, mapped without it."""

PRESENT, WRITABLE, ACCESSED, DIRTY, NO_EXECUTE = 1, 2, 1 << 5, 1 << 6, 1 << 63

CLOCKS = {0x10, 0x3B, 0x4000_0010, 0x4000_0020}
"""TSC, TSC adjust; and Hyper-V's clocks of the vCPU and of the machine, which KVM keeps for every guest."""

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine to test: what makes its factory.

    An `exact` engine is our own emulation: it says where and why a guest faulted, tells fetches from other accesses,
    and shows every hypercall. Hardware under KVM ends in a triple fault, which on AMD's processors leaves no registers.
    `release` lets go of what an engine holds outside of Python.
    """

    name: str
    factory: Callable[[], EngineFactory]
    exact: bool
    release: Callable[[Engine], None] = lambda _: None


@dataclass
class Ports:
    """The outside: keeps what was asked, and answers from a list (0 when it is used up).

    `during` is called in the middle of every access.
    """

    answers: list[int] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    asked: list[PortIn | PortOut | MmioRead | MmioWrite] = field(default_factory=list)

    def __call__(self, access: PortIn | PortOut | MmioRead | MmioWrite) -> int:
        """One access."""
        self.asked.append(access)
        self.during()
        return self.answers.pop(0) if isinstance(access, PortIn | MmioRead) and self.answers else 0


class Board:
    """A guest on an engine, whose addresses are offsets into its RAM."""

    def __init__(
        self,
        kind: EngineKind,
        vcpus: int = 1,
        layout: RamLayout = LAYOUT,
        *,
        irqchip: bool = False,
        cpu: bytes = b"",
        limit: CpuDescription | None = None,
    ) -> None:
        self.kind = kind
        self.memory = GuestMemory(layout, KEY)
        self.engine = kind.factory().make(self.memory, VmShape(vcpus, irqchip=irqchip, cpu=cpu, limit=limit))
        self.vcpus: list[Vcpu] = [self.engine.create_vcpu(index) for index in range(vcpus)]
        self.c = 1 << self.engine.cbit
        for table, below in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
            self.poke(table, below | self.c | PRESENT | WRITABLE)
        for address in range(0, layout.size, PAGE_SIZE):
            self.map(address, layout.gpa(address))
        self.map(OPEN_DATA, DATA, encrypted=False)
        self.map(OPEN_OTHER, OTHER, encrypted=False)
        self.memory.take_unsent()

    def close(self) -> None:
        """End it; nothing of it may be used any more."""
        self.kind.release(self.engine)

    # --- memory as a test sees it --------------------------------------------------------------------------------

    def poke(self, address: int, value: int) -> None:
        """64 bits of the private plane."""
        self.memory.private.words[address // PAGE_SIZE, address % PAGE_SIZE // 8] = value

    def private(self, address: int) -> int:
        """64 bits of the private plane."""
        return int(self.memory.private.words[address // PAGE_SIZE, address % PAGE_SIZE // 8])

    def shared(self, address: int) -> int:
        """64 bits of the shared plane."""
        return int(self.memory.shared.words[address // PAGE_SIZE, address % PAGE_SIZE // 8])

    def entry(self, address: int) -> int:
        """Where the last-level entry for an address is."""
        return PT + address // PAGE_SIZE * 8

    def map(self, address: int, gpa: int, *, encrypted: bool = True, flags: int = PRESENT | WRITABLE) -> None:
        """Make `address` mean `gpa`; no vCPU has used it yet."""
        self.poke(self.entry(address), gpa | (self.c if encrypted else 0) | flags)

    def share(self, address: int) -> None:
        """The guest declared the page shared."""
        self.memory.convert(address // PAGE_SIZE, 1, to_shared=True)

    def hide(self, address: int) -> None:
        """The guest declared the page private."""
        self.memory.convert(address // PAGE_SIZE, 1, to_shared=False)

    def logged(self) -> tuple[set[int], set[int]]:
        """Addresses of the pages in the logs, with and without C-bit; clears them."""
        with self.engine.quiesced():
            logs = self.engine.take_logs(self.memory.states.span)
        encrypted, plain = ({int(page) * PAGE_SIZE for page in log.numbers()} for log in (logs.encrypted, logs.plain))
        return encrypted, plain

    # --- vCPUs ------------------------------------------------------------------------------------------------------

    def load(self, index: int, code: bytes, **general: int) -> None:
        """Put code at the vCPU's place and its registers there."""
        at = CODE + index * PAGE_SIZE
        self.memory.private.data[at : at + len(code)] = code
        self.vcpus[index].set_registers(self.registers(at, **general))

    def registers(self, rip: int, **general: int) -> Registers:
        """64-bit mode, paging, SSE and NX on; unnamed registers are 0."""
        return Registers(
            general=tuple(general.get(name, 0) for name in _GENERAL),
            rip=rip,
            rflags=2,
            cr0=0x8005_0033,
            cr2=0,
            cr3=PML4 | self.c,
            cr4=0x620,
            efer=0xD00,
        )

    def run(self, index: int = 0, ports: Ports | None = None) -> Outcome:
        """Until it leaves guest mode."""
        return self.vcpus[index].run(ports or Ports())

    def execute(self, code: bytes, ports: Ports | None = None, **general: int) -> Outcome:
        """Load vCPU 0 and run it."""
        self.load(0, code, **general)
        return self.run(0, ports)

    def value(self, name: str, index: int = 0) -> int:
        """A general register."""
        return self.vcpus[index].registers().general[_GENERAL.index(name)]


def timeless(state: bytes) -> object:
    """A state without the clocks of real processors, which never stand still."""
    decoded = msgspec.msgpack.decode(state)
    if isinstance(decoded["msrs"], list):
        decoded["msrs"] = [msr for msr in decoded["msrs"] if msr[0] not in CLOCKS]
    return decoded
