"""The hardware engine: one KVM VM over one guest's memory (see `sealift.silicon.engines.interface.Engine`)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Final

import msgspec

from sealift.cpu.description import CpuDescription
from sealift.errors import RefusedError, StreamError, UserError, sentence
from sealift.pageset import PageSet, Span
from sealift.silicon.engines.cpuid import check_given
from sealift.silicon.engines.given import KVM, kvm_cpu
from sealift.silicon.engines.interface import GuestSays, VmShape
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.chips import GSIS, Chips
from sealift.silicon.engines.kvm.cpu import Cpu, brought, host_cpu, limited
from sealift.silicon.engines.kvm.kernel import Kvm, ask, enable, give
from sealift.silicon.engines.kvm.msrs import GuestMsrs, claim
from sealift.silicon.engines.kvm.quiescence import Quiescence
from sealift.silicon.engines.kvm.slots import RUNS_LIMIT, Slots
from sealift.silicon.engines.kvm.state import VcpuState
from sealift.silicon.engines.kvm.vcpu import KvmVcpu
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.packed import unpack

_MAP_GPA_RANGE = 12
"""The hypercall that leaves the guest; others KVM answers itself."""

_STATE_VERSION = 1


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    aware: bool
    migration_control: int


class KvmEngine:
    """Runs the vCPUs of one guest.

    Raises:
        UserError: this host cannot give the guest the CPU or the C-bit it needs.
    """

    name = KVM
    runs_limit = RUNS_LIMIT
    waits_for_pages = False

    def __init__(self, kvm: Kvm, memory: GuestMemory, shape: VmShape) -> None:
        self._kvm = kvm
        self._shape = shape
        self._cpu = _cpu_of(kvm, shape)
        self.cbit = self._cpu.cbit
        self.cpu = self._cpu.encode()
        self._msrs = GuestMsrs()
        self._quiescence = Quiescence()
        self._vcpus: dict[int, KvmVcpu] = {}
        with ExitStack() as undo:
            self._vm = kvm.create_vm()
            undo.callback(os.close, self._vm)
            enable(self._vm, abi.CAP_EXIT_HYPERCALL, 1 << _MAP_GPA_RANGE)
            enable(self._vm, abi.CAP_X86_USER_SPACE_MSR, abi.MSR_EXIT_REASON_ALL)
            claim(self._vm)
            self._chips = Chips(self._vm) if shape.irqchip else None
            self._slots = Slots(self._vm, memory, self.cbit)
            self._held = undo.pop_all()
        self._held.callback(self._slots.mosaic.close)
        if self._chips is not None:
            self._held.callback(self._chips.close)
        memory.attach(self)

    def close(self) -> None:
        """Let go of all that it holds in the kernel; its vCPUs are out of guest mode, and memory is used no more."""
        for vcpu in self._vcpus.values():
            vcpu.close()
        self._vcpus.clear()
        self._held.close()

    def create_vcpu(self, index: int) -> KvmVcpu:
        """VCPU `index`; at the second call the same one, since KVM cannot make another."""
        if index not in self._vcpus:
            self._vcpus[index] = self._make_vcpu(index)
        return self._vcpus[index]

    def _make_vcpu(self, index: int) -> KvmVcpu:
        irqchip = self._shape.irqchip
        try:
            fd = ask(self._vm, abi.CREATE_VCPU, index)
        except OSError as error:
            raise RefusedError(f"KVM makes no vCPU {index}") from error
        try:
            give(fd, abi.SET_CPUID2, self._cpu.table(index, self._shape.vcpus))
        except OSError as error:
            os.close(fd)
            raise RefusedError(f"KVM makes no vCPU {index}") from error
        state = VcpuState(fd, self.cpu, self._kvm.msrs, irqchip=irqchip)
        state.reset()
        return KvmVcpu(fd, self._kvm.run_size, state, self._quiescence, self._msrs, irqchip=irqchip)

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""
        return self._quiescence.held()

    def take_logs(self, span: Span) -> WriteLogs:
        """Get and clear the write logs of a span."""
        return self._slots.take_logs(span)

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:
        """Make the window without C-bit follow changed page states."""
        self._slots.remap(span, changed, shared)

    # --- what is neither memory nor vCPU -------------------------------------------------------------------------

    @property
    def says(self) -> GuestSays:
        """What the guest has let be known of itself."""
        # A machine without interrupt controllers has small guests of our own, which do not take part in this.
        ready = self._msrs.ready or not self._shape.irqchip
        return GuestSays(aware=self._msrs.aware or not self._shape.irqchip, ready=ready)

    def save(self) -> bytes:
        """What of this belongs to the guest's sealed state."""
        return msgspec.msgpack.encode(_State(_STATE_VERSION, self._msrs.aware, self._msrs.migration_control))

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        loaded = unpack(state, _State, "the engine's state")
        if loaded.version != _STATE_VERSION:
            raise StreamError(f"the engine's state has version {loaded.version}, not {_STATE_VERSION}")
        self._msrs.aware, self._msrs.migration_control = loaded.aware, loaded.migration_control

    def interrupt(self, gsi: int) -> int:
        """A descriptor of an eventfd that raises an edge on an interrupt line."""
        if not 0 <= gsi < GSIS:
            raise RefusedError(f"there is no interrupt line {gsi}; there are {GSIS}")
        return self._need_chips().interrupt(gsi)

    def save_chips(self) -> bytes:
        """State of interrupt controllers, timer and clock; empty without any."""
        if self._chips is None:
            return b""
        with self._quiescence.held():
            return self._chips.save()

    def restore_chips(self, state: bytes) -> None:
        """Load `save_chips`'s state."""
        if self._chips is None and not state:
            return
        chips = self._need_chips()
        with self._quiescence.held():
            chips.restore(state)

    def _need_chips(self) -> Chips:
        if self._chips is None:
            raise RefusedError("this machine has no interrupt controllers")
        return self._chips


