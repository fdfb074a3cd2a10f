"""Whatever the rings hold, a device gets what the driver meant or asks for a reset; it never raises or hangs."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SHIFT
from sealift.errors import StreamError
from sealift.vmm.devices.virtio.console import VirtioConsole
from sealift.vmm.devices.virtio.link import NEEDS_RESET
from sealift.vmm.devices.virtio.mmio import VirtioMmio

from .driver import INDIRECT, NEXT, RAM, STATUS, WRITE, Driver, Line, Memory, Ring

TRANSMIT = 1


class Printer:
    """A console whose output is kept."""

    def __init__(self) -> None:
        self.memory, self.line = Memory(), Line()
        self.printed = bytearray()
        self.console = VirtioConsole(self.printed.extend)
        self.slot = VirtioMmio(0, self.console, self.memory, self.line)
        self.driver = Driver(self.memory, self.slot, self.line).begin()
        self.ring = self.driver.rings[TRANSMIT]

    def kick(self) -> bytes:
        """Let the device look at its output queue; what it printed."""
        self.driver.kick(TRANSMIT)
        printed = bytes(self.printed)
        self.printed.clear()
        return printed

    @property
    def broken(self) -> bool:
        """Whether the device waits for a reset."""
        return bool(self.driver.read(STATUS) & NEEDS_RESET)


@pytest.fixture
def printer() -> Printer:
    return Printer()


def test_a_chain_is_read_in_order_and_given_back(printer: Printer) -> None:
    printer.ring.add([b"Hello, ", b"ring", b"!\n"], [])
    printer.ring.add([b"again\n"], [])
    assert printer.kick() == b"Hello, ring!\nagain\n"
    assert printer.ring.used() == [0, 0]


def test_rings_wrap_around(printer: Printer) -> None:
    for number in range(70_000 // 16):
        for _ in range(16):
            printer.ring.describe(0, printer.ring.areas[2] + 0x800, 1)
            printer.ring.offer(0)
        assert len(printer.kick()) == 16, number
        assert printer.ring.used() == [0] * 16
    assert not printer.broken


def test_an_indirect_table_takes_the_place_of_its_descriptor(printer: Printer) -> None:
    first, second = printer.ring.put(b"in"), printer.ring.put(b"direct")
    table = struct.pack("<QIHH", first, 2, NEXT, 1) + struct.pack("<QIHH", second, 6, 0, 0)
    printer.ring.describe(3, printer.ring.put(table), 32, INDIRECT)
    printer.ring.offer(3)
    assert printer.kick() == b"indirect"
    assert not printer.broken


def test_a_driver_that_wants_no_interrupt_gets_none(printer: Printer) -> None:
    printer.ring.set_flags(1)
    printer.ring.add([b"quiet"], [])
    assert printer.kick() == b"quiet"
    assert printer.line.pulses == 0
    printer.ring.set_flags(0)
    printer.ring.add([b"loud"], [])
    printer.kick()
    assert printer.line.pulses == 1


def test_only_what_the_device_wrote_is_marked(printer: Printer) -> None:
    printer.memory.written.clear()
    printer.ring.add([b"text"], [])
    printer.kick()
    assert printer.memory.written == {printer.ring.areas[2] >> PAGE_SHIFT}


def a_loop(ring: Ring) -> None:
    ring.describe(0, 0x9000, 1, NEXT, 1)
    ring.describe(1, 0x9000, 1, NEXT, 0)
    ring.offer(0)


def beyond_the_table(ring: Ring) -> None:
    ring.describe(0, 0x9000, 1, NEXT, ring.size)
    ring.offer(0)


def a_head_beyond_the_table(ring: Ring) -> None:
    ring.offer(ring.size)


def more_chains_than_the_ring_has(ring: Ring) -> None:
    ring.describe(0, 0x9000, 1)
    for _ in range(ring.size + 1):
        ring.offer(0)


def an_empty_buffer(ring: Ring) -> None:
    ring.describe(0, 0x9000, 0)
    ring.offer(0)


def too_many_bytes(ring: Ring) -> None:
    ring.describe(0, 0x9000, 0x10001)
    ring.offer(0)


def outside_of_memory(ring: Ring) -> None:
    ring.describe(0, RAM - 1, 2)
    ring.offer(0)


def at_the_end_of_the_world(ring: Ring) -> None:
    ring.describe(0, (1 << 64) - 1, 2)
    ring.offer(0)


def to_read_behind_to_write(ring: Ring) -> None:
    ring.describe(0, 0x9000, 1, NEXT | WRITE, 1)
    ring.describe(1, 0x9000, 1)
    ring.offer(0)


def a_table_that_goes_on(ring: Ring) -> None:
    ring.describe(0, 0x9000, 16, INDIRECT | NEXT, 1)
    ring.offer(0)


def a_table_of_half_an_entry(ring: Ring) -> None:
    ring.describe(0, 0x9000, 24, INDIRECT)
    ring.offer(0)


def a_table_of_nothing(ring: Ring) -> None:
    ring.describe(0, 0x9000, 0, INDIRECT)
    ring.offer(0)


def a_table_that_is_too_large(ring: Ring) -> None:
    ring.describe(0, 0x9000, 257 * 16, INDIRECT)
    ring.offer(0)


def a_table_with_a_loop(ring: Ring) -> None:
    ring.describe(0, ring.put(struct.pack("<QIHH", 0x9000, 16, NEXT, 0)), 16, INDIRECT)
    ring.offer(0)


def a_table_in_a_table(ring: Ring) -> None:
    inner = ring.put(struct.pack("<QIHH", 0x9000, 16, INDIRECT, 0))
    ring.describe(0, inner, 16, INDIRECT)
    ring.offer(0)


MALFORMED = [
    a_loop,
    beyond_the_table,
    a_head_beyond_the_table,
    more_chains_than_the_ring_has,
    an_empty_buffer,
    too_many_bytes,
    outside_of_memory,
    at_the_end_of_the_world,
    to_read_behind_to_write,
    a_table_that_goes_on,
    a_table_of_half_an_entry,
    a_table_of_nothing,
    a_table_that_is_too_large,
    a_table_with_a_loop,
    a_table_in_a_table,
]


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda make: make.__name__)
def test_a_malformed_chain_needs_a_reset_and_prints_nothing(
    printer: Printer, malformed: Callable[[Ring], None]
) -> None:
    malformed(printer.ring)
    assert printer.kick() == b""
    assert printer.broken
    assert printer.slot.link.complaint
    assert printer.ring.used() == []
    printer.ring.add([b"too late"], [])
    assert printer.kick() == b""


@pytest.mark.parametrize("area", [0, 1, 2])
def test_a_ring_on_a_private_page_needs_a_reset(printer: Printer, area: int) -> None:
    printer.memory.private.add(printer.ring.areas[area] >> PAGE_SHIFT)
    printer.ring.add([b"text"], [])
    printer.kick()
    assert printer.broken


def test_a_buffer_on_a_private_page_needs_a_reset(printer: Printer) -> None:
    (gpa,) = printer.ring.add([b"text"], [])
    printer.memory.private.add(gpa >> PAGE_SHIFT)
    assert printer.kick() == b""
    assert printer.broken


_NEAR = st.sampled_from([0, 1, 2, 15, 16, 17, 255, 256, 257, 4096, 0x9000, RAM - 1, RAM, (1 << 64) - 1])
_DESCRIPTORS = st.tuples(
    st.one_of(_NEAR, st.integers(0, 0xFFFF)),
    st.sampled_from([0, 1, 15, 16, 32, 4096, 0x10000, (1 << 32) - 1]),
    st.integers(0, 7),
    st.one_of(st.integers(0, 17), st.just(0xFFFF)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_DESCRIPTORS, min_size=1, max_size=16), st.lists(st.integers(0, 20), max_size=20), st.integers(0, 1))
def test_no_ring_makes_the_device_raise_or_hang(
    descriptors: list[tuple[int, int, int, int]], heads: list[int], number: int
) -> None:
    printer = Printer()
    ring = printer.driver.rings[number]
    for index, fields in enumerate(descriptors):
        ring.describe(index, *fields)
    for head in heads:
        ring.offer(head)
    printer.console.receive(b"typed")
    printer.driver.kick(number)
    assert not printer.slot.link._underway


def test_input_waits_for_room_and_for_a_guest_that_goes_on_elsewhere(printer: Printer) -> None:
    ring = printer.driver.rings[0]
    (first,) = ring.add([], [4])
    printer.driver.kick(0)
    printer.console.receive(b"0123456789")
    assert ring.used() == [4]
    assert printer.memory.data[first : first + 4] == b"0123"

    printer.slot.quiesce()
    (second,) = ring.add([], [64])
    printer.driver.kick(0)
    assert ring.used() == []
    moved = Printer()
    moved.memory.data[:] = printer.memory.data
    moved.slot.restore(printer.slot.save())
    moved.console.receive(b"!")
    moved.driver.kick(0)
    assert moved.memory.data == printer.memory.data  # nothing begins before it goes on
    pulses = moved.line.pulses
    moved.slot.resume()
    assert moved.memory.data[second : second + 7] == b"456789!"
    assert moved.line.pulses > pulses


def test_input_has_a_limit_here_and_in_a_stream(printer: Printer) -> None:
    printer.console.receive(bytes(5000))
    assert len(printer.console.save()) == 4096
    with pytest.raises(StreamError, match="4097 bytes"):
        printer.console.restore(bytes(4097))


def test_room_for_input_without_room_needs_a_reset(printer: Printer) -> None:
    printer.driver.rings[0].add([b"to read"], [])
    printer.console.receive(b"x")
    assert printer.broken
