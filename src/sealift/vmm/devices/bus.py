"""The I/O port bus."""

from __future__ import annotations

from sealift.errors import InternalError
from sealift.vmm.devices.interface import PortDevice


class PortBus:
    """Hands port accesses to devices; ports without one read as all ones and swallow writes, as on a PC."""

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
