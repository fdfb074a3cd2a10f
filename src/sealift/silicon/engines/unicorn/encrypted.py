"""A vCPU of an SEV-ES guest: what it holds leaves guest mode only as far as the guest itself writes it to its GHCB.

An instruction that would have to show registers to the outside raises #VC in the guest (AMD64 APM volume 2, 15.35.5);
VMGEXIT takes what the guest's handler wrote for the outside. HLT leaves by itself, since it shows nothing. The vCPU
enters from its VMSA in `GuestMemory`, as VMRUN does, and its registers are back there whenever it is out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from unicorn import Uc
from unicorn import x86_const as x86

from sealift.address import PAGE_SIZE
from sealift.errors import GuestError, RefusedError, StreamError, sentence
from sealift.sev.ghcb import GHCB_MSR, SEV_STATUS_MSR, VC_VECTOR, ExitCode
from sealift.silicon.engines.cpuid import Leaf
from sealift.silicon.engines.interface import DeviceIo, Outcome
from sealift.silicon.engines.unicorn import vmsa_state
from sealift.silicon.engines.unicorn.delivery import Delivery, UndeliverableError
from sealift.silicon.engines.unicorn.registers import MSRS
from sealift.silicon.engines.unicorn.vcpu import SEV_ENABLED, Board, Reason, UnicornVcpu, Unsettled
from sealift.silicon.engines.unicorn.vmgexit import GhcbPort
from sealift.wire.packed import unpack
from sealift.wire.platform import Fault, MmioRead, PortIn, Registers, SystemRegisters

_STATE_VERSION: Final = 1
_SEV_ES_ENABLED: Final = 1 << 1
_OWN_MSRS: Final = frozenset(MSRS.values()) | {0xC000_0100, 0xC000_0101}
"""MSRs of the vCPU itself, which KVM lets an SEV-ES guest reach without an exit; FS base and GS base among them."""
_ENCRYPTED: Final = "the registers of an SEV-ES guest are encrypted: nobody outside the guest can read them"
_HIDDEN: Final = "the guest shut down; what it was doing stays its own, since its registers are encrypted"
_VMGEXIT: Final = b"\xf3\x0f\x01\xd9"
_VMMCALL: Final = b"\x0f\x01\xd9"


@dataclass(frozen=True, slots=True)
class _Communication(Unsettled):
    """The instruction at `rip` has to be carried out by the #VC handler; `rax` is as before it."""

    exit_code: ExitCode
    rip: int
    rax: int


