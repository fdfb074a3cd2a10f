"""A machine's memory, vCPUs and interrupt controllers, and the connection to its guest's migration handler."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sealift.cpu.description import CpuDescription
from sealift.wire.obstacle import Obstacle
from sealift.wire.platform.message import Message

CPU_LIMIT = 16 * 1024
"""Bytes of a CPU's description: 256 entries of CPUID, at most 40 bytes each, with room."""

CHIPS_LIMIT = 8 * 1024
"""Bytes of the interrupt controllers' state: three of 520 bytes, timer and clock, with room."""


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One RAMBlock: name, first GPA, size in bytes."""

    name: str
    gpa: int
    size: int


class CreateVm(Message, frozen=True):
    """Make the VM. Reply: VmCreated with the shared plane's and the bitmap area's memfds.

    With `prealloc` all of its private memory is touched now, for a guest that is to arrive: what it never wrote is
    given back when it is here. (A guest that is launched so would count every page as written.)
    With `irqchip` it has interrupt controllers, a timer and a clock. A guest that is to arrive brings the position of
    its C-bit and a description of its CPU, which this host must be able to give; `cbit` 0 is this host's own.
    A guest that is launched may be given the CPU `limit`, which this host must be able to give, in place of all it has.
    With `es` its policy will ask for SEV-ES, and an engine is taken that hides registers.
    With `plain` it is not confidential: nothing is encrypted or launched, and all of its memory is the shared plane.
    """

    blocks: tuple[Block, ...]
    vcpus: int
    prealloc: bool = False
    irqchip: bool = False
    cbit: Annotated[int, msgspec.Meta(ge=0, lt=64)] = 0
    cpu: Annotated[bytes, msgspec.Meta(max_length=CPU_LIMIT)] = b""
    es: bool = False
    plain: bool = False
    limit: CpuDescription | None = None


class VmCreated(Message, frozen=True):
    """The bitmap area holds one set of RAM pages (sealift.pageset); requests say what they leave there.

    `cpu` describes the CPU that the guest sees, for a host that it may move to; opaque.
    """

    bitmap_bytes: int
    cbit: int
    cpu: bytes


class CreateVcpu(Message, frozen=True):
    """Make vCPU `index`. Reply: Done with the socket and the memory over which it takes Run and answers exits."""

    index: int


class Registers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """General and control registers of one vCPU, as the VMM of an SEV (not SEV-ES) guest may see and set them.

    `general` holds rax rbx rcx rdx rsi rdi rbp rsp r8..r15, in this order.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int


class GetRegisters(Message, frozen=True):
    """Reply: VcpuRegisters."""

    index: int


class VcpuRegisters(Message, frozen=True):
    """Answer to GetRegisters."""

    registers: Registers


class SetRegisters(Message, frozen=True):
    """Set them; the vCPU must be out of guest mode."""

    index: int
    registers: Registers


class Kick(Message, frozen=True):
    """Make vCPU `index` leave guest mode soon; its pending Run ends with Interrupted (or what came first)."""

    index: int


class ConnectInterrupt(Message, frozen=True):
    """Reply: Done with an eventfd; each write to it raises an edge on interrupt line `gsi`."""

    gsi: int


class GetChips(Message, frozen=True):
    """State of interrupt controllers, timer and clock; vCPUs are out of guest mode. Reply: Chips."""


class Chips(Message, frozen=True):
    """Opaque, and none of it secret; empty for a machine without any."""

    state: bytes


class SetChips(Message, frozen=True):
    """Load what GetChips gave on another host, into a machine whose guest is arriving."""

    state: Annotated[bytes, msgspec.Meta(max_length=CHIPS_LIMIT)]


class GetSharedDirtyLog(Message, frozen=True):
    """Move the set of shared-plane pages written since the last call to the bitmap area. Reply: Count."""


class StartWriteMeter(Message, frozen=True):
    """Count from now on which pages the guest writes, beside the dirty logs and without touching them."""


class ReadWriteMeter(Message, frozen=True):
    """Reply: WritesMetered. The VMM learns how many pages, which a migration would tell it anyway, and not which."""


class WritesMetered(Message, frozen=True):
    """Pages written on each plane since the meter was started, each counted once."""

    private_pages: int
    shared_pages: int


class StopWriteMeter(Message, frozen=True):
    """Count no more."""


class CountPopulated(Message, frozen=True):
    """Private pages that are no holes: what a migration's first round has. Reply: Count."""


class JudgeGuest(Message, frozen=True):
    """Could a guest of this shape, off an engine of this name, run here? Makes nothing. Reply: Judged.

    `cbit`, `cpu` and `plain` are as in CreateVm.
    """

    engine: str
    ram: int
    vcpus: int
    irqchip: bool
    es: bool
    cbit: Annotated[int, msgspec.Meta(ge=0, lt=64)]
    cpu: Annotated[bytes, msgspec.Meta(max_length=CPU_LIMIT)]
    plain: bool = False


class Judged(Message, frozen=True):
    """Everything that is in the way; empty if it could."""

    obstacles: tuple[Obstacle, ...]


class GetPageStates(Message, frozen=True):
    """Copy the set of pages in shared state to the bitmap area. Reply: Count."""


class ReadHostView(Message, frozen=True):
    """Put on the shared plane what DRAM shows the host for these pages: ciphertext where they are private."""

    first: int
    count: int


class WriteHostView(Message, frozen=True):
    """Take what the host put on the shared plane as new DRAM content: private pages get its decryption."""

    first: int
    count: int


class Count(Message, frozen=True):
    """Pages in the set that was left in the bitmap area."""

    pages: int


# --- handler -------------------------------------------------------------------------------------------------------


class OpenHandler(Message, frozen=True):
    """Connect to the guest's migration handler.

    Reply: HandlerOpened with its socket, the outgoing ring (which only the platform can write) and the incoming one.
    """


class HandlerOpened(Message, frozen=True):
    """Shape of both rings, and where the RFC's mailbox is (from the guest's own GUIDed table)."""

    slots: int
    slot_size: int
    mailbox_gpa: int
    mailbox_size: int
