"""Control sockets: one event loop in a thread of its own, with a server for each socket of a guest.

The loop only ever moves messages. What waits for vCPUs, the platform or the network runs in threads, and vCPU
threads hand over to the loop without waiting for it; so no client can stall the guest, and no guest a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sealift.errors import InternalError
from sealift.vmm.outbox import Outbox

Client = Callable[[asyncio.StreamReader, Outbox], Awaitable[None]]
T = TypeVar("T")


async def serve_clients(listening: socket.socket, client: Client, limit: int) -> None:
    """Run `client` for every connection, `limit` of them at most, until cancelled; then disconnect them.

    Takes over the listening socket. A client that breaks its connection ends only itself.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, outbox: Outbox) -> None:
        try:
            await client(reader, outbox)
        except OSError:
            pass  # the client broke its connection
        finally:
            await outbox.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(tasks) >= limit:
            writer.transport.abort()
            return
        task = asyncio.create_task(serve(reader, Outbox(writer)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    start = asyncio.start_unix_server if listening.family == socket.AF_UNIX else asyncio.start_server
    server = await start(connected, sock=listening)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        leaving = tuple(tasks)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)


async def process_end(pid: int) -> None:
    """Wait until a child process has ended (without reaping it)."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Have the loop make a call soon; from any thread, and in vain once the loop has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


class ControlThread:
    """The event loop's thread. `close` cancels what still runs on it and ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[Any]] = []
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def make(self, factory: Callable[[], T]) -> T:
        """Call `factory` on the loop and return what it makes."""

        async def call() -> T:
            return factory()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop until `close`."""
        self.make(lambda: self._tasks.append(self._loop.create_task(work)))

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Make a call on the loop so many seconds later; from any thread, and in vain once the loop has ended."""
        post(self._loop, self._loop.call_later, seconds, call)

    def close(self) -> None:
        """End everything on the loop, and the loop."""
        if threading.current_thread() is self._thread:
            raise InternalError("the control thread cannot wait for its own end")
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
