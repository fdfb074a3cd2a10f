"""Several channels, each on a connection of its own: joined at the target, lost together, closed to strangers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sealift.errors import LostError, StreamError, UserError
from sealift.vmm.migration.alarm import Alarm
from sealift.vmm.migration.joining import JoinedChannels, Side
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.reception import Reception, say_farewell
from sealift.vmm.migration.streamio import StreamReader, shut_down
from sealift.vmm.migration.transport import Listener, TcpAddress
from sealift.wire.handover import FrameKind, Method, Refusal, Transfer, read_frame
from sealift.wire.record import FIRST_LEG, RecordHeader, RecordKind
from sealift.wire.side_connection import END, MAGIC, SideFront, encode_length

from . import rig

MULTIFD = frozenset({Capability.MULTIFD})
TICKET = bytes(range(16))


def several(channels: int) -> Parameters:
    """Parameters with so many channels."""
    return Parameters(multifd_channels=channels, capabilities=MULTIFD)


@pytest.mark.parametrize("channels", [2, 4])
def test_every_channel_carries_its_part_on_its_own_connection(hosts: Path, channels: int) -> None:
    with rig.world(hosts, rig.recipe(megabytes=64, command_line=rig.COMMAND_LINE.replace("ws=16", "ws=4000"))) as world:
        guest = world.start()
        guest.work(8)
        attempt = rig.attempt(world, guest, several(channels))
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert len(attempt.tapes) == channels
        assert info.ram is not None
        beside = [bytes(tape.sent_bytes) for tape in attempt.tapes[1:]]
        assert info.ram.multifd_bytes == sum(map(len, beside))
        assert info.ram.transferred <= info.ram.multifd_bytes + len(attempt.wire)
        for number, data in enumerate(beside, 1):
            assert data.startswith(MAGIC)
            assert data.endswith(END)
            headers = records_in(data[24:])
            assert {header.channel for header in headers} == {number}
            assert [header.sequence for header in headers] == list(range(len(headers)))
            epochs = [header.epoch for header in headers if header.kind is RecordKind.EPOCH]
            assert epochs == list(range(1, info.ram.dirty_sync_count + 1))
        attempt.guest().work(8)


def records_in(data: bytes) -> list[RecordHeader]:
    """Headers of the records on a side connection."""
    found = []
    while (length := int.from_bytes(data[:4], "big")) != 0:
        found.append(RecordHeader.decode(data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def test_a_lost_connection_ends_the_migration_on_both_sides_and_the_guest_runs_on(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, several(3))
    tape = attempt.migration.make_writer

    def cut_the_second(sock: socket.socket, spend: Callable[[int], None]) -> rig.Tape:
        made = tape(sock, spend)
        assert isinstance(made, rig.Tape)
        if len(attempt.tapes) == 3:

            def cut(data: bytes, before: int) -> bytes:
                if before > len(data):
                    shut_down(sock)
                return data

            made.edit = cut
        return made

    attempt.migration.make_writer = cut_the_second
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed"
    assert "the connection of channel 2 broke" in (info.error_desc or "")
    assert "the connection of channel 2 broke" in (attempt.refused or "")
    guest.work(4)


@pytest.mark.attack("network", "takes a channel's place with a connection of its own", gains="nothing")
def test_a_stranger_takes_no_place_among_the_connections() -> None:
    listener = Listener(TcpAddress("127.0.0.1", 0))
    with closing(Reception(listener, Patience(introduction_s=rig.PATIENCE_S), rig.NOBODY)) as reception:
        assert "no migration here waits" in answer_to(listener, SideFront(1, TICKET))
        reception.expect(TICKET, 3)
        assert "no migration here waits" in answer_to(listener, SideFront(1, bytes(16)))
        with side(listener, SideFront(1, TICKET)), side(listener, SideFront(2, TICKET)):
            found = reception.sides(rig.PATIENCE_S)
            assert {each.channel for each in found} == {1, 2}
            assert "channel 1 of this migration has its connection" in answer_to(listener, SideFront(1, TICKET))
            assert "channel 7 of this migration has its connection" in answer_to(listener, SideFront(7, TICKET))
            for each in found:
                each.sock.close()


def test_a_connection_that_does_not_come_is_missed_by_its_number() -> None:
    listener = Listener(TcpAddress("127.0.0.1", 0))
    with closing(Reception(listener, Patience(), rig.NOBODY)) as reception:
        reception.expect(TICKET, 3)
        with pytest.raises(LostError, match="connection for channel 1, 2 did not come"):
            reception.sides(0.01)


def side(listener: Listener, front: SideFront) -> socket.socket:
    """A side connection."""
    address = listener.address
    assert isinstance(address, TcpAddress)
    sock = socket.create_connection((address.host, address.port), rig.PATIENCE_S)
    sock.sendall(front.encode())
    return sock


def answer_to(listener: Listener, front: SideFront) -> str:
    """What such a connection is told."""
    with side(listener, front) as sock:
        frame = read_frame(StreamReader(sock).take)
    assert frame.kind is FrameKind.REFUSED
    return Refusal.decode(frame.payload).reason


class Sink:
    """Takes records, and remembers whose they were."""

    def __init__(self) -> None:
        self.space_ = memoryview(bytearray(4096))
        self.taken: list[tuple[int, int]] = []

    def space(self, length: int) -> memoryview:
        """Where the next one goes."""
        return self.space_[:length]

    def take(self, length: int) -> None:
        """It is there."""
        header = RecordHeader.decode(self.space_[:length])
        self.taken.append((header.epoch, header.channel))

    def settle(self) -> None:
        """Nothing is left."""


def token(channel: int, epoch: int) -> bytes:
    """A record of the shape of an epoch token."""
    header = RecordHeader(RecordKind.EPOCH, FIRST_LEG, channel, epoch, epoch - 1, bytes(16), 0, 0)
    return header.encode() + bytes(16)


def test_no_channel_runs_ahead_of_anothers_epoch_token() -> None:
    sink = Sink()
    ours, theirs = socket.socketpair()
    with ours, closing(Alarm()) as alarm:
        for epoch in (1, 2):
            record = token(1, epoch)
            ours.sendall(encode_length(len(record)) + record)
        ours.sendall(END)
        with closing(JoinedChannels(sink, [Side(1, theirs, StreamReader(theirs))], alarm)) as joined:
            for epoch in (1, 2):
                record = token(0, epoch)
                joined.space(len(record))[:] = record
                joined.take(len(record))
            joined.settle()
    assert sorted(sink.taken[:2]) == [(1, 0), (1, 1)]
    assert sorted(sink.taken[2:]) == [(2, 0), (2, 1)]


def test_a_stranger_that_talks_on_and_on_gives_its_place_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent_away = threading.Thread(target=say_farewell, args=(theirs, Refusal.of(LostError("no")), 0.3), daemon=True)
        sent_away.start()
        until = time.monotonic() + rig.PATIENCE_S
        while sent_away.is_alive() and time.monotonic() < until:
            ours.sendall(b"?")
            time.sleep(0.02)
        assert not sent_away.is_alive()


def test_nobody_waits_for_the_tokens_of_a_channel_that_has_ended() -> None:
    sink = Sink()
    ours, theirs = socket.socketpair()
    with ours, closing(Alarm()) as alarm:
        ours.sendall(END)
        with closing(JoinedChannels(sink, [Side(1, theirs, StreamReader(theirs))], alarm)) as joined:

            def stream() -> None:
                record = token(0, 1)
                joined.space(len(record))[:] = record
                joined.take(len(record))
                joined.settle()

            thread = threading.Thread(target=stream, daemon=True)
            thread.start()
            thread.join(rig.PATIENCE_S)
            assert not thread.is_alive()
    assert sink.taken == [(1, 0)]


@pytest.mark.attack("records", "sends one on another channel's connection", gains="denial of service")
def test_a_record_on_another_channels_connection_ends_the_migration() -> None:
    ours, theirs = socket.socketpair()
    with ours, closing(Alarm()) as alarm:
        record = token(0, 1)
        ours.sendall(encode_length(len(record)) + record)
        with (
            closing(JoinedChannels(Sink(), [Side(1, theirs, StreamReader(theirs))], alarm)) as joined,
            pytest.raises(StreamError, match="record 0 of channel 0 came on the connection of channel 1"),
        ):
            joined.settle()


def test_an_alarm_ends_the_wait_for_the_stream() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Alarm()) as alarm:
        reader = StreamReader(theirs)
        reader.heed(alarm)
        alarm.sound(StreamError("channel 3 is gone"))
        with pytest.raises(StreamError, match="channel 3 is gone"):
            reader.take(1)


@pytest.mark.parametrize("other", [{"transfer": Transfer.MAILBOX}, {"method": Method.PSP}])
def test_what_has_one_channel_says_so(other: dict[str, Transfer | Method]) -> None:
    with pytest.raises(UserError, match="switch multifd off"):
        Parameters(multifd_channels=2, capabilities=MULTIFD, **other)  # type: ignore[arg-type]  # either of them
