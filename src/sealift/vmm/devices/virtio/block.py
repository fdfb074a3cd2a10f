"""A virtio block device (virtio 1.2, section 5.2): a disk image behind one queue.

A thread of its own does the I/O, one request after the other, so no vCPU waits for a disk. A request that cannot be
done is answered with a status; one that is no request at all ends in DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

import struct
import threading
from enum import IntEnum
from typing import Final

from sealift.errors import GuestError, StreamError, sentence
from sealift.vmm.devices.disk import SECTOR_SIZE, DiskImage
from sealift.vmm.devices.virtio.link import DriverLink
from sealift.vmm.devices.virtio.queue import Chain

SIZE_MAX, SEG_MAX, READ_ONLY, BLOCK_SIZE, FLUSH = 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 9
"""Feature bits: the first, second and fourth say that the configuration has limits and block size."""

OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
"""Status values."""


class Request(IntEnum):
    """What is asked for; discard and its like are not offered."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


_HEADER = struct.Struct("<I4xQ")
_CONFIG = struct.Struct("<QII4xI")
_ID_SIZE = 20

LARGEST_SEGMENT: Final = 64 << 10
MOST_SEGMENTS: Final = 126
"""With the header and the status a request has 128 descriptors."""

REQUEST_LIMIT: Final = LARGEST_SEGMENT * MOST_SEGMENTS + _HEADER.size + 1
"""Bytes of a request: what the two limits above, which the driver is told, allow; 8 MiB are held at once."""


class Block:
    """A disk; `serial` is what the guest finds it by, of at most 20 bytes."""

    device_id = 2
    queues = 1
    chain_limit = REQUEST_LIMIT

    def __init__(self, disk: DiskImage, serial: str) -> None:
        self.features = SIZE_MAX | SEG_MAX | BLOCK_SIZE | FLUSH | (READ_ONLY if disk.read_only else 0)
        self._disk = disk
        self._id = serial.encode()[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self._ended = False

    def config(self) -> bytes:
        """Capacity, limits and block size."""
        return _CONFIG.pack(self._disk.sectors, LARGEST_SEGMENT, MOST_SEGMENTS, SECTOR_SIZE)

    def attach(self, link: DriverLink) -> None:
        """Start the thread."""
        self._link = link
        self._thread = threading.Thread(target=self._work, name="virtio-block", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the request that is underway; the disk is its owner's to close."""
        with self._link.changed:
            self._ended = True
            self._link.changed.notify_all()
        self._thread.join()

    def kick(self, queue: int) -> None:  # noqa: ARG002  # there is only one
        """Wake the thread."""
        self._link.changed.notify_all()

    def save(self) -> bytes:
        """Nothing of the disk travels."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("a disk has no state to restore")

    # --- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (chain := self._next()) is not None:
            try:
                response = self._respond(chain)
            except Exception as error:
                with self._link.changed:
                    self._link.refuse(chain, sentence(error))
                if not isinstance(error, GuestError):
                    raise
            else:
                with self._link.changed:
                    self._link.complete(chain, response)

    def _next(self) -> Chain | None:
        """The next request, or None at the end."""
        with self._link.changed:
            while not self._ended:
                chain = self._link.take(0)
                if chain is not None:
                    return chain
                self._link.changed.wait()
        return None

    def _respond(self, chain: Chain) -> bytearray:
        """Everything the driver gets back: data and, in the last byte, the status."""
        if len(chain.data) < _HEADER.size or not chain.room:
            raise GuestError("a block request has no header, or no room for its status")
        kind, sector = _HEADER.unpack_from(chain.data)
        response = bytearray(chain.room)
        sent, room = memoryview(chain.data)[_HEADER.size :], memoryview(response)[:-1]
        try:
            response[-1] = self._carry_out(kind, sector, sent, room)
        except OSError:
            response[-1] = IO_ERROR
        return response

    def _carry_out(self, kind: int, sector: int, sent: memoryview, room: memoryview) -> int:
        match kind:
            case Request.IN:
                return self._read(sector, room)
            case Request.OUT:
                return self._write(sector, sent)
            case Request.FLUSH:
                self._disk.flush()
                return OK
            case Request.GET_ID if len(room) >= _ID_SIZE:
                room[:_ID_SIZE] = self._id
                return OK
            case _:
                return UNSUPPORTED

    def _read(self, sector: int, room: memoryview) -> int:
        if not self._holds(sector, len(room)):
            return IO_ERROR
        self._disk.read_into(sector * SECTOR_SIZE, room)
        return OK

    def _write(self, sector: int, data: memoryview) -> int:
        if self._disk.read_only or not self._holds(sector, len(data)):
            return IO_ERROR
        self._disk.write(sector * SECTOR_SIZE, data)
        if not self._link.features & FLUSH:
            self._disk.flush()  # a driver that cannot ask for it expects every write to last
        return OK

    def _holds(self, sector: int, length: int) -> bool:
        return length % SECTOR_SIZE == 0 and sector + length // SECTOR_SIZE <= self._disk.sectors
