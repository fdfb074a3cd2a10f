"""The console's socket: what the guest printed so far, then what it prints; what clients send is typed input."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from sealift.vmm.control import post, serve_clients
from sealift.vmm.guest import Guest
from sealift.vmm.outbox import Outbox

CLIENTS_LIMIT: Final = 16
"""People watching one console at once."""

_READ_SIZE: Final = 4096


class ConsoleServer:
    """Shows one guest's console to several clients. Made on the event loop."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._loop = asyncio.get_running_loop()

    async def serve(self, listening: socket.socket) -> None:
        """Serve clients until cancelled."""
        await serve_clients(listening, self._client, CLIENTS_LIMIT)

    async def _client(self, reader: asyncio.StreamReader, outbox: Outbox) -> None:
        def printed(data: bytes) -> None:
            post(self._loop, outbox.put, data)

        # Further output is queued behind this call on the loop, so history always comes first.
        outbox.put(self._guest.console.listen(printed))
        try:
            while typed := await reader.read(_READ_SIZE):
                self._guest.type_in(typed)
        finally:
            self._guest.console.unlisten(printed)
