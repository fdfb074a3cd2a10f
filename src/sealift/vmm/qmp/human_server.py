"""The human monitor's socket: a prompt, a line, its answer, and the prompt again, as QEMU's on a Unix or TCP socket.

Nothing that is typed is echoed: whoever types at a terminal has an editor of lines there (``sealift monitor``,
``socat readline``).
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sealift.vmm.control import serve_clients
from sealift.vmm.guest import Guest
from sealift.vmm.outbox import Outbox
from sealift.vmm.qmp.commands.control import version_info
from sealift.vmm.qmp.commands.human import MONITOR
from sealift.vmm.qmp.human import Viewpoint
from sealift.vmm.qmp.prompt import END_OF_LINE, PROMPT

CLIENTS_LIMIT: Final = 16
"""Of one socket at once; each has one line carried out at a time, in a thread."""


class HumanServer:
    """Serves the monitor of one guest to several users, who each choose a vCPU. Made on the event loop."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._threads = ThreadPoolExecutor(CLIENTS_LIMIT, "monitor")

    async def serve(self, *listening: socket.socket) -> None:
        """Serve the users of listening sockets until cancelled."""
        try:
            async with asyncio.TaskGroup() as sockets:
                for one in listening:
                    sockets.create_task(serve_clients(one, self._client, CLIENTS_LIMIT))
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _client(self, reader: asyncio.StreamReader, outbox: Outbox) -> None:
        version = version_info()
        view = Viewpoint()
        outbox.put(f"{version.package} monitor - type 'help' for more information{END_OF_LINE}{PROMPT}".encode())
        try:
            while line := await reader.readline():
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._threads, MONITOR.execute, self._guest, line.decode(errors="replace"), view
                )
                outbox.put(f"{answer}{PROMPT}".encode())
        except ValueError:  # longer than the reader's limit
            outbox.put(f"the line is too long{END_OF_LINE}".encode())
