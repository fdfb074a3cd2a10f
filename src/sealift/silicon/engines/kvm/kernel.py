"""The kernel's end: opening ``/dev/kvm``, asking it, and what it says when it refuses."""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final, TypeVar

from sealift.errors import InternalError, UserError
from sealift.silicon.engines.kvm import abi

DEVICE: Final = "/dev/kvm"

_NEEDED: Final = {
    abi.CAP_IRQFD: "interrupts by eventfd (KVM_CAP_IRQFD)",
    abi.CAP_MANUAL_DIRTY_LOG_PROTECT2: "dirty logs that are cleared by hand (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)",
    abi.CAP_X86_USER_SPACE_MSR: "MSR exits (KVM_CAP_X86_USER_SPACE_MSR)",
    abi.CAP_X86_MSR_FILTER: "MSR filters (KVM_CAP_X86_MSR_FILTER)",
    abi.CAP_EXIT_HYPERCALL: "hypercall exits (KVM_CAP_EXIT_HYPERCALL)",
}

_libc = ctypes.CDLL(None, use_errno=True)

S = TypeVar("S", bound=ctypes.Structure)


def ask(fd: int, request: int, argument: int = 0) -> int:
    """An ioctl with a number for argument.

    Raises:
        OSError: the kernel refuses; InterruptedError: a signal came.
    """
    return fcntl.ioctl(fd, request, argument)


def ask_wide(fd: int, request: int, argument: int) -> None:
    """An ioctl with a number of up to 64 bits; Python's own takes 31.

    Raises:
        OSError: the kernel refuses.
    """
    if _libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(argument)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def give(fd: int, request: int, value: ctypes.Structure) -> int:
    """An ioctl with a structure, which the kernel may change.

    Raises:
        OSError: the kernel refuses.
    """
    return int(fcntl.ioctl(fd, request, value))


def fetch(fd: int, request: int, of: type[S]) -> S:
    """An ioctl that fills a structure.

    Raises:
        OSError: the kernel refuses.
    """
    value = of()
    fcntl.ioctl(fd, request, value)
    return value


class Kvm:
    """``/dev/kvm``, opened.

    Attributes:
        run_size: bytes of a vCPU's shared run area.
        cpuid: what KVM can give a guest, entry by entry.
        msrs: numbers of the MSRs that belong to a vCPU's state.

    Raises:
        UserError: there is none that could be used here; the message says why.
    """

    def __init__(self) -> None:
        try:
            self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{DEVICE} cannot be opened") from error
        try:
            if ask(self.fd, abi.GET_API_VERSION) != abi.API_VERSION:
                raise UserError(f"{DEVICE} speaks another version than {abi.API_VERSION}")
            for capability, name in _NEEDED.items():
                if ask(self.fd, abi.CHECK_EXTENSION, capability) <= 0:
                    raise UserError(f"this kernel's KVM lacks {name}")
            self.run_size = ask(self.fd, abi.GET_VCPU_MMAP_SIZE)
            self.cpuid = self._supported_cpuid()
            self.msrs = self._msr_numbers()
        except OSError as error:
            raise UserError(f"{DEVICE} cannot be used") from error

    def create_vm(self) -> int:
        """A descriptor of a new VM.

        Raises:
            UserError: the kernel refuses.
        """
        try:
            return ask(self.fd, abi.CREATE_VM)
        except OSError as error:
            raise UserError("KVM makes no VM") from error

    def _supported_cpuid(self) -> tuple[abi.CpuidEntry2, ...]:
        table = abi.Cpuid2(nent=abi.CPUID_ROOM)
        give(self.fd, abi.GET_SUPPORTED_CPUID, table)
        return tuple(table.entries[: table.nent])

    def _msr_numbers(self) -> tuple[int, ...]:
        listed = abi.MsrList(nmsrs=abi.MSR_LIST_ROOM)
        give(self.fd, abi.GET_MSR_INDEX_LIST, listed)
        return tuple(listed.indices[: listed.nmsrs])


def enable(vm: int, capability: int, argument: int) -> None:
    """Turn a capability of a VM on, with its first argument.

    Raises:
        InternalError: the kernel said that it had it, and refuses.
    """
    request = abi.EnableCap(cap=capability)
    request.args[0] = argument
    try:
        give(vm, abi.ENABLE_CAP, request)
    except OSError as error:
        raise InternalError(f"KVM refuses its own capability {capability}") from error
