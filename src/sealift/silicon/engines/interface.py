"""What an engine is: the one small interface that the platform process and guest memory use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from sealift.cpu.description import CpuDescription
from sealift.silicon.memory.guest_memory import GuestMemory, Windows
from sealift.wire.obstacle import Obstacle
from sealift.wire.platform import (
    Fault,
    Halt,
    Interrupted,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
    Registers,
    SystemRegisters,
)

MAP_GPA_RANGE: Final = 12
"""KVM_HC_MAP_GPA_RANGE, the hypercall that declares pages private or shared."""
MAP_GPA_ENCRYPTED: Final = 1 << 4
"""Of its attributes, the one that makes them private."""


@dataclass(frozen=True, slots=True)
class Hypercall:
    """VMMCALL: number and arguments; the guest goes on once `Vcpu.complete_hypercall` gave it a result."""

    number: int
    arguments: tuple[int, int, int, int]


Outcome: TypeAlias = Hypercall | Halt | Fault | Interrupted
"""Why a vCPU left guest mode."""

DeviceIo: TypeAlias = Callable[[PortIn | PortOut | MmioRead | MmioWrite], int]
"""Carries out a device access, on the vCPU's thread; returns what a read gets."""


class Vcpu(Protocol):
    """One virtual CPU. All but `kick` are called by one thread at a time.

    One that was never given registers or state is not started: it waits for another vCPU's start-up messages or, on a
    machine without interrupt controllers, is halted. Those of an SEV-ES guest have their registers in the VMSA that
    guest memory keeps (`GuestMemory.vmsa`), from which they start, and which is up to date whenever they are out.
    """

    def run(self, device_io: DeviceIo) -> Outcome:
        """Enter the guest until something but a device access needs the outside."""

    def complete_hypercall(self, result: int) -> None:
        """Give the last Hypercall its result (rax)."""

    def kick(self) -> None:
        """Make the current or else the next `run` return Interrupted soon; safe from any thread."""

    def registers(self) -> Registers:
        """General and control registers.

        Raises:
            RefusedError: they are those of an SEV-ES guest.
        """

    def set_registers(self, registers: Registers) -> None:
        """Load general and control registers; raises as `registers`."""

    def system_registers(self) -> SystemRegisters:
        """Segments and descriptor tables; raises as `registers`."""

    def save(self) -> bytes:
        """The whole architectural state, for sealed migration state; only this engine reads it."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state into a fresh vCPU.

        Raises:
            StreamError: it does not parse, or does not fit.
        """

    def save_visible(self) -> bytes:
        """As much of `save` as the host may see: all of it, but of an SEV-ES guest's no more than its GHCB MSR."""

    def restore_visible(self, state: bytes) -> None:
        """Load `save_visible`'s state into a fresh vCPU; raises as `restore`."""


@dataclass(frozen=True, slots=True)
class VmShape:
    """What an engine has to know of a VM.

    Attributes:
        vcpus: how many.
        irqchip: whether it has interrupt controllers, a timer and a clock.
        cbit: the C-bit's position; None for the best that the host has.
        cpu: description of the CPU that the guest must see; empty for the best that the host has.
        limit: in its place, of a guest that is launched: the CPU it is to see, in words.
        es: whether its registers are encrypted (SEV-ES).
        plain: whether it is not confidential: there is no C-bit, and nothing is encrypted.
    """

    vcpus: int
    irqchip: bool = False
    cbit: int | None = None
    cpu: bytes = b""
    es: bool = False
    plain: bool = False
    limit: CpuDescription | None = None


@dataclass(frozen=True, slots=True)
class GuestSays:
    """What a guest has let be known of itself.

    Attributes:
        aware: it has asked whether its memory is encrypted; an unaware kernel would share nothing.
        ready: it can be migrated now (MSR_KVM_MIGRATION_CONTROL).
    """

    aware: bool
    ready: bool


class Engine(Windows, Protocol):
    """Makes vCPUs over one guest's memory, whose windows it is.

    Attributes:
        name: which engine; state moves only between engines of one name.
        cbit: the C-bit's position.
        cpu: description of the CPU that the guest sees; opaque, empty for the only one there is.
    """

    name: str
    cbit: int
    cpu: bytes

    @property
    def says(self) -> GuestSays:
        """What the guest has let be known."""

    def create_vcpu(self, index: int) -> Vcpu:
        """A vCPU with initial APIC id `index`; a second call is for one whose state will be restored."""

    def save(self) -> bytes:
        """What of the machine is neither memory nor vCPU, and must be sealed."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: it does not parse.
        """

    def interrupt(self, gsi: int) -> int:
        """A descriptor of an eventfd that raises an edge on an interrupt line; stays the engine's.

        Raises:
            RefusedError: there is no such line.
        """

    def save_chips(self) -> bytes:
        """State of interrupt controllers, timer and clock, which the VMM owns; empty without any."""

    def restore_chips(self, state: bytes) -> None:
        """Load `save_chips`'s state.

        Raises:
            StreamError: it does not parse, or does not fit.
        """


class EngineFactory(Protocol):
    """One of the host's ways to run guests.

    Attributes:
        name: the engine's.
        cbit: where guests have the C-bit unless they come with another.
        hides_registers: whether it can run SEV-ES guests.
        runs_plain: whether it can run guests that are not confidential.
    """

    name: str
    cbit: int
    hides_registers: bool
    runs_plain: bool

    def host_cpu(self) -> CpuDescription:
        """All that guests without wishes see of this host's CPU."""

    def judge(self, shape: VmShape) -> tuple[Obstacle, ...]:
        """What keeps this host from giving such a guest what it needs; everything, and nothing is made."""

    def make(self, memory: GuestMemory, shape: VmShape) -> Engine:
        """An engine for one guest.

        Raises:
            UserError: this host cannot give such a guest what it needs.
        """
