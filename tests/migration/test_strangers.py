"""A target that waits serves the source it waits for, whoever else connects, and makes nothing for the others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import StreamError
from sealift.vmm.machine import Machine
from sealift.vmm.migration import landing, target
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.receiving import Introduction
from sealift.vmm.migration.streamio import StreamReader, StreamWriter
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.transport import TcpAddress
from sealift.vmm.platform import Platform
from sealift.wire.handover import (
    RAM_LIMIT,
    VCPUS_LIMIT,
    FrameKind,
    HandlerOffer,
    Hardware,
    Hello,
    Refusal,
    SealedKind,
    Transfer,
    blocks_of,
    read_frame,
)
from sealift.wire.platform import Block

from . import rig

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 1 << 30),))
OFFER = HandlerOffer(bytes(48), Transfer.RING, b"offer").encode()
HELLO = Hello("mh", "stranger", 1, blocks_of(LAYOUT), Hardware("bare", 47, b""), OFFER)


@contextlib.contextmanager
def stranger(attempt: rig.Attempt) -> Iterator[socket.socket]:
    """A connection to a target that waits."""
    address = attempt.incoming.address
    assert isinstance(address, TcpAddress)
    with socket.create_connection((address.host, address.port), rig.PATIENCE_S) as sock:
        yield sock


@pytest.mark.attack("network", "connects first, and says nothing or nonsense", gains="nothing")
def test_a_silent_stranger_keeps_nobody_waiting_and_a_babbling_one_is_told_why(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with contextlib.ExitStack() as strangers:
        for _ in range(8):
            strangers.enter_context(stranger(attempt))
        babbling = strangers.enter_context(stranger(attempt))
        babbling.sendall(b"GET / HTTP/1.1\r\n\r\n")
        strangers.enter_context(stranger(attempt)).close()
        attempt.begin()
        frame = read_frame(StreamReader(babbling).take)
        assert frame.kind is FrameKind.REFUSED
        assert "no migration stream" in Refusal.decode(frame.payload).reason
        assert attempt.end().status == "completed"
    attempt.guest().work(4)


def test_a_stranger_is_dropped_when_its_time_is_over(world: rig.World) -> None:
    guest = world.start()
    attempt = rig.attempt(world, guest)
    attempt.incoming.patience = Patience(introduction_s=0.05)
    server = threading.Thread(target=lambda: serve(attempt))
    server.start()
    with stranger(attempt) as sock:
        frame = read_frame(StreamReader(sock).take)
    assert "has not answered" in Refusal.decode(frame.payload).reason
    attempt.incoming.cancel()
    server.join(rig.PATIENCE_S)
    assert not server.is_alive()


def test_a_guest_that_the_owner_does_not_know_gets_no_machine_and_the_target_waits_on(
    world: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    guest.work(4)
    made: list[int] = []
    attempt = rig.attempt(world, guest)
    make = landing.make_machine

    def counted(host: landing.TargetHost, platform: Platform, introduction: Introduction, *, es: bool) -> Machine:
        made.append(introduction.hello.vcpus)
        return make(host, platform, introduction, es=es)

    monkeypatch.setattr(target, "make_machine", counted)
    server = threading.Thread(target=lambda: serve(attempt))
    server.start()
    with stranger(attempt) as sock:
        out = StreamOut(StreamWriter(sock, lambda _: None))
        out.begin(LAYOUT)
        out.piece(SealedKind.HELLO, HELLO.encode())
        frame = read_frame(StreamReader(sock).take)
    assert "no released launch has the measurement" in Refusal.decode(frame.payload).reason
    assert not made
    assert any("sent away" in notice for notice in world.notices)
    assert attempt.migration.run(str(attempt.incoming.address)).status == "completed"
    server.join(rig.PATIENCE_S)
    assert made == [1]
    attempt.guest().work(4)


def serve(attempt: rig.Attempt) -> None:
    """The target's side."""
    with contextlib.suppress(Exception):
        attempt.arrived = attempt.incoming.serve()


@pytest.mark.attack("lengths and addresses", "introduces a guest that no machine could hold", gains="nothing")
@pytest.mark.parametrize(
    "beyond",
    [
        {"vcpus": VCPUS_LIMIT + 1},
        {"vcpus": 0},
        {"blocks": ()},
        {"blocks": (Block("pc.ram", 0, RAM_LIMIT + 4096),)},
        {"blocks": (Block("pc.ram", 0, -4096),)},
        {"blocks": tuple(Block(f"ram{index}", index << 20, 4096) for index in range(17))},
    ],
)
def test_an_introduction_beyond_every_machine_is_refused_unmade(beyond: dict[str, object]) -> None:
    with pytest.raises(StreamError, match="the source's guest has"):
        Hello.decode(msgspec.structs.replace(HELLO, **beyond).encode())
