"""The ready port: the start-up code of a receiver says that it is done (see `sealift.launch.startup`)."""

from __future__ import annotations

from collections.abc import Callable

from sealift.errors import StreamError
from sealift.launch.startup import READY_PORT, READY_VALUE


class ReadyPort:
    """`ready` is called when the guest says so; it must not wait."""

    name = "ready-port"
    version = 1
    ports = range(READY_PORT, READY_PORT + 1)

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # nothing to read
        """Reads as all ones."""
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # one port
        """The guest is ready, if it writes the one value that says so."""
        if value == READY_VALUE:
            self._ready()

    def save(self) -> bytes:
        """There is no state: what was said was heard."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("the ready port has no state to restore")

    def quiesce(self) -> None:
        """It has no work of its own."""

    def resume(self) -> None:
        """It has no work of its own."""
