"""The keyboard controller's one use on a machine without a keyboard: it resets the machine.

Status reads as "output buffer full" for ever. Linux's driver empties the buffer first, gives up after 16 bytes (less
than a millisecond) and says that there is no controller; a controller that is merely silent would cost it half a second
for each command. "Input buffer full" is never set: the reboot code, which waits for that, never waits.
"""

from __future__ import annotations

from collections.abc import Callable

from sealift.errors import StreamError
from sealift.launch.microvm import KEYBOARD_COMMAND_PORT, KEYBOARD_DATA_PORT, RESET_VALUE

_OUTPUT_FULL = 0x01


class KeyboardController:
    """Calls `reset` when the guest asks for it."""

    name = "i8042"
    version = 1
    ports = range(KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT + 1, KEYBOARD_COMMAND_PORT - KEYBOARD_DATA_PORT)

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # byte registers
        """Status, or a byte of no meaning."""
        return _OUTPUT_FULL if port == KEYBOARD_COMMAND_PORT else 0

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # byte registers
        """A command, or a byte for a keyboard that is not there."""
        if port == KEYBOARD_COMMAND_PORT and value & 0xFF == RESET_VALUE:
            self._reset()

    def save(self) -> bytes:
        """There is no state."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("the keyboard controller has no state to restore")

    def quiesce(self) -> None:
        """Nothing is ever underway."""

    def resume(self) -> None:
        """There is nothing to go on with."""
