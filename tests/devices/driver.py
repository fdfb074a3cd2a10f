"""A driver of virtio devices, as far as tests need one: it builds rings in memory and writes registers."""

from __future__ import annotations

import itertools
import struct
import threading

from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import GuestError
from sealift.vmm.devices.virtio.link import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK
from sealift.vmm.devices.virtio.mmio import VirtioMmio
from sealift.vmm.memory import Buffer

RAM = 1 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4
PATIENCE_S = 20.0

FEATURES, FEATURES_SELECT, ACCEPTED, ACCEPTED_SELECT = 0x010, 0x014, 0x020, 0x024
QUEUE, QUEUE_MAX, QUEUE_SIZE, QUEUE_READY, NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT, ACK, STATUS, AREAS, CONFIG = 0x060, 0x064, 0x070, (0x080, 0x090, 0x0A0), 0x100


class Memory:
    """Guest memory from 0; every access is seen.

    Attributes:
        private: pages that are not shared.
        written: pages that the device wrote.
    """

    def __init__(self) -> None:
        self.data = bytearray(RAM)
        self.private: set[int] = set()
        self.written: set[int] = set()

    def read(self, gpa: int, length: int) -> bytes:
        """The device reads."""
        self._pages(gpa, length)
        return bytes(self.data[gpa : gpa + length])

    def write(self, gpa: int, data: Buffer) -> None:
        """The device writes."""
        pages = self._pages(gpa, len(data))
        self.data[gpa : gpa + len(data)] = data
        self.written |= pages

    def _pages(self, gpa: int, length: int) -> set[int]:
        if gpa + length > RAM:
            raise GuestError("that is not RAM")
        pages = set(range(gpa >> PAGE_SHIFT, (gpa + length - 1 >> PAGE_SHIFT) + 1))
        if pages & self.private:
            raise GuestError("that is private")
        return pages


class Line:
    """An interrupt line that counts its pulses."""

    def __init__(self) -> None:
        self.pulses = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """One pulse."""
        with self._changed:
            self.pulses += 1
            self._changed.notify_all()

    def wait(self, pulses: int) -> None:
        """Until there were so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.pulses >= pulses, PATIENCE_S)


class Ring:
    """One queue of the driver: descriptors, available and used ring, in pages of their own; buffers lie elsewhere."""

    def __init__(self, memory: Memory, number: int, size: int) -> None:
        self.memory = memory
        self.size = size
        base = (1 + 4 * number) * PAGE_SIZE
        self.areas = [base, base + PAGE_SIZE, base + 2 * PAGE_SIZE]
        self._space = itertools.count(base + 3 * PAGE_SIZE, 64)
        self._free = itertools.count()
        self._seen = 0

    def describe(self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Fill a descriptor."""
        struct.pack_into("<QIHH", self.memory.data, self.areas[0] + 16 * index, gpa, length, flags, following)

    def put(self, data: bytes) -> int:
        """Store bytes for the device; where."""
        gpa = next(self._space)
        for _ in range(len(data) // 64):
            next(self._space)
        self.memory.data[gpa : gpa + len(data)] = data
        return gpa

    def add(self, readable: list[bytes], writable: list[int]) -> list[int]:
        """Make a chain available; where its buffers are."""
        buffers = [(self.put(data), len(data), 0) for data in readable]
        buffers += [(self.put(bytes(length)), length, WRITE) for length in writable]
        indices = [next(self._free) % self.size for _ in buffers]
        for at, (gpa, length, flags) in enumerate(buffers):
            last = at == len(buffers) - 1
            self.describe(indices[at], gpa, length, flags | (0 if last else NEXT), 0 if last else indices[at + 1])
        self.offer(indices[0])
        return [gpa for gpa, _, _ in buffers]

    def offer(self, head: int) -> None:
        """Put a chain into the available ring."""
        flags, index = struct.unpack_from("<HH", self.memory.data, self.areas[1])
        struct.pack_into("<H", self.memory.data, self.areas[1] + 4 + index % self.size * 2, head)
        struct.pack_into("<HH", self.memory.data, self.areas[1], flags, index + 1 & 0xFFFF)

    def set_flags(self, flags: int) -> None:
        """The available ring's flags."""
        struct.pack_into("<H", self.memory.data, self.areas[1], flags)

    def used(self) -> list[int]:
        """Lengths of the chains that came back since the last look."""
        (index,) = struct.unpack_from("<H", self.memory.data, self.areas[2] + 2)
        lengths = []
        while self._seen != index:
            _, length = struct.unpack_from("<II", self.memory.data, self.areas[2] + 4 + self._seen % self.size * 8)
            lengths.append(length)
            self._seen = self._seen + 1 & 0xFFFF
        return lengths


class Driver:
    """Brings a device up as the standard says and then uses it."""

    def __init__(self, memory: Memory, slot: VirtioMmio, line: Line, *, size: int = 16) -> None:
        self.memory, self.slot, self.line = memory, slot, line
        self.rings = [Ring(memory, number, size) for number in range(len(slot.link.queues))]

    def read(self, register: int, size: int = 4) -> int:
        """A register."""
        return self.slot.read(self.slot.window.start + register, size)

    def write(self, register: int, value: int) -> None:
        """A register."""
        self.slot.write(self.slot.window.start + register, 4, value)

    def offered(self) -> int:
        """The device's features."""
        value = 0
        for half in range(2):
            self.write(FEATURES_SELECT, half)
            value |= self.read(FEATURES) << 32 * half
        return value

    def accept(self, features: int) -> bool:
        """Choose features; whether the device agrees."""
        self.write(STATUS, ACKNOWLEDGE)
        self.write(STATUS, ACKNOWLEDGE | DRIVER)
        for half in range(2):
            self.write(ACCEPTED_SELECT, half)
            self.write(ACCEPTED, features >> 32 * half & 0xFFFF_FFFF)
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        return bool(self.read(STATUS) & FEATURES_OK)

    def set_up_queue(self, number: int) -> None:
        """Tell where the rings are."""
        ring = self.rings[number]
        self.write(QUEUE, number)
        self.write(QUEUE_SIZE, ring.size)
        for register, area in zip(AREAS, ring.areas, strict=True):
            self.write(register, area & 0xFFFF_FFFF)
            self.write(register + 4, area >> 32)
        self.write(QUEUE_READY, 1)

    def begin(self, *, without: int = 0) -> Driver:
        """All of it, to DRIVER_OK."""
        self.write(STATUS, 0)
        assert self.accept(self.offered() & ~without)
        for number in range(len(self.rings)):
            self.set_up_queue(number)
        self.write(STATUS, self.read(STATUS) | DRIVER_OK)
        return self

    def kick(self, number: int = 0) -> None:
        """Announce buffers."""
        self.write(NOTIFY, number)

    def acknowledge(self) -> int:
        """Read and acknowledge the interrupt's causes."""
        causes = self.read(INTERRUPT)
        self.write(ACK, causes)
        return causes
