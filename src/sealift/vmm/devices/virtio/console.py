"""A virtio console (virtio 1.2, section 5.3) with its one port: `hvc0` in Linux."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sealift.errors import StreamError
from sealift.vmm.devices.serial import INPUT_LIMIT
from sealift.vmm.devices.virtio.link import DriverLink
from sealift.vmm.devices.virtio.queue import QUEUE_SIZE

_RECEIVE, _TRANSMIT = 0, 1

CHAIN_LIMIT: Final = 64 << 10
"""Bytes of a chain: Linux sends a page at most from its tty, and receives into one."""


class VirtioConsole:
    """`transmit` gets what the guest prints, as it comes; it must not wait."""

    device_id = 3
    features = 0
    queues = 2
    chain_limit = CHAIN_LIMIT

    def __init__(self, transmit: Callable[[bytes], None]) -> None:
        self._transmit = transmit
        self._pending = bytearray()

    def config(self) -> bytes:
        """Columns, rows, ports and emergency write: fields of features that are not offered."""
        return bytes(12)

    def attach(self, link: DriverLink) -> None:
        """Where its chains come from."""
        self._link = link

    def receive(self, data: bytes) -> None:
        """Input for the guest; what exceeds a serial port's INPUT_LIMIT is dropped, as there."""
        with self._link.changed:
            self._pending += data[: INPUT_LIMIT - len(self._pending)]
            self._deliver()

    def kick(self, queue: int) -> None:
        """There is output, or room for input."""
        if queue == _RECEIVE:
            self._deliver()
            return
        # No more than a ring full: a driver that goes on writing meanwhile announces that as well.
        for _ in range(QUEUE_SIZE):
            chain = self._link.take(_TRANSMIT)
            if chain is None:
                return
            self._transmit(chain.data)
            self._link.complete(chain)

    def _deliver(self) -> None:
        while self._pending and (chain := self._link.take(_RECEIVE)) is not None:
            if not chain.room:
                self._link.refuse(chain, "a buffer for console input has no room")
                return
            self._link.complete(chain, self._pending[: chain.room])
            del self._pending[: chain.room]

    def save(self) -> bytes:
        """Input that the guest has not taken."""
        return bytes(self._pending)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if len(state) > INPUT_LIMIT:
            raise StreamError(f"the console has {len(state)} bytes of input, which is more than {INPUT_LIMIT}")
        self._pending = bytearray(state)
