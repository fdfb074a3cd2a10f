"""The serial port as Linux's 8250 driver sees it: its probing, its interrupts, and what a migration leaves of them."""

from __future__ import annotations

import pytest

from sealift.errors import StreamError
from sealift.vmm.devices.serial import INPUT_LIMIT, Serial

from .driver import Line

BASE = 0x3F8
DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCRATCH = 0, 1, 2, 2, 3, 4, 5, 6, 7
OUT2, LOOP = 0x08, 0x10


class Port:
    """A port and what it sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.serial = Serial(self.sent.append, self.line)

    def read(self, register: int) -> int:
        """The guest reads."""
        return self.serial.read(BASE + register, 1)

    def write(self, register: int, value: int) -> None:
        """The guest writes."""
        self.serial.write(BASE + register, 1, value)

    def enable(self, causes: int) -> None:
        """Open the line, as a driver does last."""
        self.write(MCR, OUT2 | 3)
        self.write(IER, causes)


@pytest.fixture
def port() -> Port:
    return Port()


def test_a_port_is_there_for_a_driver_that_looks(port: Port) -> None:
    """Interrupt enables keep four bits; loopback returns RTS and OUT2 as CTS and DCD; the scratch register holds."""
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F
    port.write(IER, 0)
    port.write(MCR, LOOP | 0x0A)
    assert port.read(MSR) & 0xF0 == 0x90
    port.write(MCR, LOOP | 0x05)
    assert port.read(MSR) & 0xF0 == 0x60
    port.write(MCR, 0)
    assert port.read(MSR) == 0xB0
    port.write(SCRATCH, 0x5A)
    assert port.read(SCRATCH) == 0x5A


def test_its_fifos_make_it_a_16550a_and_nothing_newer(port: Port) -> None:
    assert port.read(IIR) >> 6 == 0
    port.write(FCR, 0x01)
    assert port.read(IIR) >> 6 == 3
    for mode in (0x80, 0xBF, 0xE0):
        port.write(LCR, mode)
        assert port.read(IIR) == 0xC1
    port.write(FCR, 0x21)
    assert port.read(IIR) >> 5 == 6


def test_the_divisor_has_registers_of_its_own(port: Port) -> None:
    port.write(LCR, 0x83)
    port.write(DATA, 0x0C)
    port.write(IER, 0x01)
    assert (port.read(DATA), port.read(IER)) == (0x0C, 0x01)
    port.write(LCR, 0x03)
    assert port.read(IER) == 0
    assert port.sent == b""


def test_enabling_the_transmit_interrupt_asks_anew_each_time(port: Port) -> None:
    """Linux's test for a broken THRE: it is named twice if it is enabled twice."""
    for _ in range(2):
        port.write(IER, 0x02)
        assert port.read(IIR) & 0x0F == 0x02
        assert port.read(IIR) & 0x0F == 0x01
        port.write(IER, 0)
    port.write(IER, 0x02)
    assert port.read(LSR) & 0x40
    assert not port.read(IIR) & 0x01


def test_a_closed_line_gives_no_pulse_and_opening_it_gives_the_one_that_is_due(port: Port) -> None:
    port.write(IER, 0x03)
    port.serial.receive(b"x")
    assert port.line.pulses == 0
    port.write(MCR, OUT2)
    assert port.line.pulses == 1


def test_a_burst_of_output_is_one_interrupt(port: Port) -> None:
    port.enable(0x02)
    assert port.line.pulses == 1
    assert port.read(IIR) & 0x0F == 0x02
    for byte in b"sixteen bytes...":
        port.write(DATA, byte)
    assert port.line.pulses == 2
    assert port.read(IIR) & 0x0F == 0x02
    assert port.read(IIR) & 0x0F == 0x01
    assert port.sent == b"sixteen bytes..."


def test_input_comes_first_and_stays_until_it_is_read(port: Port) -> None:
    port.enable(0x03)
    port.serial.receive(b"ab")
    for byte in b"ab":
        assert port.read(IIR) & 0x0F == 0x04
        assert port.read(LSR) == 0x61
        assert port.read(DATA) == byte
    assert port.read(LSR) == 0x60
    assert port.read(IIR) & 0x0F == 0x02
    assert port.read(IIR) & 0x0F == 0x01
    assert port.read(DATA) == 0


def test_new_input_pulses_again_though_older_input_was_not_read(port: Port) -> None:
    port.enable(0x01)
    port.serial.receive(b"a")
    port.serial.receive(b"b")
    assert port.line.pulses == 2


def test_without_a_fifo_enable_or_a_line_it_can_be_polled() -> None:
    sent = bytearray()
    serial = Serial(sent.append)
    serial.receive(b"in")
    serial.write(BASE + DATA, 1, ord("o"))
    assert serial.read(BASE + DATA, 1) == ord("i")
    assert sent == b"o"


def test_what_is_sent_in_loopback_comes_back_and_goes_nowhere(port: Port) -> None:
    port.write(MCR, LOOP | OUT2)
    port.write(IER, 0x01)
    port.write(DATA, 0x41)
    assert port.read(DATA) == 0x41
    assert port.sent == b""
    assert port.line.pulses == 0


def test_clearing_the_fifo_drops_input_and_input_has_a_limit(port: Port) -> None:
    port.serial.receive(bytes(INPUT_LIMIT) + b"too much")
    assert len(port.serial._received) == INPUT_LIMIT
    port.write(FCR, 0x07)
    assert port.read(LSR) == 0x60


def test_a_migration_keeps_registers_and_input_and_raises_the_interrupt_again(port: Port) -> None:
    port.enable(0x03)
    port.write(FCR, 0x01)
    port.write(SCRATCH, 0x77)
    port.serial.receive(b"typed")
    moved = Port()
    moved.serial.restore(port.serial.save())
    assert moved.line.pulses == 0
    moved.serial.resume()
    assert moved.line.pulses == 1
    assert [moved.read(register) for register in range(1, 8)] == [0x03, 0xC4, 0, OUT2 | 3, 0x61, 0xB0, 0x77]
    assert bytes(moved.read(DATA) for _ in range(5)) == b"typed"
    assert moved.read(IIR) == 0xC2


def test_state_that_does_not_parse_is_refused(port: Port) -> None:
    with pytest.raises(StreamError):
        port.serial.restore(b"\x80")
