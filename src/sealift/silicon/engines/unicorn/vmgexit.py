"""VMGEXIT of one vCPU: what KVM does with the GHCB of an SEV-ES guest (Linux ``arch/x86/kvm/svm/sev.c``).

Requests come out as the exits that every guest has, so whoever serves those need not know of GHCBs; results go back
into the page or the MSR. The page is copied once, and only the copy is believed and changed. A VMM that writes to the
page before that asks in its guest's name, but for nothing that is not its own to give: page states are changed by the
MSR alone, which no VMM can write to. One that writes after it lies to a guest that takes answers for answers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, assert_never

from sealift.address import PAGE_SHIFT, PAGE_SIZE, Gpa
from sealift.pageset import PageSet
from sealift.sev import ghcb
from sealift.sev.ghcb import Ghcb
from sealift.silicon.engines.cpuid import Leaf
from sealift.silicon.engines.interface import MAP_GPA_ENCRYPTED, MAP_GPA_RANGE, Hypercall
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.wire.platform import Fault, MmioRead, MmioWrite, PortIn, PortOut

Request: TypeAlias = Hypercall | Fault | PortIn | PortOut | MmioRead | MmioWrite
_EPERM: Final = 1
"""Linux's errno, with which KVM refuses hypercalls of those who may not make them; returned negated."""
_NO_LEAF: Final[Leaf] = (0, 0, 0, 0)
_BY_MSR: Final = 0xFFF
"""Bits of the GHCB MSR that are 0 when it holds an address."""


class GhcbPort:
    """The hypervisor's end of one vCPU's GHCB.

    Args:
        memory: the guest's.
        plain_log: told of the page when an answer is written: it is a write that a migration must bring along.
        cbit: the C-bit's position.
        leaves: the vCPU's CPUID.

    Attributes:
        msr: the GHCB MSR, which guest and hypervisor both read and write.
    """

    def __init__(self, memory: GuestMemory, plain_log: PageSet, cbit: int, leaves: Mapping[int, Leaf]) -> None:
        self.msr = 0
        self._memory = memory
        self._plain_log = plain_log
        self._cbit = cbit
        self._leaves = leaves
        self._finish: Callable[[int], None] = _nothing_pending

    def exit(self) -> Request | None:
        """Take the request; None if it has been answered already. The caller holds the turn."""
        return self._by_msr() if self.msr & _BY_MSR else self._by_page()

    def finish(self, result: int) -> None:
        """Give a read its data, or a hypercall its result; the caller holds the turn."""
        finish, self._finish = self._finish, _nothing_pending
        finish(result)

    # --- by MSR --------------------------------------------------------------------------------------------------

    def _by_msr(self) -> Hypercall | Fault | None:
        match ghcb.msr_request(self.msr):
            case ghcb.SevInfoRequest():
                self.msr = ghcb.sev_info_response(self._cbit)
            case ghcb.CpuidRequest(leaf, register):
                self.msr = ghcb.cpuid_response(self._leaves.get(leaf, _NO_LEAF)[register])
            case ghcb.FeaturesRequest():
                self.msr = ghcb.features_response()
            case ghcb.PageStateRequest(gpa, private):
                self._finish = self._finish_page_state
                return Hypercall(MAP_GPA_RANGE, (gpa, 1, MAP_GPA_ENCRYPTED if private else 0, 0))
            case ghcb.TerminationRequest(reason_set, reason):
                return _fault(f"the guest asked for its end (GHCB termination, reason {reason_set}:{reason})")
            case None:
                return _fault("the guest made a request by the GHCB MSR that is not known here")
            case request:
                assert_never(request)
        return None

    def _finish_page_state(self, result: int) -> None:
        self.msr = ghcb.page_state_response(-result)

    # --- by page -------------------------------------------------------------------------------------------------

    def _by_page(self) -> Request | None:
        gpa = self.msr
        offset = self._memory.layout.offset(Gpa(gpa), PAGE_SIZE)
        if offset is None or offset >> PAGE_SHIFT not in self._memory.states:
            return _fault("the guest's GHCB is no shared page of its memory")
        page = Ghcb.from_buffer_copy(self._memory.shared.data[offset : offset + PAGE_SIZE])
        match ghcb.decode(page, gpa):
            case ghcb.CpuidExit(leaf, _):
                eax, ebx, ecx, edx = self._leaves.get(leaf, _NO_LEAF)
                ghcb.answer(page, rax=eax, rbx=ebx, rcx=ecx, rdx=edx)
            case ghcb.MsrExit():
                ghcb.raise_protection(page)  # what this vCPU has of MSRs it reaches without asking
            case ghcb.HypercallExit(number) if number == MAP_GPA_RANGE:
                ghcb.answer(page, rax=-_EPERM)
            case ghcb.HypercallExit(number, arguments):
                self._finish = lambda result: self._answer(page, offset, rax=result)
                return Hypercall(number, arguments)
            case ghcb.PortExit() as access:
                return self._port(page, offset, access)
            case ghcb.MmioExit(gpa, size) if self._memory.layout.offset(Gpa(gpa), size) is not None:
                ghcb.refuse(page, ghcb.Refusal.INVALID_INPUT)
            case ghcb.MmioExit() as access:
                return self._mmio(page, offset, access)
            case ghcb.Refusal() as reason:
                ghcb.refuse(page, reason)
            case request:
                assert_never(request)
        self._write_back(page, offset)
        return None

    def _port(self, page: Ghcb, offset: int, access: ghcb.PortExit) -> PortIn | PortOut:
        if access.value is not None:
            self._answer(page, offset)
            return PortOut(access.port, access.size, access.value)
        mask = (1 << 8 * access.size) - 1
        self._finish = lambda data: self._answer(page, offset, rax=data & mask)
        return PortIn(access.port, access.size)

    def _mmio(self, page: Ghcb, offset: int, access: ghcb.MmioExit) -> MmioRead | MmioWrite:
        if access.value is not None:
            self._answer(page, offset)
            return MmioWrite(access.gpa, access.size, access.value)

        def finish(data: int) -> None:
            raw = (data & (1 << 8 * access.size) - 1).to_bytes(access.size, "little")
            ctypes.memmove(ctypes.addressof(page) + access.buffer, raw, access.size)
            self._answer(page, offset)

        self._finish = finish
        return MmioRead(access.gpa, access.size)

    def _answer(self, page: Ghcb, offset: int, **outputs: int) -> None:
        ghcb.answer(page, **outputs)
        self._write_back(page, offset)

    def _write_back(self, page: Ghcb, offset: int) -> None:
        """The guest may have taken the page back meanwhile; then there is nobody to answer."""
        if offset >> PAGE_SHIFT in self._memory.states:
            self._memory.shared.data[offset : offset + PAGE_SIZE] = bytes(page)
            self._plain_log.mark(offset >> PAGE_SHIFT)


def _nothing_pending(_: int) -> None:
    """No request waits for a result."""


def _fault(reason: str) -> Fault:
    return Fault(reason, 0, 0, 0)
