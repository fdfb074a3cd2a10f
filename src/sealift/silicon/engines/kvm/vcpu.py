"""A vCPU that KVM runs: entering the guest, exits, what is answered here and what must leave the process."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
from typing import Final

from sealift.errors import InternalError
from sealift.silicon.engines.interface import DeviceIo, Hypercall, Outcome
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.kernel import ask, give
from sealift.silicon.engines.kvm.msrs import GuestMsrs
from sealift.silicon.engines.kvm.quiescence import Quiescence
from sealift.silicon.engines.kvm.state import VcpuState, read_registers, read_system_registers, write_registers
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

KICK_SIGNAL: Final = signal.SIGUSR1


_SUBERRORS: Final = {1: "it could not emulate an instruction", 2: "an event came while another was delivered"}


def catch_kicks() -> None:
    """Make the kick signal interrupt a system call instead of ending the process; call it in the main thread."""
    signal.signal(KICK_SIGNAL, lambda *_: None)


class KvmVcpu:
    """One vCPU (see `sealift.silicon.engines.interface.Vcpu`).

    `started` vCPUs have been given registers or state; others wait: for start-up messages of another vCPU where there
    is an interrupt controller, and for ever where there is none.
    """

    def __init__(
        self, fd: int, run_size: int, state: VcpuState, quiescence: Quiescence, msrs: GuestMsrs, *, irqchip: bool
    ) -> None:
        self._fd = fd
        self._area = mmap.mmap(fd, run_size)
        self._run = abi.Run.from_buffer(self._area)
        self._state = state
        self._quiescence = quiescence
        self._msrs = msrs
        self._irqchip = irqchip
        self._started = False
        self._interrupt = threading.Event()
        self._thread = 0
        self._incomplete = False
        self._paused = False

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, device_io: DeviceIo) -> Outcome:
        """Enter the guest until something but a device access needs the outside."""
        self._thread = threading.get_ident()
        self._tell_of_pause()
        while True:
            if self._interrupt.is_set() and not self._incomplete:
                self._interrupt.clear()
                self._paused = True
                return Interrupted()
            if not self._started and not self._irqchip:
                return Halt()
            if self._enter():
                outcome = self._exit(device_io)
                if outcome is not None:
                    return outcome

    def _enter(self) -> bool:
        """Be in guest mode until an exit (True) or an interruption (False), with whatever was underway completed."""
        self._quiescence.enter(self)
        try:
            ask(self._fd, abi.RUN)
        except (InterruptedError, BlockingIOError):  # EAGAIN: another vCPU's start-up message has come
            self._incomplete = False
            return False
        except OSError as error:
            raise InternalError("KVM refuses to run a vCPU") from error
        finally:
            self._quiescence.left(self)
        self._incomplete = False
        return True

    def about_to_enter(self) -> None:
        """For the quiescence: a kick that comes later finds this vCPU inside."""
        self._run.immediate_exit = self._interrupt.is_set()

    def leave_soon(self) -> None:
        """For the quiescence: make KVM_RUN return, now or at its next beginning."""
        self._run.immediate_exit = 1
        with contextlib.suppress(ProcessLookupError):  # its thread has ended, and with it whatever it did in there
            signal.pthread_kill(self._thread, KICK_SIGNAL)

    def kick(self) -> None:
        """Make the current or else the next `run` return Interrupted soon."""
        self._interrupt.set()
        self._quiescence.nudge(self)

    def _tell_of_pause(self) -> None:
        """A guest that did not run for a while is told, so that it does not take the gap for a lock-up."""
        if self._paused:
            self._paused = False
            with contextlib.suppress(OSError):  # it has no such clock
                ask(self._fd, abi.KVMCLOCK_CTRL)

    def _exit(self, device_io: DeviceIo) -> Outcome | None:
        """Deal with an exit; None if the guest can go on."""
        run = self._run
        match run.exit_reason:
            case abi.EXIT_IO:
                self._port_access(device_io)
            case abi.EXIT_MMIO:
                self._mmio_access(device_io)
            case abi.EXIT_X86_RDMSR:
                self._incomplete = True
                value = self._msrs.read(run.u.msr.index)
                run.u.msr.error, run.u.msr.data = value is None, value or 0
            case abi.EXIT_X86_WRMSR:
                self._incomplete = True
                run.u.msr.error = not self._msrs.write(run.u.msr.index, run.u.msr.data)
            case abi.EXIT_HYPERCALL:
                self._incomplete = True
                call = run.u.hypercall
                return Hypercall(call.nr, (call.args[0], call.args[1], call.args[2], 0))  # KVM passes on three
            case abi.EXIT_HLT:
                return Halt()
            case abi.EXIT_IRQ_WINDOW_OPEN | abi.EXIT_INTR:
                pass
            case abi.EXIT_SHUTDOWN:
                # On AMD's processors what is left of the vCPU's state is undefined, so KVM has given it a fresh one.
                return Fault("a triple fault", 0, 0, 0, registers_kept=False)
            case reason:
                return self._fault(self._why(reason))
        return None

    def _port_access(self, device_io: DeviceIo) -> None:
        access = self._run.u.io
        self._incomplete = True
        for element in range(access.count):
            at = access.data_offset + element * access.size
            place = slice(at, at + access.size)
            if access.direction == abi.EXIT_IO_IN:
                value = device_io(PortIn(access.port, access.size))
                self._area[place] = _bytes(value, access.size)
            else:
                device_io(PortOut(access.port, access.size, int.from_bytes(self._area[place], "little")))

    def _mmio_access(self, device_io: DeviceIo) -> None:
        access = self._run.u.mmio
        self._incomplete = True
        if access.is_write:
            value = int.from_bytes(bytes(access.data[: access.len]), "little")
            device_io(MmioWrite(access.phys_addr, access.len, value))
        else:
            value = device_io(MmioRead(access.phys_addr, access.len))
            access.data[: access.len] = tuple(_bytes(value, access.len))

    def _why(self, reason: int) -> str:
        match reason:
            case abi.EXIT_INTERNAL_ERROR:
                suberror = self._run.u.internal.suberror
                return f"KVM cannot go on: {_SUBERRORS.get(suberror, f'internal error {suberror}')}"
            case abi.EXIT_FAIL_ENTRY:
                code = self._run.u.fail_entry.hardware_entry_failure_reason
                return f"the processor refuses to enter the guest ({code:#x})"
            case _:
                return f"KVM stopped it for a reason that is not expected here ({reason})"

    def _fault(self, reason: str) -> Fault:
        registers = read_registers(self._fd)
        return Fault(reason, registers.rip, registers.cr2, 0)

    def complete_hypercall(self, result: int) -> None:
        """Give the last Hypercall its result (two's complement), so that the guest is behind it."""
        self._run.u.hypercall.ret = result & ((1 << 64) - 1)
        self._complete()

    def _complete(self) -> None:
        """Have KVM finish the instruction that an exit interrupted, without going on to the next."""
        if not self._incomplete:
            return
        self._quiescence.enter(self)
        try:
            self._run.immediate_exit = 1
            ask(self._fd, abi.RUN)
        except InterruptedError:
            self._incomplete = False
        else:
            raise InternalError(f"KVM has something else to say (exit {self._run.exit_reason}) where a call was to end")
        finally:
            self._quiescence.left(self)

    def close(self) -> None:
        """Let go of it; it is out of guest mode, and will not be used again."""
        del self._run
        self._area.close()
        os.close(self._fd)

    # --- state ---------------------------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """General and control registers."""
        return read_registers(self._fd)

    def system_registers(self) -> SystemRegisters:
        """Segments and descriptor tables."""
        return read_system_registers(self._fd)

    def set_registers(self, values: Registers) -> None:
        """Load general and control registers; the first ones start the vCPU, in flat 64-bit mode."""
        write_registers(self._fd, values, flat=not self._started)
        if not self._started and self._irqchip:
            give(self._fd, abi.SET_MP_STATE, abi.MpState(mp_state=abi.MP_STATE_RUNNABLE))
        self._started = True

    def save(self) -> bytes:
        """The whole architectural state."""
        return self._state.save()

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        self._state.restore(state)
        self._started = self._paused = True

    def save_visible(self) -> bytes:
        """All of it: the host of a guest without SEV-ES sees its registers."""
        return self.save()

    def restore_visible(self, state: bytes) -> None:
        """Load `save_visible`'s state."""
        self.restore(state)


def _bytes(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
