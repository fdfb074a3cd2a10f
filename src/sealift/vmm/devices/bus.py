"""The buses: which device answers a port or an address. What nobody answers reads as all ones and swallows writes."""

from __future__ import annotations

from bisect import bisect_right

from sealift.errors import InternalError
from sealift.vmm.devices.interface import MmioDevice, PortDevice


class PortBus:
    """Hands port accesses to devices.

    Attributes:
        devices: all of them.
    """

    def __init__(self, devices: tuple[PortDevice, ...]) -> None:
        self.devices = devices
        self._by_port: dict[int, PortDevice] = {}
        for device in devices:
            for port in device.ports:
                if port in self._by_port:
                    raise InternalError(f"{device.name} and {self._by_port[port].name} both claim port {port:#x}")
                self._by_port[port] = device

    def read(self, port: int, size: int) -> int:
        """The guest reads `size` bytes from `port`."""
        device = self._by_port.get(port)
        return (1 << 8 * size) - 1 if device is None else device.read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """The guest writes `size` bytes to `port`."""
        device = self._by_port.get(port)
        if device is not None:
            device.write(port, size, value)


class MmioBus:
    """Hands accesses to guest physical addresses to devices; one that leaves a device's window reaches none.

    Attributes:
        devices: all of them, in the order of their windows.
    """

    def __init__(self, devices: tuple[MmioDevice, ...]) -> None:
        self.devices = tuple(sorted(devices, key=lambda device: device.window.start))
        self._starts = [device.window.start for device in self.devices]
        for below, above in zip(self.devices, self.devices[1:], strict=False):
            if below.window.stop > above.window.start:
                raise InternalError(f"{below.name} and {above.name} both claim address {above.window.start:#x}")

    def read(self, address: int, size: int) -> int:
        """The guest reads `size` bytes at `address`."""
        device = self._at(address, size)
        return (1 << 8 * size) - 1 if device is None else device.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """The guest writes `size` bytes at `address`."""
        device = self._at(address, size)
        if device is not None:
            device.write(address, size, value)

    def _at(self, address: int, size: int) -> MmioDevice | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        device = self.devices[index]
        return device if address + size <= device.window.stop else None
