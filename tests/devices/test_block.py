"""The block device: requests over real rings to a real file, and what a migration does to those underway."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealift.errors import StreamError
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.devices.virtio.block import (
    FLUSH,
    IO_ERROR,
    LARGEST_SEGMENT,
    MOST_SEGMENTS,
    OK,
    READ_ONLY,
    UNSUPPORTED,
    Block,
    Request,
)
from sealift.vmm.devices.virtio.link import NEEDS_RESET, DriverLink
from sealift.vmm.devices.virtio.mmio import VirtioMmio

from .driver import CONFIG, PATIENCE_S, STATUS, Driver, Line, Memory

SECTORS = 64


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


class SlowDisk(DiskImage):
    """Its requests wait until they may go on.

    Attributes:
        began: a request is underway.
        may_end: it may go on.
        flushes: how often it was flushed.
        failure: what the medium says, instead of working.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self.began, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.flushes = 0
        self.failure: OSError | None = None

    def _wait(self) -> None:
        self.began.set()
        assert self.may_end.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As slow as told."""
        self._wait()
        super().read_into(offset, buffer)

    def flush(self) -> None:
        """Count."""
        self.flushes += 1
        super().flush()


class Machine:
    """A block device with its driver."""

    def __init__(self, path: Path, memory: Memory | None = None, *, read_only: bool = False) -> None:
        self.disk = SlowDisk(path, read_only=read_only)
        self.disk.lock()
        self.block = Block(self.disk, "sealift-test")
        self.memory, self.line = memory or Memory(), Line()
        self.slot = VirtioMmio(0, self.block, self.memory, self.line)
        self.driver = Driver(self.memory, self.slot, self.line)
        self.ring = self.driver.rings[0]

    def close(self) -> None:
        """End the thread and let go of the file."""
        self.disk.may_end.set()
        self.block.close()
        self.disk.close()

    def request(self, readable: list[bytes], room: int = 0) -> tuple[int, bytes, int]:
        """Make a request and wait for it: status, data, and how much was written."""
        pulses = self.line.pulses
        *_, data, status = self.ring.add(readable, [*([room] if room else []), 1])
        self.driver.kick()
        self.line.wait(pulses + 1)
        (length,) = self.ring.used()
        return self.memory.data[status], bytes(self.memory.data[data : data + room]), length


def when_somebody_waits(link: DriverLink, do: Callable[[], None]) -> None:
    """Do something as soon as somebody waits for the end of what is underway, and not before."""
    wait_for = link.changed.wait_for

    def wait(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        do()
        return wait_for(predicate, timeout)

    link.changed.wait_for = wait  # type: ignore[method-assign, assignment]  # to see the wait begin


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(SECTORS)))
    return path


@pytest.fixture
def machine(image: Path) -> Iterator[Machine]:
    made = Machine(image)
    made.driver.begin()
    yield made
    made.close()


@pytest.fixture
def start(image: Path) -> Iterator[Callable[..., Machine]]:
    """Makes more of them."""
    made: list[Machine] = []

    def make(memory: Memory | None = None, *, read_only: bool = False) -> Machine:
        made.append(Machine(image, memory, read_only=read_only))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_sectors_are_read_written_and_flushed(machine: Machine, image: Path) -> None:
    assert machine.request([header(Request.IN, 3)], 1024) == (OK, b"\3" * 512 + b"\4" * 512, 1025)
    assert machine.request([header(Request.OUT, 5), b"a" * 512, b"b" * 512]) == (OK, b"", 1)
    assert machine.request([header(Request.FLUSH)]) == (OK, b"", 1)
    assert machine.disk.flushes == 1
    assert image.read_bytes()[5 * 512 : 7 * 512] == b"a" * 512 + b"b" * 512


def test_the_header_may_be_cut_anywhere(machine: Machine) -> None:
    whole = header(Request.OUT, 9) + b"c" * 512
    assert machine.request([whole[:3], whole[3:100], whole[100:]])[0] == OK
    assert machine.request([header(Request.IN, 9)], 512)[1] == b"c" * 512


def test_the_guest_learns_capacity_limits_and_name(machine: Machine) -> None:
    assert machine.driver.read(CONFIG, 4) == SECTORS
    assert [machine.driver.read(CONFIG + at) for at in (8, 12, 20)] == [LARGEST_SEGMENT, MOST_SEGMENTS, 512]
    assert machine.request([header(Request.GET_ID)], 20) == (OK, b"sealift-test".ljust(20, b"\0"), 21)


@pytest.mark.parametrize(
    ("readable", "room", "status"),
    [
        ([header(Request.IN, SECTORS)], 512, IO_ERROR),
        ([header(Request.IN, SECTORS - 1)], 1024, IO_ERROR),
        ([header(Request.IN, (1 << 64) - 1)], 512, IO_ERROR),
        ([header(Request.IN)], 511, IO_ERROR),
        ([header(Request.OUT, SECTORS), bytes(512)], 0, IO_ERROR),
        ([header(Request.OUT), bytes(100)], 0, IO_ERROR),
        ([header(Request.GET_ID)], 19, UNSUPPORTED),
        ([header(11)], 0, UNSUPPORTED),
        ([header(0xFFFF_FFFF)], 512, UNSUPPORTED),
    ],
)
def test_what_cannot_be_done_is_answered(machine: Machine, readable: list[bytes], room: int, status: int) -> None:
    assert machine.request(readable, room) == (status, bytes(room), room + 1)
    assert machine.request([header(Request.IN, 1)], 512)[0] == OK


@pytest.mark.parametrize(("readable", "writable"), [([bytes(15)], [1]), ([bytes(16)], [])])
def test_what_is_no_request_needs_a_reset(machine: Machine, readable: list[bytes], writable: list[int]) -> None:
    machine.ring.add(readable, writable)
    machine.driver.kick()
    machine.line.wait(1)
    assert machine.driver.read(STATUS) & NEEDS_RESET


def test_a_failing_medium_is_an_io_error(machine: Machine) -> None:
    machine.disk.failure = OSError(errno.EIO, "scratched")
    assert machine.request([header(Request.IN)], 512)[0] == IO_ERROR
    machine.disk.failure = None
    assert machine.request([header(Request.IN, 1)], 512)[0] == OK


def test_a_read_only_disk_says_so_and_stays_as_it_is(start: Callable[..., Machine], image: Path) -> None:
    machine = start(read_only=True)
    assert machine.driver.offered() & READ_ONLY
    machine.driver.begin()
    before = image.read_bytes()
    assert machine.request([header(Request.OUT), bytes(512)])[0] == IO_ERROR
    assert machine.request([header(Request.IN, 2)], 512)[1] == b"\2" * 512
    assert image.read_bytes() == before


def test_for_a_driver_that_cannot_flush_every_write_lasts(start: Callable[..., Machine]) -> None:
    machine = start()
    machine.driver.begin(without=FLUSH)
    assert machine.request([header(Request.OUT), bytes(512)])[0] == OK
    assert machine.disk.flushes == 1


def test_no_vcpu_waits_for_the_disk(machine: Machine) -> None:
    machine.disk.may_end.clear()
    machine.ring.add([header(Request.IN)], [512, 1])
    machine.driver.kick()
    assert machine.disk.began.wait(PATIENCE_S)
    assert machine.driver.read(STATUS)
    assert machine.ring.used() == []
    machine.disk.may_end.set()
    machine.line.wait(1)
    assert machine.ring.used() == [513]


def test_quiesce_waits_for_what_is_underway_and_leaves_the_rest_to_the_target(
    machine: Machine, start: Callable[..., Machine]
) -> None:
    machine.disk.may_end.clear()
    machine.ring.add([header(Request.IN, 1)], [512, 1])
    *_, later, status = machine.ring.add([header(Request.IN, 2)], [512, 1])
    machine.driver.kick()
    assert machine.disk.began.wait(PATIENCE_S)
    when_somebody_waits(machine.slot.link, machine.disk.may_end.set)
    machine.slot.quiesce()
    assert machine.ring.used() == [513]
    machine.disk.flush()
    machine.disk.unlock()

    target = start(machine.memory)
    target.slot.restore(machine.slot.save())
    assert machine.ring.used() == []  # nothing begins before it goes on
    target.slot.resume()
    target.line.wait(2)  # one for the interrupt that nobody acknowledged
    assert machine.ring.used() == [513]
    assert machine.memory.data[later : later + 512] == b"\2" * 512
    assert machine.memory.data[status] == OK


def test_an_aborted_migration_lets_the_source_go_on(machine: Machine) -> None:
    machine.slot.quiesce()
    machine.disk.unlock()
    *_, status = machine.ring.add([header(Request.IN, 1)], [512, 1])
    machine.memory.data[status] = 0xFF
    machine.driver.kick()
    machine.disk.lock()
    machine.slot.resume()
    machine.line.wait(1)
    assert machine.memory.data[status] == OK


def test_a_reset_does_not_wait_and_voids_what_is_underway(machine: Machine) -> None:
    machine.disk.may_end.clear()
    machine.ring.add([header(Request.IN, 1)], [512, 1])
    machine.driver.kick()
    assert machine.disk.began.wait(PATIENCE_S)
    machine.memory.data[:] = bytes(len(machine.memory.data))
    machine.driver = Driver(machine.memory, machine.slot, machine.line).begin()
    machine.ring = machine.driver.rings[0]
    machine.memory.written.clear()
    machine.disk.may_end.set()
    machine.slot.quiesce()
    assert not machine.memory.written
    assert machine.line.pulses == 0
    machine.slot.resume()
    assert machine.request([header(Request.IN, 7)], 512) == (OK, b"\7" * 512, 513)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_used_without_its_lock_stops_the_device_and_not_the_machine(machine: Machine) -> None:
    """That would be our own mistake; the guest is told, and who stops the machine does not wait for ever."""
    machine.disk.unlock()
    machine.ring.add([header(Request.IN, 1)], [512, 1])
    machine.driver.kick()
    machine.line.wait(1)
    assert machine.driver.read(STATUS) & NEEDS_RESET
    assert "without its lock" in str(machine.slot.link.complaint)
    machine.slot.quiesce()


def test_nothing_of_the_disk_travels(machine: Machine) -> None:
    assert machine.block.save() == b""
    with pytest.raises(StreamError):
        machine.block.restore(b"x")
