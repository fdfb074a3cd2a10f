"""What a device is to the machine."""

from __future__ import annotations

from typing import Protocol


class PortDevice(Protocol):
    """A device behind I/O ports. The machine holds its device lock around every call.

    Attributes:
        name: section name in a migration stream.
        version: of the state that `save` gives; `restore` takes only this one.
        ports: the ports it answers.
    """

    name: str
    version: int
    ports: range

    def read(self, port: int, size: int) -> int:
        """The guest reads `size` bytes."""

    def write(self, port: int, size: int, value: int) -> None:
        """The guest writes `size` bytes."""

    def save(self) -> bytes:
        """State for a migration stream."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: it does not parse.
        """
