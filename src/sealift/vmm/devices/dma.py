"""Guest memory for devices: the shared plane, as far as the guest has declared it shared.

A page that is private shows ciphertext here, and what is written to it never reaches the guest: a driver that names one
is mistaken, and is told so instead of being given garbage.
"""

from __future__ import annotations

from collections.abc import Callable

from sealift.errors import GuestError
from sealift.vmm.memory import Buffer, SharedMemory


class SharedDma:
    """`DeviceMemory` over the shared plane; `wholly_shared` tells of RAM pages (first, count) whether all are shared.

    A page may become private between the question and the access. That is the guest's race with itself, and harms
    nobody else: what is read then is what the host sees anyway.
    """

    def __init__(self, memory: SharedMemory, wholly_shared: Callable[[int, int], bool]) -> None:
        self._memory = memory
        self._wholly_shared = wholly_shared

    def read(self, gpa: int, length: int) -> bytes:
        """Copy bytes out."""
        self._check(gpa, length)
        return self._memory.read(gpa, length)

    def write(self, gpa: int, data: Buffer) -> None:
        """Copy bytes in and mark the pages."""
        self._check(gpa, len(data))
        self._memory.write(gpa, data)

    def _check(self, gpa: int, length: int) -> None:
        if not self._wholly_shared(*self._memory.pages_of(gpa, length)):
            raise GuestError(f"{length} bytes at GPA {gpa:#x} are not all shared with devices")
