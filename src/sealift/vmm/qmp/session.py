"""One QMP client's connection: negotiation, then requests one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Final

from sealift.errors import StreamError
from sealift.vmm.guest import Guest
from sealift.vmm.outbox import Outbox
from sealift.vmm.qmp.commands.control import NEGOTIATE, NegotiationArguments
from sealift.vmm.qmp.framing import DEPTH_LIMIT, Frame, Framer
from sealift.vmm.qmp.message import (
    ErrorClass,
    QmpError,
    Request,
    VersionInfo,
    convert_arguments,
    decode_request,
    failure,
    greeting,
    request_id,
    success,
)
from sealift.vmm.qmp.table import CommandTable, Runs

_READ_SIZE: Final = 16 * 1024
_BEFORE: Final = f"Expecting capabilities negotiation with '{NEGOTIATE}'"


class Session:
    """Serves one client until it leaves, stops reading, or sends what cannot be read.

    Who begins with something else than JSON is no client and is let go: a web page can have a browser send it to a port
    of this machine, as HTTP with requests in its body.
    """

    def __init__(self, table: CommandTable, guest: Guest, threads: Mapping[Runs, Executor], outbox: Outbox) -> None:
        self._table = table
        self._guest = guest
        self._threads = threads
        self._outbox = outbox
        self._framer = Framer()
        self._negotiated = False

    def event(self, message: bytes) -> None:
        """Pass an event on; before negotiation there are none."""
        if self._negotiated:
            self._outbox.put(message)

    async def serve(self, reader: asyncio.StreamReader, version: VersionInfo) -> None:
        """Greet, then answer requests until the client leaves."""
        self._outbox.put(greeting(version))
        while data := await reader.read(_READ_SIZE):
            try:
                frames = self._framer.feed(data)
            except StreamError as error:
                self._outbox.put(failure(QmpError(str(error))))
                return
            for frame in frames:
                self._outbox.put(await self._answer(frame))
                # A client that does not read its replies gets no further request served.
                await self._outbox.drained()
                if not (self._negotiated or frame.is_object):
                    return

    async def _answer(self, frame: Frame) -> bytes:
        if frame.depth > DEPTH_LIMIT:
            return failure(QmpError(f"JSON parse error, objects and lists lie more than {DEPTH_LIMIT} deep"))
        try:
            request = decode_request(frame.data)
        except QmpError as error:
            return failure(error, request_id(frame.data))
        try:
            return success(await self._carry_out(request), request.id)
        except QmpError as error:
            return failure(error, request.id)

    async def _carry_out(self, request: Request) -> object:
        if not self._negotiated:
            self._negotiate(request)
            return {}
        command = self._table.find(request.execute)
        call = command.bind(request, self._guest)
        if command.runs is Runs.AT_ONCE:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._threads[command.runs], call)

    def _negotiate(self, request: Request) -> None:
        if request.execute != NEGOTIATE:
            raise QmpError(_BEFORE, ErrorClass.COMMAND_NOT_FOUND)
        enable = convert_arguments(request.arguments, NegotiationArguments).enable
        if enable:
            raise QmpError(f"Capability '{enable[0].value}' is not available")
        self._negotiated = True
