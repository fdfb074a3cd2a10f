"""What a virtio device model is to its slot."""

from __future__ import annotations

from typing import Protocol

from sealift.vmm.devices.virtio.link import DriverLink


class Model(Protocol):
    """A kind of virtio device.

    Attributes:
        device_id: of virtio 1.2, section 5.
        features: its own feature bits.
        queues: how many virtqueues it has.
        chain_limit: bytes of a chain at most.
    """

    device_id: int
    features: int
    queues: int
    chain_limit: int

    def config(self) -> bytes:
        """The configuration space, read-only and for ever the same."""

    def attach(self, link: DriverLink) -> None:
        """Where its chains come from; called once."""

    def kick(self, queue: int) -> None:
        """There may be something in a queue; the caller holds the link, and must not be made to wait for I/O."""

    def save(self) -> bytes:
        """State of its own, beside registers and queues."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: it does not parse.
        """
