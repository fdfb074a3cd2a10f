"""A 16550A serial port, as far as Linux's 8250 driver and a polled console use one.

Register numbers and bits as in the PC16550D data sheet. What is sent is gone at once, so the transmitter is always
empty; the line has no errors, and the other end is always ready.

The interrupt line is active while an enabled cause is there and MCR's OUT2, which gates the line on a PC, is set. Its
rising edge is one pulse. Linux's handler serves causes until IIR names none, so no cause waits for an edge of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from sealift.launch.microvm import SERIAL_PORT
from sealift.vmm.devices.interface import Interrupt, no_interrupt
from sealift.wire.packed import unpack

_LSR = 5
_RECEIVED_ENABLED, _THR_ENABLED, _IER_BITS = 0x01, 0x02, 0x0F
_NO_CAUSE, _THR_CAUSE, _RECEIVED_CAUSE = 0x01, 0x02, 0x04
_FIFO_ENABLE, _FIFO_CLEAR_RECEIVED, _FIFOS_ON = 0x01, 0x02, 0xC0
_DLAB = 0x80
_OUT2, _LOOP, _MCR_BITS = 0x08, 0x10, 0x1F
_DATA_READY, _TRANSMITTER_EMPTY = 0x01, 0x60
_CTS_DSR_DCD = 0xB0

INPUT_LIMIT = 4096
"""Bytes typed ahead of a guest that does not read: a screenful; more is dropped, as a terminal would."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ier: int
    fifos: bool
    lcr: int
    mcr: int
    scratch: int
    divisor: int
    thr_empty: bool
    received: bytes


class Serial:
    """One serial port; `transmit` gets each byte the guest sends."""

    name = "serial"
    version = 2

    def __init__(
        self, transmit: Callable[[int], None], interrupt: Interrupt = no_interrupt, base: int = SERIAL_PORT
    ) -> None:
        self.ports = range(base, base + 8)
        self._base = base
        self._transmit = transmit
        self._interrupt = interrupt
        self._received: deque[int] = deque(maxlen=INPUT_LIMIT)
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 1
        self._fifos = False
        self._thr_empty = False  # as a cause: since the guest wrote to it or enabled it, until IIR told
        self._active = False

    def receive(self, data: bytes) -> None:
        """Bytes arrive on the line."""
        room = INPUT_LIMIT - len(self._received)
        self._received.extend(data[:room])
        self._active = False  # another pulse for new input, even if an older one was lost on the guest
        self._update()

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # byte registers, whatever the access size
        """The guest reads a register."""
        register = port - self._base
        if register == _LSR:  # first, because a polling guest reads it before each byte
            return _TRANSMITTER_EMPTY | _DATA_READY if self._received else _TRANSMITTER_EMPTY
        if self._lcr & _DLAB and register < 2:
            return self._divisor >> 8 * register & 0xFF
        match register:
            case 0:
                return self._read_data()
            case 2:
                return self._read_cause()
            case 6:
                return self._modem_status()
            case _:
                return {1: self._ier, 3: self._lcr, 4: self._mcr, 7: self._scratch}[register]

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # byte registers
        """The guest writes a register."""
        register, value = port - self._base, value & 0xFF
        if self._lcr & _DLAB and register < 2:
            kept = self._divisor & (0xFF00 if register == 0 else 0x00FF)
            self._divisor = kept | value << 8 * register
            return
        match register:
            case 0:
                self._send(value)
            case 1:
                self._enable(value & _IER_BITS)
            case 2:
                self._control_fifos(value)
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & _MCR_BITS
                self._update()
            case 7:
                self._scratch = value
            case _:
                pass  # status registers are read-only

    # --- registers -----------------------------------------------------------------------------------------------

    def _read_data(self) -> int:
        if not self._received:
            return 0
        value = self._received.popleft()
        if not self._received:
            self._update()
        return value

    def _send(self, value: int) -> None:
        if not self._mcr & _LOOP:
            self._transmit(value)
        elif len(self._received) < INPUT_LIMIT:
            self._received.append(value)
        self._thr_empty = True
        self._update()

    def _enable(self, causes: int) -> None:
        if causes & ~self._ier & _THR_ENABLED:
            self._thr_empty = True  # enabling it asks anew; Linux tests for this
        self._ier = causes
        self._update()

    def _control_fifos(self, value: int) -> None:
        self._fifos = bool(value & _FIFO_ENABLE)
        if value & _FIFO_CLEAR_RECEIVED:
            self._received.clear()
        self._update()

    def _read_cause(self) -> int:
        """IIR; reading it takes the empty transmitter back as a cause, if that is what it names."""
        cause = self._cause()
        if cause == _THR_CAUSE:
            self._thr_empty = False
            self._update()
        return cause | _FIFOS_ON if self._fifos else cause

    def _modem_status(self) -> int:
        """MSR; in loopback its four inputs are MCR's outputs: CTS, DSR, RI, DCD are RTS, DTR, OUT1, OUT2."""
        if not self._mcr & _LOOP:
            return _CTS_DSR_DCD
        swapped = (self._mcr & 0x01) << 1 | (self._mcr & 0x02) >> 1
        return (self._mcr & 0x0C | swapped) << 4

    # --- the interrupt line ----------------------------------------------------------------------------------------

    def _cause(self) -> int:
        """The enabled cause of highest priority."""
        if self._received and self._ier & _RECEIVED_ENABLED:
            return _RECEIVED_CAUSE
        if self._thr_empty and self._ier & _THR_ENABLED:
            return _THR_CAUSE
        return _NO_CAUSE

    def _update(self) -> None:
        active = self._mcr & (_OUT2 | _LOOP) == _OUT2 and self._cause() != _NO_CAUSE
        rises = active and not self._active
        self._active = active
        if rises:
            self._interrupt()

    # --- state -------------------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """Registers and what was received but not read."""
        state = _State(
            ier=self._ier,
            fifos=self._fifos,
            lcr=self._lcr,
            mcr=self._mcr,
            scratch=self._scratch,
            divisor=self._divisor,
            thr_empty=self._thr_empty,
            received=bytes(self._received),
        )
        return msgspec.msgpack.encode(state)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        loaded = unpack(state, _State, "the serial port's state")
        self._ier, self._lcr, self._mcr = loaded.ier & _IER_BITS, loaded.lcr & 0xFF, loaded.mcr & _MCR_BITS
        self._scratch, self._divisor = loaded.scratch & 0xFF, loaded.divisor & 0xFFFF
        self._fifos, self._thr_empty = loaded.fifos, loaded.thr_empty
        self._received = deque(loaded.received[:INPUT_LIMIT], maxlen=INPUT_LIMIT)

    def quiesce(self) -> None:
        """Nothing is ever underway."""

    def resume(self) -> None:
        """Raise the interrupt anew if there is a cause."""
        self._active = False
        self._update()
