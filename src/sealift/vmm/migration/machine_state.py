"""What the VMM itself holds of a machine and sends in clear: devices, and which vCPUs are halted.

vCPU registers, page states and memory are not here: they travel sealed and are loaded by the platform.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sealift.errors import StreamError
from sealift.vmm.machine import Machine
from sealift.vmm.runstate import RunState
from sealift.wire.packed import UNDECODABLE

VCPUS = "sealift/vcpus"
VCPUS_VERSION = 2


@dataclass(frozen=True, slots=True)
class SavedState:
    """One FULL section."""

    name: str
    version: int
    data: bytes


class _Vcpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`halted` vCPUs wait for nothing; a `paused` guest stays so at the target; input goes where it went."""

    halted: tuple[int, ...]
    paused: bool
    typed_at_virtio: bool


def save(machine: Machine, before: RunState) -> tuple[SavedState, ...]:
    """Everything of a stopped machine, which was in run state `before`."""
    devices = tuple(SavedState(device.name, device.version, device.save()) for device in machine.devices.every)
    vcpus = _Vcpus(tuple(sorted(machine.vcpus.halted)), before is not RunState.RUNNING, machine.typed_at_virtio)
    return (*devices, SavedState(VCPUS, VCPUS_VERSION, msgspec.msgpack.encode(vcpus)))


class Restorer:
    """Takes sections in any order and loads them.

    Attributes:
        paused: whether the guest is to stay paused.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._devices = {device.name: device for device in machine.devices.every}
        self._due = {*self._devices, VCPUS}
        self.paused = False

    def check(self, name: str, version: int) -> None:
        """Whether a section of that name and version is due.

        Raises:
            StreamError: it is not.
        """
        if name not in self._due:
            known = name == VCPUS or name in self._devices
            what = "comes twice" if known else "is of no device of this machine"
            raise StreamError(f"section {name!r} {what}")
        reads = VCPUS_VERSION if name == VCPUS else self._devices[name].version
        if version != reads:
            raise StreamError(f"section {name!r} has version {version}; this machine reads {reads}")

    def restore(self, name: str, data: bytes) -> None:
        """Load a section that was checked.

        Raises:
            StreamError: it does not parse.
        """
        self._due.discard(name)
        if name == VCPUS:
            self._restore_vcpus(data)
        else:
            self._devices[name].restore(data)

    def finish(self) -> None:
        """Everything must have come.

        Raises:
            StreamError: something has not.
        """
        if self._due:
            raise StreamError(f"the stream ends without the state of {', '.join(sorted(self._due))}")

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
