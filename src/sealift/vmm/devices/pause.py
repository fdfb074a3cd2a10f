"""The pause port: a guest without timer interrupts lets its vCPU rest for a number of microseconds."""

from __future__ import annotations

from collections.abc import Callable

from sealift.errors import StreamError

PAUSE_PORT = 0x5EA0

LONGEST_PAUSE_S = 60.0
"""What a guest may ask for at once: a pause ends early when the VM stops, so this only bounds mistakes."""


class PausePort:
    """`rest` is called with seconds; it runs on the vCPU's thread and may return early."""

    name = "pause-port"
    version = 1
    ports = range(PAUSE_PORT, PAUSE_PORT + 1)

    def __init__(self, rest: Callable[[float], None]) -> None:
        self._rest = rest

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # nothing to read
        """Reads as all ones."""
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # one port
        """Rest for `value` microseconds."""
        self._rest(min(value / 1e6, LONGEST_PAUSE_S))

    def save(self) -> bytes:
        """There is no state: an interrupted pause is over."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("the pause port has no state to restore")

    def quiesce(self) -> None:
        """A pause is the vCPU's, and ends with the vCPU's stop."""

    def resume(self) -> None:
        """There is nothing to go on with."""
