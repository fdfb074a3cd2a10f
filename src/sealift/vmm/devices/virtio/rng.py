"""A virtio entropy device (virtio 1.2, section 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sealift.errors import StreamError
from sealift.vmm.devices.virtio.link import DriverLink
from sealift.vmm.devices.virtio.queue import QUEUE_SIZE

CHAIN_LIMIT: Final = 64 << 10
"""Bytes of a chain."""

ANSWER_LIMIT: Final = 4096
"""Random bytes for one chain, which may get fewer than it has room for: Linux asks for less at a time."""


class Rng:
    """`source` gives so many random bytes (`os.urandom`). A confidential guest should not rely on them alone."""

    device_id = 4
    features = 0
    queues = 1
    chain_limit = CHAIN_LIMIT

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source

    def config(self) -> bytes:
        """There is none."""
        return b""

    def attach(self, link: DriverLink) -> None:
        """Where its chains come from."""
        self._link = link

    def kick(self, queue: int) -> None:
        """Fill what is there: no more than a ring full, as whatever comes meanwhile is announced as well."""
        for _ in range(QUEUE_SIZE):
            chain = self._link.take(queue)
            if chain is None:
                return
            self._link.complete(chain, self._source(min(chain.room, ANSWER_LIMIT)))

    def save(self) -> bytes:
        """There is no state."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("an entropy device has no state to restore")
