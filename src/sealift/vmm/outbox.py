"""What is on its way to one client of a control socket, within a limit.

A client that does not read loses its connection; it never makes anybody else wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

OUTBOX_LIMIT: Final = 1024 * 1024
"""Bytes a client may be behind: ten thousand events, or sixteen times a console's history."""

_PAUSE_ABOVE: Final = 64 * 1024
"""Bytes after which `drained` waits for the client."""

_FAREWELL_S: Final = 1.0
"""How long the last bytes may take; a client on the same machine needs microseconds."""


class Outbox:
    """Bytes for one client; use it on the event loop only."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=_PAUSE_ABOVE)

    def put(self, data: bytes) -> None:
        """Send without waiting; a client that is too far behind is dropped."""
        if self._writer.transport.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > OUTBOX_LIMIT:
            self._writer.transport.abort()

    async def drained(self) -> None:
        """Wait until the client has read nearly everything, or is gone."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def close(self) -> None:
        """Disconnect, giving the client a moment to read what it was sent."""
        self._writer.close()
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()
