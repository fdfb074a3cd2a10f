"""The QMP server: any number of clients, on Unix and TCP sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final

from sealift.vmm.control import post, serve_clients
from sealift.vmm.events import GuestEvent
from sealift.vmm.guest import Guest
from sealift.vmm.outbox import Outbox
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.commands.control import version_info
from sealift.vmm.qmp.events import qmp_events
from sealift.vmm.qmp.message import event_message
from sealift.vmm.qmp.session import Session
from sealift.vmm.qmp.table import Runs

CLIENTS_LIMIT: Final = 64
"""Clients of one socket at once; each costs a descriptor and at most an outbox."""

_THREADS: Final = MappingProxyType({Runs.IN_THREAD: 8, Runs.AT_LEISURE: 4})
"""Commands that may wait at once; `quit`, `query-status` and what else never waits need none of them. However many ask
what another host says, `stop` and `migrate_cancel` find a thread."""


class QmpServer:
    """Answers QMP for one guest. Made on the event loop; `deserted` is called there when the last client leaves."""

    def __init__(self, guest: Guest, deserted: Callable[[], None]) -> None:
        self._guest = guest
        self._deserted = deserted
        self._sessions: set[Session] = set()
        self._threads = {runs: ThreadPoolExecutor(count, "qmp") for runs, count in _THREADS.items()}
        self._loop = asyncio.get_running_loop()

    @property
    def clients(self) -> int:
        """Clients connected now."""
        return len(self._sessions)

    async def serve(self, *listening: socket.socket) -> None:
        """Serve the clients of listening sockets until cancelled."""
        self._guest.events.listen(self._happened)
        try:
            async with asyncio.TaskGroup() as sockets:
                for one in listening:
                    sockets.create_task(serve_clients(one, self._client, CLIENTS_LIMIT))
        finally:
            self._guest.events.unlisten(self._happened)
            for threads in self._threads.values():
                threads.shutdown(wait=False, cancel_futures=True)

    async def _client(self, reader: asyncio.StreamReader, outbox: Outbox) -> None:
        session = Session(COMMANDS, self._guest, self._threads, outbox)
        self._sessions.add(session)
        try:
            await session.serve(reader, version_info())
        finally:
            self._sessions.discard(session)
            if not self._sessions:
                self._deserted()

    def _happened(self, event: GuestEvent) -> None:
        """Called on any thread."""
        now_us = time.time_ns() // 1000
        for qmp_event in qmp_events(event, self._guest.parameters.capabilities):
            post(self._loop, self._broadcast, event_message(qmp_event, now_us))

    def _broadcast(self, message: bytes) -> None:
        for session in self._sessions:
            session.event(message)