def _cpu_of(kvm: Kvm, shape: VmShape) -> Cpu:
    """The CPU of a guest: the one it brings, the one that it is to have, or the best this host has."""
    host = host_cpu(kvm.cpuid, irqchip=shape.irqchip, cbit=shape.cbit)
    if shape.cpu:
        return brought(Cpu.decode(shape.cpu), host)
    if shape.limit is None:
        return host
    # x2APIC comes with interrupt controllers: that a machine has none is no lack of the host's.
    whole = host_cpu(kvm.cpuid, irqchip=True, cbit=shape.cbit)
    check_given(shape.limit, whole.described(KvmEngine.name))
    return limited(host, shape.limit)


_NO_ES: Final = "the engine kvm runs no SEV-ES guests: this host's KVM would see their registers"


_NO_PLAIN: Final = "the engine kvm runs confidential guests alone; a plain one needs the engine unicorn"


class KvmFactory:
    """Makes engines on this host's KVM (see `sealift.silicon.engines.interface.EngineFactory`).

    Raises:
        UserError: there is no KVM that could be used.
    """

    name = KvmEngine.name
    hides_registers = False
    runs_plain = False

    def __init__(self) -> None:
        self._kvm = Kvm()
        self.cbit = host_cpu(self._kvm.cpuid, irqchip=True).cbit

    def host_cpu(self) -> CpuDescription:
        """What KVM offers, less what would tie a guest to this host."""
        return kvm_cpu(self._kvm)

    def judge(self, shape: VmShape) -> tuple[Obstacle, ...]:
        """SEV-ES, the place of the C-bit, and features of the CPU; the latter at the host's own C-bit if need be."""
        obstacles = [Obstacle(Code.ES, _NO_ES)] if shape.es else []
        if shape.plain:
            obstacles.append(Obstacle(Code.TYPE, _NO_PLAIN))
        try:
            host_cpu(self._kvm.cpuid, irqchip=shape.irqchip, cbit=shape.cbit)
        except UserError as error:
            obstacles.append(Obstacle(Code.CBIT, sentence(error)))
            shape = replace(shape, cbit=None)
        try:
            _cpu_of(self._kvm, shape)
        except (StreamError, UserError) as error:
            obstacles.append(Obstacle(Code.CPU, sentence(error)))
        return tuple(obstacles)

    def make(self, memory: GuestMemory, shape: VmShape) -> KvmEngine:
        """An engine for one guest."""
        if shape.es:
            raise UserError(_NO_ES)
        if shape.plain:
            raise UserError(_NO_PLAIN)
        return KvmEngine(self._kvm, memory, shape)
