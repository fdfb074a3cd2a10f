"""Output buffers: a command whose buffer is too short says how much room it needs, which callers use to ask."""

from __future__ import annotations

from sealift.errors import FirmwareError
from sealift.sev.status import Status, failure
from sealift.silicon.processor.states import Command


class ShortBufferError(FirmwareError):
    """INVALID_LENGTH with which firmware tells the room its answer needs.

    Attributes:
        required: bytes, one number for each output buffer of the command.
    """

    def __init__(self, command: Command, required: tuple[int, ...]) -> None:
        wanted = " and ".join(str(size) for size in required)
        told = failure(Status.INVALID_LENGTH, f"{command.name} returns {wanted} bytes")
        super().__init__(told.status, str(told))
        self.required = required


def require_room(command: Command, *buffers: tuple[int, int]) -> None:
    """Demand room in every output buffer, each given as (bytes there are, bytes needed).

    Raises:
        ShortBufferError: one is too short.
    """
    if any(room < needed for room, needed in buffers):
        raise ShortBufferError(command, tuple(needed for _, needed in buffers))
