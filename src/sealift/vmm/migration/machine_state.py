"""What the VMM itself holds of a machine and sends in clear: devices, and which vCPUs are halted.

vCPU registers, page states and memory are not here: they travel sealed and are loaded by the platform. Of a guest that
is not confidential the registers are here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import msgspec

from sealift.errors import StreamError
from sealift.vmm.machine import Machine
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire import psp
from sealift.wire.packed import UNDECODABLE

_Place: TypeAlias = tuple[str, int]
"""Name and instance of a section."""

VCPUS = "sealift/vcpus"
VCPUS_VERSION = 2

CPU = "cpu"
"""A plain guest's vCPU: its whole state as the platform gives it; the instance is its index."""
CPU_VERSION = 1

VM = "sealift/vm"
"""A plain guest's machine, but for memory, vCPUs and devices: the engine's name and its own state."""
VM_VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedState:
    """One FULL section."""

    name: str
    version: int
    data: bytes
    instance: int = 0


class _Vcpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`halted` vCPUs wait for nothing; a `paused` guest stays so at the target; input goes where it went."""

    halted: tuple[int, ...]
    paused: bool
    typed_at_virtio: bool


def save(machine: Machine, before: RunState) -> tuple[SavedState, ...]:
    """Everything of a stopped machine, which was in run state `before`."""
    devices = tuple(SavedState(device.name, device.version, device.save()) for device in machine.devices.every)
    vcpus = _Vcpus(tuple(sorted(machine.vcpus.halted)), before is not RunState.RUNNING, machine.typed_at_virtio)
    registers = _registers(machine) if machine.spec.plain else ()
    return (*devices, *registers, SavedState(VCPUS, VCPUS_VERSION, msgspec.msgpack.encode(vcpus)))


def _registers(machine: Machine) -> tuple[SavedState, ...]:
    """What the platform holds beside memory of a guest that is not confidential."""
    vm = machine.platform.request(wire.GetVmState(), wire.VmState)
    vcpus = (machine.platform.request(wire.GetVcpuState(i), wire.VcpuState) for i in range(machine.vcpu_count))
    cpus = (SavedState(CPU, CPU_VERSION, vcpu.state, i) for i, vcpu in enumerate(vcpus))
    return (SavedState(VM, VM_VERSION, psp.VmRecord(vm.engine, vm.state).encode()), *cpus)


class Restorer:
    """Takes sections in any order and loads them.

    Attributes:
        paused: whether the guest is to stay paused.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loads: dict[_Place, tuple[int, Callable[[bytes], None]]] = {
            (device.name, 0): (device.version, device.restore) for device in machine.devices.every
        }
        self._loads[VCPUS, 0] = (VCPUS_VERSION, self._restore_vcpus)
        if machine.spec.plain:
            self._loads[VM, 0] = (VM_VERSION, self._restore_vm)
            for index in range(machine.vcpu_count):
                self._loads[CPU, index] = (CPU_VERSION, partial(self._restore_cpu, index))
        self._due = set(self._loads)
        self.paused = False

    def check(self, name: str, instance: int, version: int) -> None:
        """Whether a section of that name, instance and version is due.

        Raises:
            StreamError: it is not.
        """
        place = (name, instance)
        if place not in self._due:
            what = "comes twice" if place in self._loads else "is of no device of this machine"
            raise StreamError(f"section {_shown(place)} {what}")
        reads, _ = self._loads[place]
        if version != reads:
            raise StreamError(f"section {_shown(place)} has version {version}; this machine reads {reads}")

    def restore(self, name: str, instance: int, data: bytes) -> None:
        """Load a section that was checked.

        Raises:
            StreamError: it does not parse.
        """
        self._due.discard((name, instance))
        _, load = self._loads[name, instance]
        load(data)

    def finish(self) -> None:
        """Everything must have come.

        Raises:
            StreamError: something has not.
        """
        if self._due:
            raise StreamError(f"the stream ends without the state of {', '.join(map(_shown, sorted(self._due)))}")

    def _restore_vm(self, data: bytes) -> None:
        vm = psp.VmRecord.decode(data)
        self._machine.platform.do(wire.SetVmState(vm.engine, vm.state))

    def _restore_cpu(self, index: int, data: bytes) -> None:
        self._machine.platform.do(wire.SetVcpuState(index, data))

    def _restore_vcpus(self, data: bytes) -> None:
        try:
            vcpus = msgspec.msgpack.decode(data, type=_Vcpus)
        except UNDECODABLE as error:
            raise StreamError("the vCPUs' state does not parse") from error
        if any(not 0 <= index < self._machine.vcpu_count for index in vcpus.halted):
            raise StreamError("the vCPUs' state names a vCPU that this machine does not have")
        self._machine.vcpus.set_halted(frozenset(vcpus.halted))
        self.paused = vcpus.paused
        if vcpus.typed_at_virtio:
            self._machine.type_at_virtio()


def _shown(place: _Place) -> str:
    name, instance = place
    return f"{name!r}, instance {instance}," if instance else f"{name!r}"
