"""The devices of each machine type, and what is done to all of them at once.

::

    bare      serial (polled), pause port, ready port
    microvm   serial, keyboard controller, clock, power management, ready port, KVM's own chips,
              virtio-mmio slots: console, entropy, disks, the rest empty
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

from sealift.errors import GuestError, UserError
from sealift.launch.machine import MachineType
from sealift.launch.microvm import PM_GSI, RTC_GSI, SERIAL_GSI, VIRTIO_FIRST_GSI, VIRTIO_SLOTS
from sealift.vmm.devices.acpi_pm import PowerManagement
from sealift.vmm.devices.bus import MmioBus, PortBus
from sealift.vmm.devices.chips import KernelChips
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.devices.i8042 import KeyboardController
from sealift.vmm.devices.interface import Device, DeviceMemory, Interrupt, MmioDevice
from sealift.vmm.devices.pause import PausePort
from sealift.vmm.devices.ready import ReadyPort
from sealift.vmm.devices.rtc import RealTimeClock
from sealift.vmm.devices.serial import Serial
from sealift.vmm.devices.virtio.block import Block
from sealift.vmm.devices.virtio.console import VirtioConsole
from sealift.vmm.devices.virtio.interface import Model
from sealift.vmm.devices.virtio.mmio import EmptySlot, VirtioMmio
from sealift.vmm.devices.virtio.rng import Rng
from sealift.vmm.platform import Platform

_FIRST_DISK_SLOT: Final = 2
DISKS_LIMIT: Final = VIRTIO_SLOTS - _FIRST_DISK_SLOT
"""Disks that have a slot."""

_EDGE: Final = (1).to_bytes(8, "little")


class Surroundings(Protocol):
    """What devices need of their machine; called under the device lock, and never waits."""

    def transmit(self, byte: int) -> None:
        """The serial port sends a byte."""

    def transmit_all(self, data: bytes) -> None:
        """The virtio console sends bytes."""

    def rest(self, seconds: float) -> None:
        """Keep the calling vCPU idle."""

    def started_up(self) -> None:
        """A receiver's start-up code is done."""

    def reset(self) -> None:
        """The guest resets the machine."""

    def power_off(self) -> None:
        """The guest switches the machine off."""


class InterruptLines:
    """Interrupts by eventfd: raising one is a write that never waits, and needs nobody's answer."""

    def __init__(self, connect: Callable[[int], int]) -> None:
        self._connect = connect
        self._events: list[int] = []
        self._lock = threading.Lock()
        self._closed = False

    def line(self, gsi: int) -> Interrupt:
        """The interrupt of a device on line `gsi`."""
        event = self._connect(gsi)
        self._events.append(event)

        def pulse() -> None:
            with self._lock:  # a closed number may be another file's by now
                if not self._closed:
                    os.write(event, _EDGE)

        return pulse

    def close(self) -> None:
        """Give the descriptors back; no device may raise anything any more."""
        with self._lock:
            self._closed = True
            while self._events:
                os.close(self._events.pop())


