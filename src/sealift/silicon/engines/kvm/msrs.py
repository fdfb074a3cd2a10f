"""MSRs of a confidential guest that KVM does not know: the platform answers them for all vCPUs alike."""

from __future__ import annotations

import ctypes
from typing import Final

from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.kernel import give

SEV_STATUS: Final = 0xC001_0131
"""AMD64 APM volume 2, section 15.34.10: which kinds of encryption are active."""
SEV_ENABLED: Final = 1 << 0
MIGRATION_CONTROL: Final = 0x4B56_4D08
"""Linux ``Documentation/virt/kvm/x86/msr.rst``, MSR_KVM_MIGRATION_CONTROL: bit 0, the guest is ready to be migrated."""
_READY: Final = 1 << 0


def claim(vm: int) -> None:
    """Have accesses to these MSRs leave the guest, whatever KVM would do by itself (its parameter ignore_msrs).

    Raises:
        OSError: the kernel refuses.
    """
    denied = ctypes.c_uint64(0)
    wanted = abi.MsrFilter()
    for place, index in zip(wanted.ranges, (SEV_STATUS, MIGRATION_CONTROL), strict=False):
        place.flags = abi.MSR_FILTER_READ | abi.MSR_FILTER_WRITE
        place.nmsrs, place.base, place.bitmap = 1, index, ctypes.addressof(denied)
    give(vm, abi.X86_SET_MSR_FILTER, wanted)


class GuestMsrs:
    """What the guest has read and written.

    Attributes:
        aware: it has asked whether its memory is encrypted.
        migration_control: what it wrote there last.
    """

    def __init__(self) -> None:
        self.aware = False
        self.migration_control = 0

    @property
    def ready(self) -> bool:
        """Whether it says that it can be migrated."""
        return bool(self.migration_control & _READY)

    def read(self, index: int) -> int | None:
        """RDMSR; None is a general-protection fault."""
        if index == SEV_STATUS:
            self.aware = True
            return SEV_ENABLED
        return self.migration_control if index == MIGRATION_CONTROL else None

    def write(self, index: int, value: int) -> bool:
        """WRMSR; False is a general-protection fault."""
        if index != MIGRATION_CONTROL or value & ~_READY:
            return False
        self.migration_control = value
        return True
