"""The thread a handler lives on: what it does once its guest is not here."""

from __future__ import annotations

import socket
import threading

from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.mailbox import Mailbox
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.handler_service import HandlerService
from sealift.silicon.process.ring import incoming_ring, outgoing_ring
from sealift.wire import handler as wire
from sealift.wire.channel import Channel
from sealift.wire.mailbox import AREA_SIZE
from sealift.wire.platform import Done, Message, Phase

from .rig import SOURCE_FACTS, FakeClock, FakeGuest


def test_nobody_waits_while_the_memory_of_a_guest_that_is_gone_is_given_back() -> None:
    """It takes the kernel longer, for a large guest, than the whole handover."""
    forgetting, may_end, forgotten = threading.Event(), threading.Event(), threading.Event()

    def forget() -> None:
        forgetting.set()
        may_end.wait()
        forgotten.set()

    handler = MigrationHandler(
        Role.TARGET, SOURCE_FACTS, None, FakeGuest(SOURCE_FACTS.layout.pages).parts(), FakeClock()
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    HandlerService(
        handler,
        Mailbox(handler, memoryview(bytearray(AREA_SIZE))),
        RunGate(lambda: Phase.RUNNING),
        theirs,
        outgoing=outgoing_ring(),
        incoming=incoming_ring(),
        forget=forget,
    ).start()
    channel: Channel[wire.HandlerReply, Message] = Channel(ours, wire.HandlerReply)
    with ours:
        try:
            channel.send(wire.Cancel())
            assert channel.receive_alone() == Done()
            assert handler.state is State.ABORTED
            assert forgetting.wait(30), "and its memory is given back"
            channel.send(wire.GetStatus())
            assert isinstance(channel.receive_alone(), wire.HandlerStatus)
            assert not forgotten.is_set()
        finally:
            may_end.set()
    assert forgotten.wait(30)
