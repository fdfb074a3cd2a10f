"""ACPI's fixed hardware: the PM1a event and control blocks (ACPI 6.5, section 4.8.3).

The machine is always in ACPI mode, so SCI_EN reads as one and there is no command port to switch it on. The one event
is the power button; the one sleep is S5, soft off.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sealift.launch.microvm import PM_CONTROL_PORT, PM_EVENT_PORT, SLEEP_TYPE_OFF
from sealift.vmm.devices.interface import Interrupt
from sealift.wire.packed import unpack

_POWER_BUTTON = 1 << 8
_EVENTS = _POWER_BUTTON
_ENABLES = 0xFFFF
_SCI_ENABLED, _SLEEP_TYPE_SHIFT, _SLEEP_TYPE, _SLEEP_NOW = 0x0001, 10, 0x1C00, 0x2000


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: int
    enable: int
    control: int


class PowerManagement:
    """Calls `power_off` when the guest enters S5; `interrupt` is the SCI."""

    name = "acpi-pm"
    version = 1
    ports = range(PM_EVENT_PORT, PM_CONTROL_PORT + 2)

    def __init__(self, power_off: Callable[[], None], interrupt: Interrupt) -> None:
        self._power_off = power_off
        self._interrupt = interrupt
        self._status = self._enable = 0
        self._control = _SCI_ENABLED

    def press_power_button(self) -> None:
        """Ask the guest to shut down; a guest that does not listen for it sees it when it does."""
        self._status |= _POWER_BUTTON
        self.resume()

    def read(self, port: int, size: int) -> int:
        """The guest reads bytes of the blocks, which lie one behind the other."""
        blocks = self._status | self._enable << 16 | self._control << 32
        return blocks >> 8 * (port - PM_EVENT_PORT) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """The guest writes bytes of the blocks; ones written to the status clear what they meet."""
        shift = 8 * (port - PM_EVENT_PORT)
        mask = (1 << 8 * size) - 1 << shift
        value = value << shift & mask
        self._status &= ~value
        if mask >> 16 & 0xFFFF:
            self._enable = (self._enable & ~(mask >> 16) | value >> 16) & _ENABLES
            self.resume()
        if mask >> 32:
            self._write_control((self._control & ~(mask >> 32) | value >> 32) & 0xFFFF)

    def _write_control(self, value: int) -> None:
        self._control = value & _SLEEP_TYPE | _SCI_ENABLED
        if value & _SLEEP_NOW and (value & _SLEEP_TYPE) >> _SLEEP_TYPE_SHIFT == SLEEP_TYPE_OFF:
            self._power_off()

    def save(self) -> bytes:
        """The registers."""
        return msgspec.msgpack.encode(_State(self._status, self._enable, self._control))

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        loaded = unpack(state, _State, "the power management state")
        self._status, self._enable = loaded.status & _EVENTS, loaded.enable & _ENABLES
        self._control = loaded.control & _SLEEP_TYPE | _SCI_ENABLED

    def quiesce(self) -> None:
        """Nothing is ever underway."""

    def resume(self) -> None:
        """Raise the SCI if an enabled event is there."""
        if self._status & self._enable:
            self._interrupt()
