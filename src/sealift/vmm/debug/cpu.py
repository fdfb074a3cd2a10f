"""A vCPU's registers for debugging: from the platform, or out of the decrypted VMSA where they are encrypted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.errors import FirmwareError
from sealift.sev.status import Status
from sealift.sev.vmsa import EFER_SVME, Vmsa
from sealift.sev.vmsa import Segment as VmsaSegment
from sealift.vmm.debug.memory import DebugForbiddenError
from sealift.vmm.debug.walker import Paging
from sealift.vmm.machine import Machine
from sealift.wire import platform as wire
from sealift.wire.platform import Registers, Segment, SystemRegisters, Table

GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)
"""The general registers in `Registers.general`'s order."""


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """One vCPU, which is out of guest mode.

    Attributes:
        index: which.
        registers: general and control registers.
        system: segments and descriptor tables.
        cbit: where addresses have the C-bit; None in a guest that has none.
    """

    index: int
    registers: Registers
    system: SystemRegisters
    cbit: int | None

    @property
    def paging(self) -> Paging:
        """How it translates addresses."""
        values = self.registers
        return Paging(values.cr0, values.cr3, values.cr4, values.efer, self.cbit)


def read_cpu(machine: Machine, index: int) -> CpuRegisters:
    """The registers of a vCPU that is out of guest mode; `Machine.stilled` keeps it there.

    Raises:
        DebugForbiddenError: they are encrypted, and the policy forbids to decrypt them.
        SealiftError: the guest is not here, or not yet, or not any more.
    """
    platform = machine.platform
    cbit = None if machine.spec.plain else platform.cpu.cbit
    if machine.spec.es:
        return _decoded(index, read_vmsa(machine, index), cbit)
    return CpuRegisters(index, platform.registers(index), platform.system_registers(index), cbit)


def read_vmsa(machine: Machine, index: int) -> bytes:
    """The save area of an SEV-ES guest's vCPU that is out of guest mode; raises as `read_cpu`."""
    with machine.platform.debug_window() as window:
        try:
            machine.platform.do(wire.DbgDecryptVmsa(index))
        except FirmwareError as error:
            if error.status == Status.POLICY_FAILURE:
                raise DebugForbiddenError from None
            raise
        return bytes(window[:PAGE_SIZE])


def _decoded(index: int, page: bytes, cbit: int | None) -> CpuRegisters:
    vmsa = Vmsa.from_buffer_copy(page)
    registers = Registers(
        general=tuple(getattr(vmsa, name) for name in GENERAL),
        rip=vmsa.rip,
        rflags=vmsa.rflags,
        cr0=vmsa.cr0,
        cr2=vmsa.cr2,
        cr3=vmsa.cr3,
        cr4=vmsa.cr4,
        efer=vmsa.efer & ~EFER_SVME,  # the processor's own: no guest sees it
    )
    segments = {name: _segment(getattr(vmsa, name)) for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")}
    system = SystemRegisters(
        **segments,
        gdtr=Table(vmsa.gdtr.base, vmsa.gdtr.limit),
        idtr=Table(vmsa.idtr.base, vmsa.idtr.limit),
        cr8=0,  # a VMSA has no task priority: it belongs to interrupt controllers, which such guests do not have here
        kernel_gs_base=vmsa.kernel_gs_base,
    )
    return CpuRegisters(index, registers, system, cbit)


def _segment(segment: VmsaSegment) -> Segment:
    return Segment(segment.selector, segment.base, segment.limit, segment.attributes)