@dataclass(frozen=True, slots=True)
class _Vmgexit(Unsettled):
    """VMGEXIT was executed."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    vmsa: bytes
    ghcb: int


class _Visible(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    ghcb: int


class EncryptedVcpu(UnicornVcpu):
    """See `sealift.silicon.engines.interface.Vcpu`; registers cannot be had or given but by VMSA."""

    def __init__(self, board: Board, index: int, leaves: dict[int, Leaf], cbit: int) -> None:
        super().__init__(board, leaves)
        self._index = index
        self._page = b""
        self._ghcb = GhcbPort(board.memory, board.plain_log, cbit, leaves)
        self._delivery = Delivery(board.memory, board.walker, board.encrypted_log, board.plain_log)

    # --- state ---------------------------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """They are the guest's own."""
        raise RefusedError(_ENCRYPTED)

    def system_registers(self) -> SystemRegisters:
        """They are the guest's own."""
        raise RefusedError(_ENCRYPTED)

    def set_registers(self, values: Registers) -> None:  # noqa: ARG002  # they are refused
        """They are the guest's own."""
        raise RefusedError("the registers of an SEV-ES guest come from LAUNCH_UPDATE_VMSA; nobody can set them")

    def save(self) -> bytes:
        """VMSA and GHCB MSR; the VMSA is empty if the vCPU was never started."""
        page = self._board.memory.vmsa(self._index) or b""
        if page and (reason := vmsa_state.why_not_entered(page)):
            raise GuestError(reason)
        return msgspec.msgpack.encode(_State(_STATE_VERSION, page, self._ghcb.msr))

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        found = unpack(state, _State, "vCPU state")
        if found.version != _STATE_VERSION or not 0 <= found.ghcb < 1 << 64 or len(found.vmsa) not in (0, PAGE_SIZE):
            raise StreamError(f"vCPU state of version {found.version} is not what this engine reads")
        with self._board.turn.held():
            self._ghcb.msr = found.ghcb
            self._board.memory.place_vmsa(self._index, found.vmsa)
            if found.vmsa:
                self._load(found.vmsa)

    def save_visible(self) -> bytes:
        """GHCB MSR, which the host has to know; the VMSA moves by SEND_UPDATE_VMSA."""
        return msgspec.msgpack.encode(_Visible(_STATE_VERSION, self._ghcb.msr))

    def restore_visible(self, state: bytes) -> None:
        """Load `save_visible`'s state; the next entry takes the VMSA."""
        found = unpack(state, _Visible, "vCPU state")
        if found.version != _STATE_VERSION or not 0 <= found.ghcb < 1 << 64:
            raise StreamError(f"vCPU state of version {found.version} is not what this engine reads")
        with self._board.turn.held():
            self._ghcb.msr = found.ghcb

    def _load(self, page: bytes) -> None:
        vmsa_state.load(self._uc, page)
        self.request_code_flush()
        self._page, self.started = page, True

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, device_io: DeviceIo) -> Outcome:
        """Enter the guest from its VMSA; on the way out its registers go there."""
        memory = self._board.memory
        with self._board.turn.held():
            page = memory.vmsa(self._index)
            if page is not None and page is not self._page:
                try:
                    self._load(page)
                except StreamError as error:
                    return Fault(sentence(error), 0, 0, 0)
        try:
            return super().run(device_io)
        finally:
            if self.started:
                with self._board.turn.held():
                    self._page = vmsa_state.save(self._uc, self._page)
                    memory.place_vmsa(self._index, self._page)

    def _slice(self) -> Reason | None:
        match super()._slice():
            case _Communication() as instruction:
                return self._raise_communication(instruction)
            case _Vmgexit():
                return self._ghcb.exit()
            case other:
                return other

    def _raise_communication(self, instruction: _Communication) -> Fault | None:
        """#VC is a fault: nothing of the instruction has happened."""
        self._uc.reg_write(x86.UC_X86_REG_RIP, instruction.rip)
        self._uc.reg_write(x86.UC_X86_REG_RAX, instruction.rax)
        try:
            self._delivery.deliver(self._uc, VC_VECTOR, instruction.exit_code)
        except UndeliverableError:
            return Fault(_HIDDEN, 0, 0, 0)
        return None

    def _complete_read(self, access: PortIn | MmioRead, data: int) -> None:  # noqa: ARG002  # the GHCB's end knows it
        with self._board.turn.held():
            self._ghcb.finish(data)

    def complete_hypercall(self, result: int) -> None:
        """Put the result where the guest asked from."""
        with self._board.turn.held():
            self._ghcb.finish(result)

    def _fault(self, reason: str, address: int, error_code: int) -> Fault:  # noqa: ARG002  # the guest's own
        return Fault(_HIDDEN, 0, 0, 0)

    # --- hooks ---------------------------------------------------------------------------------------------------

    def _in(self, uc: Uc, port: int, size: int, _user: object) -> int:  # noqa: ARG002  # the handler decodes it
        self._communicate(uc, ExitCode.IOIO)
        return 0

    def _out(self, uc: Uc, port: int, size: int, value: int, _user: object) -> None:  # noqa: ARG002  # likewise
        self._communicate(uc, ExitCode.IOIO)

    def _cpuid(self, uc: Uc, _user: object) -> int:
        self._communicate(uc, ExitCode.CPUID)
        return 1  # skip Unicorn's own

    def _call_out(self, uc: Uc, rip: int) -> bool:
        if self._fetch(uc, rip, len(_VMGEXIT)) == _VMGEXIT:
            uc.reg_write(x86.UC_X86_REG_RIP, rip + len(_VMGEXIT))
            self._leave(uc, _Vmgexit())
            return True
        if self._fetch(uc, rip, len(_VMMCALL)) == _VMMCALL:
            self._communicate(uc, ExitCode.VMMCALL)
            uc.reg_write(x86.UC_X86_REG_RIP, rip + len(_VMMCALL))
            return True
        return False

    def _communicate(self, uc: Uc, exit_code: ExitCode) -> None:
        rip, rax = uc.reg_read(x86.UC_X86_REG_RIP), uc.reg_read(x86.UC_X86_REG_RAX)
        self._leave(uc, _Communication(exit_code, rip, rax))

    # --- MSRs ----------------------------------------------------------------------------------------------------

    def _read_msr(self, number: int) -> int | Reason:
        match number:
            case _ if number == GHCB_MSR:
                return self._ghcb.msr
            case _ if number == SEV_STATUS_MSR:
                return SEV_ENABLED | _SEV_ES_ENABLED
            case _ if number in _OWN_MSRS:
                return super()._read_msr(number)
            case _:
                return self._intercepted_msr()

    def _write_msr(self, number: int, value: int) -> Reason | None:
        if number == GHCB_MSR:
            self._ghcb.msr = value
            return None
        return super()._write_msr(number, value) if number in _OWN_MSRS else self._intercepted_msr()

    def _intercepted_msr(self) -> _Communication:
        uc = self._uc
        return _Communication(ExitCode.MSR, uc.reg_read(x86.UC_X86_REG_RIP), uc.reg_read(x86.UC_X86_REG_RAX))