class DeviceSet:
    """All devices of one machine.

    Attributes:
        ports: those behind I/O ports,
        mmio: those behind addresses.
        every: all of them, with those that the guest reaches without the VMM.
        serial: the first serial port.
        console: the virtio console, if there is one.
        power: the power button, if there is one.
    """

    def __init__(
        self,
        ports: PortBus,
        serial: Serial,
        *,
        slots: MicrovmSlots | None = None,
        others: tuple[Device, ...] = (),
        lines: InterruptLines | None = None,
        power: PowerManagement | None = None,
    ) -> None:
        self.power = power
        self.ports = ports
        self.serial = serial
        self.mmio = MmioBus(() if slots is None else slots.devices)
        self.console = None if slots is None else slots.console
        self.every: tuple[Device, ...] = (*ports.devices, *self.mmio.devices, *others)
        self._blocks = () if slots is None else slots.blocks
        self._disks = () if slots is None else slots.disks
        self._lines = lines

    def quiesce(self) -> None:
        """Return once no device does anything of its own."""
        for device in self.every:
            device.quiesce()

    def resume(self) -> None:
        """Let all of them go on."""
        for device in self.every:
            device.resume()

    def take_disks(self) -> None:
        """Lock the disk images for this VMM, all or none; again is no mistake.

        Raises:
            UserError: somebody else has one.
        """
        with ExitStack() as undo:
            for disk in self._disks:
                if disk.lock():
                    undo.callback(disk.unlock)
            undo.pop_all()

    def leave_disks(self) -> None:
        """Flush the images and leave them to another VMM; the devices are quiesced.

        Raises:
            GuestError: a medium failed; no image was left.
        """
        self.flush_disks()
        for disk in self._disks:
            disk.unlock()

    def flush_disks(self) -> None:
        """Return when everything the guest wrote to its disks will last; the devices are quiesced.

        Raises:
            GuestError: a medium failed.
        """
        try:
            for disk in self._disks:
                disk.flush()
        except OSError as error:
            raise GuestError("a disk image of the guest cannot be flushed") from error

    def close(self) -> None:
        """End what works by itself, and let go of files; no vCPU runs any more."""
        for device in self.ports.devices:
            device.quiesce()
        for block in self._blocks:
            block.close()
        for disk in self._disks:
            disk.close()
        if self._lines is not None:
            self._lines.close()


@dataclass(frozen=True, slots=True)
class MicrovmSlots:
    """What is in the virtio-mmio slots."""

    devices: tuple[MmioDevice, ...]
    console: VirtioConsole
    blocks: tuple[Block, ...]
    disks: tuple[DiskImage, ...]


def check_disks(disks: tuple[DiskImage, ...], machine: MachineType) -> None:
    """Whether a machine has room for disks.

    Raises:
        UserError: it has not.
    """
    if disks and machine is MachineType.BARE:
        raise UserError("only a Linux guest can have disks")
    if len(disks) > DISKS_LIMIT:
        raise UserError(f"a guest can have {DISKS_LIMIT} disks, not {len(disks)}")


def bare_devices(around: Surroundings) -> DeviceSet:
    """The devices of the machine bare."""
    serial = Serial(around.transmit)
    return DeviceSet(PortBus((serial, PausePort(around.rest), ReadyPort(around.started_up))), serial)


def microvm_devices(
    around: Surroundings, platform: Platform, memory: DeviceMemory, disks: tuple[DiskImage, ...]
) -> DeviceSet:
    """The devices of the machine microvm."""
    lines = InterruptLines(platform.interrupt)
    serial = Serial(around.transmit, lines.line(SERIAL_GSI))
    power = PowerManagement(around.power_off, lines.line(PM_GSI))
    ports = PortBus(
        (
            serial,
            KeyboardController(around.reset),
            RealTimeClock(time.time, lines.line(RTC_GSI)),
            power,
            ReadyPort(around.started_up),
        )
    )
    slots = _fill_slots(around, memory, disks, lines)
    return DeviceSet(ports, serial, slots=slots, others=(KernelChips(platform),), lines=lines, power=power)


def _fill_slots(
    around: Surroundings, memory: DeviceMemory, disks: tuple[DiskImage, ...], lines: InterruptLines
) -> MicrovmSlots:
    console = VirtioConsole(around.transmit_all)
    blocks = tuple(Block(disk, f"disk{index}") for index, disk in enumerate(disks))
    models: tuple[Model, ...] = (console, Rng(os.urandom), *blocks)
    devices: list[MmioDevice] = []
    for slot in range(VIRTIO_SLOTS):
        if slot < len(models):
            devices.append(VirtioMmio(slot, models[slot], memory, lines.line(VIRTIO_FIRST_GSI + slot)))
        else:
            devices.append(EmptySlot(slot))
    return MicrovmSlots(tuple(devices), console, blocks, disks)
