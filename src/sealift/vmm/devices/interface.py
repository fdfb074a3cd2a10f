"""What a device is to the machine.

The machine holds its device lock around every call from a vCPU; `save` and `restore` come when none runs. Work of a
device's own (a thread that reads a disk) is stopped by `quiesce` before the state is saved and goes on after `resume`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from sealift.vmm.memory import Buffer

Interrupt: TypeAlias = Callable[[], None]
"""Raises a device's (edge-triggered) interrupt; from any thread, and never waits."""


def no_interrupt() -> None:
    """The `Interrupt` of a device whose line leads nowhere: its guest polls."""


class Device(Protocol):
    """What every device has, wherever its registers are.

    Attributes:
        name: section name in a migration stream.
        version: of the state that `save` gives; `restore` takes only this one.
    """

    name: str
    version: int

    def save(self) -> bytes:
        """State for a migration stream."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: it does not parse.
        """

    def quiesce(self) -> None:
        """Return once nothing of this device is underway; nothing begins before `resume`."""

    def resume(self) -> None:
        """Work may go on, after `quiesce` or `restore`; an interrupt that may have been lost is raised anew."""


class PortDevice(Device, Protocol):
    """A device behind I/O ports.

    Attributes:
        ports: the ports it answers.
    """

    ports: range

    def read(self, port: int, size: int) -> int:
        """The guest reads `size` bytes."""

    def write(self, port: int, size: int, value: int) -> None:
        """The guest writes `size` bytes."""


class MmioDevice(Device, Protocol):
    """A device behind guest physical addresses.

    Attributes:
        window: the addresses it answers.
    """

    window: range

    def read(self, address: int, size: int) -> int:
        """The guest reads `size` bytes at a guest physical address of the window."""

    def write(self, address: int, size: int, value: int) -> None:
        """The guest writes `size` bytes there."""


class DeviceMemory(Protocol):
    """Guest memory as devices reach it: where it is shared, and nowhere else."""

    def read(self, gpa: int, length: int) -> bytes:
        """Copy `length` bytes out.

        Raises:
            GuestError: not all of them are shared guest RAM.
        """

    def write(self, gpa: int, data: Buffer) -> None:
        """Copy bytes in; the pages count as written by the time this returns.

        Raises:
            GuestError: not all of them are shared guest RAM.
        """
