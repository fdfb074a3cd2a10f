"""A split virtqueue (virtio 1.2, section 2.7), as the device sees it.

The driver can change its rings at any time. So whatever is read of them is copied once, then checked, then used; a
chain that was popped does not change any more. Every mistake is a GuestError that says what was wrong.

Used-ring flags stay 0: every buffer made available is announced. EVENT_IDX is not offered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sealift.errors import GuestError, StreamError
from sealift.vmm.devices.interface import DeviceMemory
from sealift.vmm.memory import Buffer

QUEUE_SIZE: Final = 256
"""Descriptors at most: more than Linux has underway here, and the table is read in one copy of a page."""

SEGMENT_LIMIT: Final = 256
"""Descriptors of a chain, or of an indirect table: as QUEUE_SIZE. A chain that is longer has a loop, or no sense."""

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1
_RING_HEADER = struct.Struct("<HH")
_INDEX = struct.Struct("<H")
_USED = struct.Struct("<II")
_AREAS: Final = (("descriptor table", 16), ("driver area", 2), ("device area", 4))
"""Name and alignment, in the order of the registers."""


class QueueState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue that has nothing underway."""

    size: int
    ready: bool
    areas: tuple[int, int, int]
    position: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Buffers that the driver made available together.

    Attributes:
        queue: where they came from.
        epoch: which of the queue's lives they belong to.
        head: their name in the ring.
        data: what the driver wrote for the device.
        buffers: where the device may write: (GPA, length).
        room: bytes in `buffers`.
    """

    queue: Virtqueue
    epoch: int
    head: int
    data: bytes = field(repr=False)
    buffers: tuple[tuple[int, int], ...]
    room: int


class Virtqueue:
    """One queue. `chain_limit` bounds the bytes of a chain; it is the device's to say what it can use.

    Attributes:
        size: descriptors, as the driver chose.
        ready: whether it is in use.
        areas: GPAs of descriptor table, driver area (available ring) and device area (used ring).
        epoch: goes up whenever the queue stops: chains from before are void.
    """

    def __init__(self, memory: DeviceMemory, chain_limit: int) -> None:
        self._memory = memory
        self._chain_limit = chain_limit
        self.epoch = 0
        self.stop()
        self.size = 0
        self.areas = [0, 0, 0]

    # --- set-up --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The driver declares the queue ready.

        Raises:
            GuestError: its size or a ring's alignment is impossible.
        """
        if not 0 < self.size <= QUEUE_SIZE or self.size & (self.size - 1):
            raise GuestError(f"a queue of {self.size} descriptors is no power of two up to {QUEUE_SIZE}")
        for address, (name, alignment) in zip(self.areas, _AREAS, strict=True):
            if address % alignment:
                raise GuestError(f"the {name} at {address:#x} is not aligned to {alignment} bytes")
        self.ready = True

    def stop(self) -> None:
        """Forget positions; what is underway is void."""
        self.ready = False
        self.epoch += 1
        self._taken = self._used = 0

    def reset(self) -> None:
        """Forget everything."""
        self.stop()
        self.size = 0
        self.areas = [0, 0, 0]

    # --- work ----------------------------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """Take the next chain, if there is one.

        Raises:
            GuestError: the driver broke the rules, or a ring or buffer is not in shared memory.
        """
        driver = self.areas[1]
        _, available = _RING_HEADER.unpack(self._memory.read(driver, 4))
        waiting = available - self._taken & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise GuestError(f"{waiting} chains are available in a ring of {self.size}")
        (head,) = _INDEX.unpack(self._memory.read(driver + 4 + self._taken % self.size * 2, 2))
        chain = self._chain(head)
        self._taken = self._taken + 1 & 0xFFFF
        return chain

    def push(self, chain: Chain, data: Buffer) -> bool:
        """Fill a chain's buffers from their start and give it back; whether the driver wants an interrupt.

        Raises:
            GuestError: a buffer or ring is not in shared memory.
        """
        left = memoryview(data)
        for gpa, length in chain.buffers:
            if not left:
                break
            self._memory.write(gpa, left[:length])
            left = left[length:]
        device = self.areas[2]
        self._memory.write(device + 4 + self._used % self.size * 8, _USED.pack(chain.head, len(data) - len(left)))
        self._used = self._used + 1 & 0xFFFF
        self._memory.write(device + 2, _INDEX.pack(self._used))
        # The flags are read after the index is written, on every CPU: marking the page takes a lock in between.
        flags, _ = _RING_HEADER.unpack(self._memory.read(self.areas[1], 4))
        return not flags & _NO_INTERRUPT

    def _chain(self, head: int) -> Chain:
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        total = 0
        for gpa, length, flags in self._descriptors(head):
            total += length
            if length == 0 or total > self._chain_limit:
                raise GuestError(f"a chain has an empty buffer, or more than {self._chain_limit} bytes")
            if flags & _WRITE:
                writable.append((gpa, length))
            elif writable:
                raise GuestError("a chain has a buffer to read behind one to write")
            else:
                readable.append((gpa, length))
        data = b"".join([self._memory.read(gpa, length) for gpa, length in readable])
        return Chain(self, self.epoch, head, data, tuple(writable), total - len(data))

    def _descriptors(self, head: int) -> Iterator[tuple[int, int, int]]:
        """Address, length and flags of the chain's buffers; an indirect table takes the place of its descriptor."""
        table, count, index, indirect = self._memory.read(self.areas[0], self.size * 16), self.size, head, False
        for _ in range(SEGMENT_LIMIT + 1):
            if index >= count:
                raise GuestError(f"a chain goes on at descriptor {index} of {count}")
            gpa, length, flags, following = _DESCRIPTOR.unpack_from(table, index * 16)
            if flags & _INDIRECT:
                if indirect or flags & _NEXT or length % 16 or not 0 < length <= SEGMENT_LIMIT * 16:
                    raise GuestError(f"an indirect table of {length} bytes is nested, followed, or of no such size")
                table, count, index, indirect = self._memory.read(gpa, length), length // 16, 0, True
                continue
            yield gpa, length, flags
            if not flags & _NEXT:
                return
            index = following
        raise GuestError(f"a chain has more than {SEGMENT_LIMIT} descriptors, or never ends")

    # --- state that travels --------------------------------------------------------------------------------------

    def save(self) -> QueueState:
        """The registers, and how far the rings were served."""
        first, second, third = self.areas
        return QueueState(self.size, self.ready, (first, second, third), self._taken)

    def restore(self, state: QueueState) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: no driver can have brought a queue there.
        """
        if state.size >> 32 or any(area >> 64 for area in state.areas) or state.position >> 16:
            raise StreamError("a virtqueue's state has a number that is too large")
        self.stop()
        self.size, self.areas = state.size, list(state.areas)
        if state.ready:
            try:
                self.start()
            except GuestError as error:
                raise StreamError("a virtqueue is ready that cannot be") from error
        self._taken = self._used = state.position
