"""A 16550A serial port without interrupts: enough for a console that is polled.

Register numbers and bits as in the PC16550D data sheet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from sealift.wire.packed import unpack

COM1 = 0x3F8
_DLAB = 0x80
_DATA_READY, _THR_EMPTY, _TRANSMITTER_EMPTY = 0x01, 0x20, 0x40
_CTS_DSR_DCD = 0xB0
_FIFO_ENABLED, _NO_INTERRUPT = 0xC0, 0x01

INPUT_LIMIT = 4096
"""Bytes typed ahead of a guest that does not read: a screenful; more is dropped, as a terminal would."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ier: int
    lcr: int
    mcr: int
    scratch: int
    divisor: int
    received: bytes


class Serial:
    """One serial port; `transmit` gets each byte the guest sends."""

    name = "serial"
    version = 1

    def __init__(self, transmit: Callable[[int], None], base: int = COM1) -> None:
        self.ports = range(base, base + 8)
        self._base = base
        self._transmit = transmit
        self._received: deque[int] = deque(maxlen=INPUT_LIMIT)
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 1

    def receive(self, data: bytes) -> None:
        """Bytes arrive on the line."""
        room = INPUT_LIMIT - len(self._received)
        self._received.extend(data[:room])

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # byte registers, whatever the access size
        """The guest reads a register."""
        register = port - self._base
        if self._lcr & _DLAB and register < 2:
            return self._divisor >> 8 * register & 0xFF
        match register:
            case 0:
                return self._received.popleft() if self._received else 0
            case 1:
                return self._ier
            case 2:
                return _FIFO_ENABLED | _NO_INTERRUPT
            case 5:
                return _THR_EMPTY | _TRANSMITTER_EMPTY | (_DATA_READY if self._received else 0)
            case _:
                return {3: self._lcr, 4: self._mcr, 6: _CTS_DSR_DCD, 7: self._scratch}[register]

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # byte registers
        """The guest writes a register."""
        register, value = port - self._base, value & 0xFF
        if self._lcr & _DLAB and register < 2:
            kept = self._divisor & (0xFF00 if register == 0 else 0x00FF)
            self._divisor = kept | value << 8 * register
            return
        match register:
            case 0:
                self._transmit(value)
            case 1:
                self._ier = value & 0x0F
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & 0x1F
            case 7:
                self._scratch = value
            case _:
                pass  # FIFO control has nothing to control; status registers are read-only

    def save(self) -> bytes:
        """Registers and what was received but not read."""
        state = _State(self._ier, self._lcr, self._mcr, self._scratch, self._divisor, bytes(self._received))
        return msgspec.msgpack.encode(state)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        loaded = unpack(state, _State, "the serial port's state")
        self._ier, self._lcr, self._mcr = loaded.ier & 0x0F, loaded.lcr & 0xFF, loaded.mcr & 0x1F
        self._scratch, self._divisor = loaded.scratch & 0xFF, loaded.divisor & 0xFFFF
        self._received = deque(loaded.received[:INPUT_LIMIT], maxlen=INPUT_LIMIT)
